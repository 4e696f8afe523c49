"""Retrieval quality of `LongDocumentIndex.search` as it is used, ten hits a query: by meaning, by words, by both.

    python benchmarks/hybrid.py run TASK_DIR... [--model M] [--name NAME] [--work DIR]
    python benchmarks/hybrid.py table

`run` indexes each corpus in a folder of its own under --work, so that a stopped run goes on where it was, measures the
index's modes beside BM25 of another library on the full text, and writes benchmarks/results/hybrid.json and .md.
`table` writes the latter again.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import RESULTS, cpu_name

from m2rag import M2Embedder
from m2rag.evaluation import BM25Ranker, Ranker, Task, bootstrap_interval, evaluate, load_task
from m2rag.index import AddProgress, Document, Embedder, LongDocumentIndex
from m2rag.index.modes import RESCORE, WEIGHTS
from m2rag.results import EmbeddingResult

PACKAGES = ("m2rag", "torch", "qdrant-edge-py", "bm25s", "PyStemmer", "numpy", "pytrec_eval-terrier")
DEVELOPMENT = "qmsum_val_"  # tasks whose figures guided choices: shown, not averaged
HITS = 10
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "lexical": ("index, words", {"mode": "lexical"}),
    "dense": ("index, meaning", {"mode": "dense"}),
    "dense-rescored": ("index, meaning and best passage", {"mode": "dense", "rescore": RESCORE}),
    "hybrid": ("index, hybrid (default)", {}),
}
"""Result key -> what tables call it, and the arguments of `search`."""


class Remembering:
    """An embedder that embeds a query once: searches can be timed without it."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._queries: dict[str, np.ndarray] = {}
        self.fingerprint, self.dimension = embedder.fingerprint, embedder.dimension

    def embed_documents(self, texts: Sequence[str], **options: Any) -> EmbeddingResult:
        return self._embedder.embed_documents(texts, **options)

    def embed_query(self, text: str) -> np.ndarray:
        if text not in self._queries:
            self._queries[text] = self._embedder.embed_query(text)
        return self._queries[text]


class IndexRanker:
    """`search` of an index with some arguments; `rank` gives `HITS` documents at most, as `k` changes what is found.

    Attributes:
        seconds: of each search, without the query's embedding.
    """

    def __init__(self, index: LongDocumentIndex, embedder: Remembering, name: str, options: Mapping[str, Any]) -> None:
        self.name = name
        self.settings = dict(options)
        self.seconds: list[float] = []
        self._index = index
        self._embedder = embedder

    def rank(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int) -> dict[str, dict[str, float]]:
        run = {}
        for id, text in queries.items():
            self._embedder.embed_query(text)
            start = time.perf_counter()
            hits = self._index.search(text, min(k, HITS), **self.settings)
            self.seconds.append(time.perf_counter() - start)
            run[id] = {hit.id: hit.score for hit in hits}
        return run


def folder_of(task: Task, embedder: Embedder) -> str:
    """Name of the index of a task's corpus; tasks over one corpus share it."""
    digest = hashlib.sha256(embedder.fingerprint.encode())
    for id, text in task.corpus.items():
        digest.update(json.dumps([id, text]).encode())
    return digest.hexdigest()[:16]


def progress_line(state: AddProgress) -> None:
    rate = state.tokens / max(state.seconds, 1e-9)
    print(f"\r  {state.done} of {state.total} documents, {rate:,.0f} tokens/s ", end="", file=sys.stderr, flush=True)


def measure(task: Task, embedder: Remembering, work: Path) -> dict[str, Any]:
    """Every system on one task, and how much hybrid search is better than the others."""
    with LongDocumentIndex(work / folder_of(task, embedder), embedder) as index:
        documents = [Document(id, text) for id, text in task.corpus.items() if text]
        report = index.add(documents, progress=progress_line)
        if report.failed:
            raise SystemExit(f"{task.name}: {report.failed[0].id} was not indexed: {report.failed[0].cause}")
        searches = {key: IndexRanker(index, embedder, name, options) for key, (name, options) in SYSTEMS.items()}
        rankers: dict[str, Ranker] = {"bm25": BM25Ranker(), **searches}
        found = evaluate(task, list(rankers.values()))
    systems: dict[str, dict[str, Any]] = {}
    ndcg: dict[str, np.ndarray] = {}
    for key, system in zip(rankers, found.systems, strict=True):
        ndcg[key] = np.array([values["ndcg@10"] for values in system.per_query.values()])
        systems[key] = {"metrics": system.metrics, "ndcg_interval": list(system.ndcg_interval)}
        if key in searches:
            systems[key]["search_ms"] = 1000 * median(searches[key].seconds)
    better = {
        key: {"ndcg@10": float((ndcg["hybrid"] - ndcg[key]).mean()), "interval": list(bootstrap_interval(difference))}
        for key in ("bm25", "lexical", "dense")
        for difference in (ndcg["hybrid"] - ndcg[key],)
    }
    sizes = {"n_documents": found.n_documents, "n_queries": found.n_queries}
    return {"task": task.name, **sizes, "systems": systems, "hybrid_minus": better}


