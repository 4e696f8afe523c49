"""`m2rag index`: files and folders into an index."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m2rag.cli.common import (
    API_KEY,
    AS_JSON,
    DEVICE,
    DTYPE,
    FILTERABLE,
    INDEX,
    INTERRUPTED,
    KINDS,
    LANGUAGE,
    LEXICAL,
    MODEL,
    QUANTIZATION,
    SOME_FAILED,
    VERBOSE,
    Dtype,
    Quantized,
    TooLong,
    new_index_options,
    note,
    open_index,
    path_given,
    plural,
    say,
    say_json,
    stderr,
)
from m2rag.cli.failures import REPORT, failure_as_json, failure_report
from m2rag.cli.on_ray import ACTORS, ADDRESS, CPUS, ENGINE, GPUS, Engine, RayOptions
from m2rag.cli.on_ray import add as add_on_ray

if TYPE_CHECKING:
    from m2rag.index import AddProgress, AddReport
    from m2rag.index.sources import Source

_LISTED = 20  # failures shown; --json has all

ON_TOO_LONG = Annotated[
    TooLong, typer.Option("--on-too-long", help="Texts longer than the model takes: windows, a cut, or a failure.")
]


def index(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATHS...",
            parser=path_given,
            help=f"Files and folders ({KINDS}); - for standard input.",
            show_default=False,
        ),
    ],
    index: INDEX,
    api_key: API_KEY = None,
    model: MODEL = None,
    language: LANGUAGE = "english",
    lexical: LEXICAL = True,
    quantization: QUANTIZATION = Quantized.NONE,
    filterable: FILTERABLE = None,
    on_too_long: ON_TOO_LONG = TooLong.WINDOW,
    name: Annotated[
        str, typer.Option("--name", help="Id of standard input; read as its suffix says, without one as text.")
    ] = "stdin",
    report: REPORT = None,
    device: DEVICE = None,
    dtype: DTYPE = Dtype.AUTO,
    engine: ENGINE = Engine.LOCAL,
    address: ADDRESS = None,
    actors: ACTORS = None,
    cpus_per_actor: CPUS = None,
    gpus_per_actor: GPUS = None,
    as_json: AS_JSON = False,
    verbose: VERBOSE = False,
) -> None:
    """Index whole documents; run it again to add, replace what changed, and leave the rest alone.

    Without --model an existing index is opened with the model it was built with. Interrupted, it loses nothing that
    was stored: the same command goes on. Exit code 3: some documents failed, the others are indexed.

    JSON: {index, documents, added, replaced, unchanged, failed: [{id, error, message, path}], skipped: [path],
    n_tokens, seconds}.
    """
    from m2rag.index.sources import plan
    from m2rag.stores import without_secrets

    ray = RayOptions(address, actors, cpus_per_actor, gpus_per_actor)
    ray.check(engine, api_key is not None)
    for path in paths:
        if str(path) != "-" and not path.exists():
            raise typer.BadParameter(f"{path} does not exist", param_hint="PATHS")
    plan([path for path in paths if str(path) != "-"], [])  # told before a model is loaded or an index made
    sources = _with_standard_input(paths, name) if Path("-") in paths else paths
    new = new_index_options(language if lexical else None, quantization, filterable)
    if engine is Engine.RAY:
        settings: dict[str, Any] = {"device": device, "dtype": dtype.value, "on_too_long": on_too_long.value}
        with index_progress() as show, failure_report(report, show) as told:
            done, documents = add_on_ray(index, sources, ray, progress=told, model=model, **new, **settings)
        _tell(done, without_secrets(index), documents, as_json)
        return
    with open_index(index, model, device=device, dtype=dtype, create=True, api_key=api_key, **new) as opened:
        place = opened.location
        for field, kind in new["filterable"].items():
            opened.make_filterable(field, kind)  # of an index that is there, too
        try:
            with index_progress() as show, failure_report(report, show) as told:
                done = opened.add(sources, on_too_long=on_too_long.value, progress=told)
        except KeyboardInterrupt as interrupt:
            note(
                f"Stopped. {plural(len(opened), 'document')} safe in {place}: run the same command again to go on "
                "from there."
            )
            raise typer.Exit(INTERRUPTED) from interrupt
        documents = len(opened)
    _tell(done, place, documents, as_json)


def _tell(done: AddReport, place: str, documents: int, as_json: bool) -> None:
    if as_json:
        say_json({"index": place, "documents": documents, **report_as_json(done)})
    else:
        show_report(done, place, documents)
    if done.failed:
        raise typer.Exit(SOME_FAILED)


def report_as_json(report: AddReport) -> dict[str, Any]:
    """A report, ready for JSON."""
    failed = [failure_as_json(failure) for failure in report.failed]
    return {**vars(report), "failed": failed, "seconds": round(report.seconds, 3)}


@contextmanager
def index_progress() -> Iterator[Callable[[AddProgress], None]]:
    """A bar on standard error, fed by the progress of `LongDocumentIndex.add`; nothing where there is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("Indexing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=stderr, disable=not stderr.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None, rate="")

        def show(state: AddProgress) -> None:
            rate = rates(state.done, state.tokens, state.seconds)
            bar.update(task, completed=state.done, total=state.total, rate=rate, description=state.current[-40:])

        yield show


def rates(documents: int, tokens: int, seconds: float) -> str:
    """Documents and tokens per second."""
    seconds = max(seconds, 1e-3)
    return f"{documents / seconds:,.1f} docs/s, {tokens / seconds:,.0f} tokens/s"


def _with_standard_input(paths: list[Path], name: str) -> Iterator[Source]:
    """The paths, and what comes on standard input in the place of `-`."""
    from m2rag.index import Document
    from m2rag.index.readers import decode_text, kind_of, parse_documents

    for path in paths:
        if str(path) != "-":
            yield path
        elif kind_of(name) is not None:
            yield from parse_documents(sys.stdin.buffer, name)
        else:
            yield Document(name, decode_text(sys.stdin.buffer.read(), "standard input"), title=name)


def show_report(report: AddReport, index: str, documents: int) -> None:
    """What was done, for people."""
    from m2rag.index import SyncReport

    parts = [f"{report.added:,} added", f"{report.replaced:,} replaced", f"{report.unchanged:,} unchanged"]
    if isinstance(report, SyncReport):
        parts.append(f"{len(report.deleted):,} deleted")
    if report.failed:
        parts.append(f"{len(report.failed):,} failed")
    say(f"{index}: {plural(documents, 'document')} ({', '.join(parts)})")
    new = report.added + report.replaced
    if new:
        say(
            f"Embedded {plural(report.n_tokens, 'token')} of {plural(new, 'document')} in {report.seconds:,.1f} s "
            f"({rates(new, report.n_tokens, report.seconds)})"
        )
    elif report.unchanged:
        say("Nothing was embedded: no document has changed.")
    if report.skipped:
        say(f"Passed over {plural(len(report.skipped), 'file')} of other kinds, such as {report.skipped[0]}")
    show_failures(report)
    if documents:
        say(f'Search it: m2rag search "your question" --index {shlex.quote(index)}')


def show_failures(report: AddReport) -> None:
    """The first failures, on standard error."""
    for failure in report.failed[:_LISTED]:
        note(f"Failed: {failure.id}: {failure.cause}", style="red")
    if len(report.failed) > _LISTED:
        note(f"... and {len(report.failed) - _LISTED:,} more; --json lists all", style="red")
