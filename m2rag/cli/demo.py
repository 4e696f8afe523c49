"""`m2rag demo`: forty long documents that ship with the package, and questions about them."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from m2rag import __version__
from m2rag.cli.common import (
    AS_JSON,
    DEVICE,
    DTYPE,
    MODEL,
    VERBOSE,
    Dtype,
    hit_as_json,
    load_embedder,
    note,
    open_index,
    plural,
    say,
    say_json,
)
from m2rag.cli.index import index_progress, rates, report_as_json
from m2rag.cli.search import show_hit

if TYPE_CHECKING:
    from m2rag.index import AddReport, Hit, LongDocumentIndex

_HITS = 3


def demo(
    query: Annotated[
        str | None, typer.Option("--query", "-q", help="Ask this instead of the questions that come along.")
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(
            "--index", "-i", metavar="DIR", help="Where to keep the index. Default: the user's cache.", file_okay=False
        ),
    ] = None,
    model: MODEL = None,
    device: DEVICE = None,
    dtype: DTYPE = Dtype.AUTO,
    as_json: AS_JSON = False,
    verbose: VERBOSE = False,
) -> None:
    """Index 40 Python Enhancement Proposals, whole, and ask them questions. The second time the index is there.

    JSON: {index, indexing: {added, replaced, unchanged, failed, skipped, n_tokens, seconds}, questions:
    [{question, expected, found_first, seconds, hits}]}; hits as in `m2rag search`; expected is null with --query.
    """
    from m2rag.demo import QUESTIONS, load_documents

    questions: list[tuple[str, str | None]] = [(query, None)] if query else [*QUESTIONS]
    with _open(index, model, device, dtype) as opened:
        with index_progress() as show:
            report = opened.add(load_documents(), progress=show)
        where = opened.info()["path"]
        if not as_json:
            _show_indexing(report, where)
        answers = [_ask(opened, question, expected) for question, expected in questions]
    if as_json:
        say_json({"index": where, "indexing": report_as_json(report), "questions": [*map(_as_json, answers)]})
        return
    for answer in answers:
        _show_answer(answer)
    _show_summary(answers)


@dataclass(frozen=True)
class _Answer:
    question: str
    expected: str | None
    hits: list[Hit]
    seconds: float

    @property
    def found_first(self) -> bool | None:
        return None if self.expected is None else bool(self.hits) and self.hits[0].id == self.expected


@contextmanager
def _open(folder: Path | None, model: str | None, device: str | None, dtype: Dtype) -> Iterator[LongDocumentIndex]:
    """The index in the folder given, else in the user's cache, else in a temporary folder."""
    from m2rag.index import LongDocumentIndex

    if folder is not None:
        with open_index(folder, model, device=device, dtype=dtype, create=True) as opened:
            yield opened
        return
    embedder = load_embedder(model, device=device, dtype=dtype)
    cache = _cache_folder(embedder.fingerprint)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        writable = os.access(cache, os.W_OK)
    except OSError:
        writable = False
    if writable:
        with LongDocumentIndex(cache, embedder) as opened:
            yield opened
        return
    note(f"{cache} cannot be written: this index is temporary")
    with tempfile.TemporaryDirectory(prefix="m2rag-demo-") as temporary:
        with LongDocumentIndex(temporary, embedder) as opened:
            yield opened


def _cache_folder(fingerprint: str) -> Path:
    """One folder per model and version, so that a newer one never meets vectors or documents of an older one."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    else:
        base = os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base else Path.home() / ".cache"
    digest = hashlib.sha256(f"{__version__} {fingerprint}".encode()).hexdigest()[:12]
    return root / "m2rag" / f"demo-{digest}"


def _ask(opened: LongDocumentIndex, question: str, expected: str | None) -> _Answer:
    start = time.perf_counter()
    hits = opened.search(question, _HITS)
    return _Answer(question, expected, hits, time.perf_counter() - start)


def _as_json(answer: _Answer) -> dict[str, Any]:
    return {
        "question": answer.question,
        "expected": answer.expected,
        "found_first": answer.found_first,
        "seconds": round(answer.seconds, 4),
        "hits": [hit_as_json(hit) for hit in answer.hits],
    }


def _show_indexing(report: AddReport, where: str) -> None:
    new = report.added + report.replaced
    if new:
        speed = rates(new, report.n_tokens, report.seconds)
        say(f"Embedded {plural(new, 'document')}, {report.n_tokens:,} tokens, in {report.seconds:,.1f} s ({speed})")
    else:
        say(f"{plural(report.unchanged, 'document')} already in the index: nothing was embedded")
    say(f"Index: {where}", style="dim")


def _show_answer(answer: _Answer) -> None:
    say()
    say(Text(answer.question, style="bold cyan"))
    for rank, hit in enumerate(answer.hits, start=1):
        right = hit.id == answer.expected
        # The first hit is what one reads; the others are there to compare with.
        show_hit(rank, hit, answer.question, mark="  ✓ the right one" if right else "", width=320 if rank == 1 else 160)


def _show_summary(answers: list[_Answer]) -> None:
    say()
    judged = [answer for answer in answers if answer.expected is not None]
    mean = sum(answer.seconds for answer in answers) / len(answers)
    first = f"The right document came first for {sum(bool(a.found_first) for a in judged)} of {len(judged)} questions, "
    say(f"{first if judged else ''}{1000 * mean:,.0f} ms per question.")
    say("Ask your own:            m2rag demo -q 'your question'")
    say("Index your own folder:   m2rag index FOLDER --index my.m2rag")
    say("and search it:           m2rag search 'your question' --index my.m2rag")