def run(args: argparse.Namespace) -> None:
    embedder = Remembering(M2Embedder(args.model, dtype=args.dtype))
    content: dict[str, Any] = {
        "model": args.name,
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores {cpu_name()}",
        "note": args.note,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": {
            "fingerprint": embedder.fingerprint,
            "dtype": args.dtype,
            "hits": HITS,
            "weights": list(WEIGHTS),
            "rescore": RESCORE,
            "bm25": BM25Ranker().settings,
        },
        "tasks": [],
    }
    for task in [load_task(path) for path in args.tasks]:
        print(f"{task.name}", file=sys.stderr)
        content["tasks"].append(measure(task, embedder, args.work))
    args.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    write_table(args.out)


def write_table(out: Path) -> None:
    """The Markdown beside a JSON file of figures."""
    out.with_suffix(".md").write_text(markdown(json.loads(out.with_suffix(".json").read_text())))


def markdown(content: Mapping[str, Any]) -> str:
    """A table of NDCG@10 x 100, one row per task, one column per system."""
    names = {"bm25": "BM25 (bm25s)", **{key: name for key, (name, _) in SYSTEMS.items()}}
    weights = " and ".join(f"{weight:g}" for weight in content["settings"]["weights"])
    lines = [
        f"NDCG@10 x 100 of {content['model']} on whole documents, ten hits a query; hybrid: meaning and words weigh "
        f"{weights}, rescore {content['settings']['rescore']:g}. In the last columns hybrid search less another, with "
        "the 95 % bootstrap interval of the difference over the queries.",
        "",
        "| task | docs | queries | " + " | ".join(names.values()) + " | hybrid - BM25 | hybrid - meaning |",
        "|---" * (5 + len(names)) + "|",
    ]
    for entry in content["tasks"]:
        cells = [f"{100 * entry['systems'][key]['metrics']['ndcg@10']:.1f}" for key in names]
        for key in ("bm25", "dense"):
            less = entry["hybrid_minus"][key]
            low, high = less["interval"]
            cells.append(f"{100 * less['ndcg@10']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})")
        sizes = f"{entry['n_documents']} | {entry['n_queries']}"
        lines.append(f"| {entry['task']} | {sizes} | " + " | ".join(cells) + " |")
    test = [entry for entry in content["tasks"] if not entry["task"].startswith(DEVELOPMENT)]
    if test:
        means = {
            key: 100 * sum(entry["systems"][key]["metrics"]["ndcg@10"] for entry in test) / len(test) for key in names
        }
        cells = [f"**{mean:.1f}**" for mean in means.values()]
        cells += [f"**{means['hybrid'] - means[key]:+.1f}**" for key in ("bm25", "dense")]
        left_out = f" ({DEVELOPMENT}* left out)" if len(test) < len(content["tasks"]) else ""
        lines.append(f"| **mean of {len(test)}**{left_out} | | | " + " | ".join(cells) + " |")
    times = [
        f"{names[key]} {median(entry['systems'][key]['search_ms'] for entry in content['tasks']):.1f} ms"
        for key in SYSTEMS
    ]
    lines += [
        "",
        f"Median time of a search with three passages a hit, without the query's embedding: {', '.join(times)} "
        f"({content['machine']}, one core used).",
        *([content["note"]] if content.get("note") else []),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run")
    runner.add_argument("tasks", nargs="+", type=Path, metavar="TASK_DIR")
    runner.add_argument("--model", help="checkpoint; default: the bundled one")
    runner.add_argument("--name", default="m2rag-mini", help="what tables call it")
    runner.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the matrix products")
    runner.add_argument(
        "--work",
        type=Path,
        default=Path(os.environ.get("M2RAG_CACHE", Path.home() / ".cache" / "m2rag")) / "hybrid",
        help="folder for the indexes; default: hybrid in $M2RAG_CACHE or ~/.cache/m2rag",
    )
    runner.add_argument("--note", help="what else to know of this run, shown below the table")
    runner.add_argument("--out", type=Path, default=RESULTS / "hybrid", help="result files, without their endings")
    runner.set_defaults(call=run)
    tabler = commands.add_parser("table")
    tabler.add_argument("--out", type=Path, default=RESULTS / "hybrid")
    tabler.set_defaults(call=lambda args: write_table(args.out))
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
