"""`m2rag sync`: an index that holds what a folder holds."""

from __future__ import annotations

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
)
from m2rag.cli.failures import REPORT, failure_report
from m2rag.cli.index import ON_TOO_LONG, index_progress, report_as_json, show_failures, show_report

if TYPE_CHECKING:
    from m2rag.index import LongDocumentIndex, SyncReport

_LISTED = 20  # ids shown; --json has all


def sync(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder.", parser=path_given, show_default=False)
    ],
    index: INDEX,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on, and sync again whenever files change, until Ctrl-C.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False,
    allow_empty: Annotated[
        bool,
        typer.Option("--allow-empty", help="If the folder is missing or empty, delete what came from it."),
    ] = False,
    report: REPORT = None,
    api_key: API_KEY = None,
    model: MODEL = None,
    language: LANGUAGE = "english",
    lexical: LEXICAL = True,
    quantization: QUANTIZATION = Quantized.NONE,
    filterable: FILTERABLE = None,
    on_too_long: ON_TOO_LONG = TooLong.WINDOW,
    device: DEVICE = None,
    dtype: DTYPE = Dtype.AUTO,
    as_json: AS_JSON = False,
    verbose: VERBOSE = False,
) -> None:
    """Make an index hold what a folder holds: what index does, and documents whose files are gone are deleted.

    Only documents that were indexed from this folder are deleted, and none whose file is there and cannot be read. A
    folder that is missing or empty is an error: a disk that is not mounted looks the same. Exit codes as of index;
    Ctrl-C ends --watch with 0.

    JSON: {index, documents, added, replaced, unchanged, deleted: [id], failed: [{id, error, message, path}],
    skipped: [path], n_tokens, seconds, dry_run, to_add: [id], to_replace: [id]}, one on a line for each sync
    of --watch.
    """
    if watch and dry_run:
        raise typer.BadParameter("--watch and --dry-run do not go together")
    if report is not None and folder.resolve() in report.resolve().parents:
        raise typer.BadParameter(f"{report} would be a file of the folder itself", param_hint="--report")
    from m2rag.index.sync import FolderSync

    FolderSync(folder, allow_empty=allow_empty)  # told before a model is loaded or an index made
    settings: dict[str, Any] = {"allow_empty": allow_empty, "on_too_long": on_too_long.value}
    new = new_index_options(language if lexical else None, quantization, filterable)
    with open_index(index, model, device=device, dtype=dtype, create=not dry_run, api_key=api_key, **new) as opened:
        if not dry_run:
            for field, kind in new["filterable"].items():
                opened.make_filterable(field, kind)  # of an index that is there, too
        try:
            if watch:
                with failure_report(report) as told:
                    _watch(opened, folder, as_json, progress=told, **settings)
                return
            with index_progress() as show, failure_report(report, show) as told:
                done = opened.sync(folder, dry_run=dry_run, progress=told, **settings)
        except KeyboardInterrupt as interrupt:
            note(f"Stopped. {plural(len(opened), 'document')} safe in {opened.location}: run the same command again.")
            raise typer.Exit(INTERRUPTED) from interrupt
        _tell(done, opened, as_json, indent=2)
    if done.failed:
        raise typer.Exit(SOME_FAILED)


def _watch(index: LongDocumentIndex, folder: Path, as_json: bool, **settings: Any) -> None:
    from m2rag.index.watching import watch

    synced = False
    try:
        for report in watch(index, folder, **settings):
            _tell(report, index, as_json, indent=None)
            if not synced:
                note(f"Watching {folder}; Ctrl-C ends it.")
            synced = True
    except KeyboardInterrupt:
        if not synced:
            raise
        note(f"Stopped watching. {plural(len(index), 'document')} safe in {index.location}.")


def _tell(report: SyncReport, index: LongDocumentIndex, as_json: bool, *, indent: int | None) -> None:
    documents = len(index)
    if as_json:
        say_json({"index": index.location, "documents": documents, **report_as_json(report)}, indent=indent)
    elif report.dry_run:
        _show_plan(report)
    else:
        show_report(report, index.location, documents)


def _show_plan(report: SyncReport) -> None:
    say(
        f"Would add {report.added:,}, replace {report.replaced:,}, delete {len(report.deleted):,}; "
        f"{report.unchanged:,} unchanged."
    )
    for what, ids in (("add", report.to_add), ("replace", report.to_replace), ("delete", report.deleted)):
        for id in ids[:_LISTED]:
            say(f"{what} {id}")
        if len(ids) > _LISTED:
            say(f"... and {len(ids) - _LISTED:,} more to {what}; --json lists all")
    show_failures(report)
