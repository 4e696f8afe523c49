"""`m2rag eval`: retrieval quality on task folders, with BM25 in the same table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2rag.cli.common import AS_JSON, DEVICE, DTYPE, MODEL, VERBOSE, Dtype, load_embedder, note, say_json, stdout
from m2rag.errors import M2RagError

if TYPE_CHECKING:
    from m2rag.evaluation import Ranker, TaskReport


def evaluate(
    tasks: Annotated[
        list[Path],
        typer.Argument(
            metavar="TASK_DIR...", help="Folders with corpus.jsonl, queries.jsonl and qrels.tsv (.zst too)."
        ),
    ],
    model: MODEL = None,
    bm25: Annotated[bool, typer.Option("--bm25/--no-bm25", help="Measure BM25 beside the model.")] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="Also write JSON, with every query's figures.", dir_okay=False
        ),
    ] = None,
    device: DEVICE = None,
    dtype: DTYPE = Dtype.AUTO,
    as_json: AS_JSON = False,
    verbose: VERBOSE = False,
) -> None:
    """Measure how well the right documents are found: NDCG@10 with its 95 % interval, recall, accuracy, MRR.

    The table shows figures times 100; JSON holds them from 0 to 1: [{task, n_documents, n_queries, systems: [{system,
    metrics: {name: value}, ndcg_interval: [low, high], seconds}]}].
    """
    from m2rag.evaluation import BM25Ranker, DenseRanker, evaluate_tasks

    if out is not None and not out.parent.is_dir():
        raise typer.BadParameter(f"the folder {out.parent} does not exist", param_hint="--out")
    embedder = load_embedder(model, device=device, dtype=dtype)
    rankers: list[Ranker] = [BM25Ranker()] if bm25 else []
    rankers.append(DenseRanker(embedder, name=embedder.model_name, show_progress=sys.stderr.isatty()))
    reports = evaluate_tasks(tasks, rankers, _progress)
    if out is not None:
        _write(out, reports)
    if as_json:
        say_json([report.to_dict() for report in reports])
    else:
        _show(reports)


def _progress(task: str, system: str, done: int, total: int) -> None:
    if system:
        note(f"[{done + 1}/{total}] {task}: {system}")


def _show(reports: list[TaskReport]) -> None:
    from rich.table import Table

    from m2rag.evaluation import table

    header, rows = table(reports)
    shown = Table()
    for name in header:
        shown.add_column(name, justify="left" if name in ("task", "system") else "right")
    for row in rows:
        shown.add_row(*row)
    stdout.print(shown)


def _write(out: Path, reports: list[TaskReport]) -> None:
    text = json.dumps([report.to_dict(per_query=True) for report in reports], indent=2, ensure_ascii=False)
    try:
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise M2RagError(f"{out} cannot be written: {error.strerror}") from error
