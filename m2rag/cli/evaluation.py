"""`m2rag eval`: retrieval quality on tasks by name or from folders, with baselines in the same table."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from m2rag.cli.common import AS_JSON, DEVICE, DTYPE, MODEL, VERBOSE, Dtype, load_embedder, note, say_json, stdout
from m2rag.errors import M2RagError

if TYPE_CHECKING:
    from m2rag.evaluation import Ranker, TaskReport

_LENGTHS = "256,512,1024,2048,4096,8192,16384,32768"


def evaluate(
    tasks: Annotated[
        list[str],
        typer.Argument(
            metavar="TASK...",
            help="loco-v1, loco-v1/qmsum, loco-v0, needle, passkey, or a folder with corpus.jsonl, queries.jsonl and "
            "qrels.tsv (.zst too).",
        ),
    ],
    model: MODEL = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            "--base-url",
            metavar="URL",
            help="The model is remote, behind this OpenAI-style API (or: together, openai); its key is in the "
            "environment.",
            show_default=False,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, help="Longest input of the model, in tokens.", show_default=False),
    ] = None,
    bm25: Annotated[bool, typer.Option("--bm25/--no-bm25", help="Measure BM25 beside the model.")] = True,
    hybrid: Annotated[
        bool, typer.Option("--hybrid", help="Also BM25 and the model together, by their scores.")
    ] = False,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            "-b",
            metavar="[NAME=]MODEL[:MODE]",
            help="Another model beside it, ours or any of sentence-transformers, whole or in chunks: truncated, "
            "chunk-mean, chunk-max. May be repeated.",
        ),
    ] = None,
    chunk_tokens: Annotated[
        int | None,
        typer.Option(
            "--chunk-tokens", min=8, help="Tokens per chunk; default: as many as it takes.", show_default=False
        ),
    ] = None,
    lengths: Annotated[str, typer.Option("--lengths", help="Tokens per document in needle and passkey.")] = _LENGTHS,
    split: Annotated[
        str | None, typer.Option("--split", help="Of task folders: read qrels/SPLIT.tsv.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Folder with copies of LoCo's data sets (DIR/hazyresearch/LoCoV1-Queries, ...), instead of the hub.",
            envvar="M2RAG_DATASETS",
            exists=True,
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Also write results: .json (with every query's figures) or .md. May be repeated.",
            dir_okay=False,
        ),
    ] = None,
    device: DEVICE = None,
    dtype: DTYPE = Dtype.AUTO,
    as_json: AS_JSON = False,
    verbose: VERBOSE = False,
) -> None:
    """Measure how well the right documents are found: NDCG@10 with its 95 % interval, recall, accuracy, MRR.

    Tables show figures times 100. JSON holds them from 0 to 1, with date, versions, fingerprints and settings: {date,
    versions, systems: {name: settings}, tasks: [{task, n_documents, n_queries, length, systems: [{system, metrics:
    {name: value}, ndcg_interval: [low, high], seconds}]}]}.
    """
    from m2rag.evaluation import BM25Ranker, DenseRanker, FusionRanker, evaluate_tasks, find_tasks
    from m2rag.evaluation import as_json as plain
    from m2rag.evaluation.baselines import Baselines

    for path in out or []:
        if not path.parent.is_dir():
            raise typer.BadParameter(f"the folder {path.parent} does not exist", param_hint="--out")
        if path.suffix not in (".json", ".md"):
            raise typer.BadParameter(f"{path.name} ends neither in .json nor in .md", param_hint="--out")
    if base_url is not None and model is None:
        raise typer.BadParameter("say with --model what the provider calls its model", param_hint="--base-url")
    found = find_tasks(tasks, split=split, lengths=_numbers(lengths), data=data)
    show = sys.stderr.isatty()
    embedder = load_embedder(model, device=device, dtype=dtype, base_url=base_url, max_tokens=max_tokens)
    dense = DenseRanker(embedder, name=embedder.model_name, show_progress=show, settings=embedder.info())
    rankers: list[Ranker] = [BM25Ranker()] if bm25 else []
    others = Baselines(
        lambda name: load_embedder(name, device=device, dtype=dtype),
        device=device,
        chunk_tokens=chunk_tokens,
        show_progress=show,
    )
    try:
        rankers += [others.ranker(given) for given in baseline or []]
    except M2RagError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--baseline") from error
    rankers.append(dense)
    if hybrid:
        rankers.append(FusionRanker(BM25Ranker(), dense))
    twice = [name for name, count in Counter(ranker.name for ranker in rankers).items() if count > 1]
    if twice:
        raise typer.BadParameter(f"two systems would be called {twice[0]}", param_hint="--baseline")
    reports = evaluate_tasks(found, rankers, _progress)
    for path in out or []:
        _write(path, reports, rankers)
    if as_json:
        say_json(plain(reports, rankers))
    else:
        _show(reports)


def _numbers(lengths: str) -> list[int]:
    try:
        return [int(length) for length in lengths.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{lengths!r} is no list of numbers like 512,8192", param_hint="--lengths") from error


def _progress(task: str, system: str, done: int, total: int) -> None:
    if system:
        note(f"[{done + 1}/{total}] {task}: {system}")


def _show(reports: list[TaskReport]) -> None:
    from rich.table import Table

    from m2rag.evaluation import length_table, table

    for header, rows in (table([r for r in reports if r.length is None]), length_table(reports)):
        if not rows:
            continue
        shown = Table()
        for name in header:
            shown.add_column(name, justify="left" if name in ("task", "metric", "system") else "right")
        for row in rows:
            shown.add_row(*row)
        stdout.print(shown)


def _write(out: Path, reports: list[TaskReport], rankers: list[Ranker]) -> None:
    from m2rag.evaluation import as_json, as_markdown

    if out.suffix == ".md":
        text = as_markdown(reports, rankers)
    else:
        text = json.dumps(as_json(reports, rankers, per_query=True), indent=2, ensure_ascii=False) + "\n"
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise M2RagError(f"{out} cannot be written: {error.strerror}") from error
