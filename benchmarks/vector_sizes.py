"""What shorter and smaller vectors cost: NDCG@10 by dimensions and precision, each corpus embedded once.

    python benchmarks/vector_sizes.py TASK_DIR... [--model M] [--name NAME]

Writes benchmarks/results/vector-sizes.json and .md. Shorter vectors are the first numbers of the full one, at length 1
again, as `M2Embedder(dimensions=)` gives them; int8 is each number times 127, rounded, as `precision="int8"` does.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, environment

from m2rag import M2Embedder
from m2rag.evaluation import DenseRanker, load_task, mean_metrics, score_run
from m2rag.evaluation.rankers import Scores, best

DEVELOPMENT = "qmsum_val_"  # shown, not averaged
DEPTH = 100


class SizedRanker(DenseRanker):
    """A dense ranker whose vectors are cut and rounded before they are compared."""

    sizes = 0, False

    def rank(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int) -> Scores:
        dimensions, as_int8 = self.sizes
        ids = [document for document, text in corpus.items() if text]
        documents = resized(self._document_vectors([corpus[id] for id in ids]), dimensions, as_int8)
        asked = self._embedder.embed_queries(list(queries.values()), on_too_long="window").vectors
        return {
            query: best(documents @ vector, ids, k)
            for query, vector in zip(queries, resized(asked, dimensions, as_int8), strict=True)
        }


def resized(vectors: np.ndarray, dimensions: int, as_int8: bool) -> np.ndarray:
    """(N, D) -> (N, dimensions), of length 1, or int8's values as float32."""
    cut = vectors[:, :dimensions]
    cut = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    return np.rint(cut * 127) if as_int8 else cut


def table(content: Mapping[str, Any]) -> str:
    """Markdown: a row for each task, a column for each size."""
    sizes = content["sizes"]
    lines = ["| task | " + " | ".join(sizes) + " |", "|---|" + "---|" * len(sizes)]
    lines += [
        f"| {name} | " + " | ".join(f"{100 * figures[size]:.1f}" for size in sizes) + " |"
        for name, figures in content["tasks"].items()
    ]
    mean = content["mean"]
    n = sum(not name.startswith(DEVELOPMENT) for name in content["tasks"])
    lines.append(f"| **mean of {n}** | " + " | ".join(f"**{100 * mean[size]:.1f}**" for size in sizes) + " |")
    lines.append(
        "| of the full vector's | " + " | ".join(f"{100 * mean[s] / mean[sizes[0]]:.1f} %" for s in sizes) + " |"
    )
    return (
        f"NDCG@10 x 100 of {content['model']} on whole documents, by dimensions of the vectors (float32 unless said)."
        "\n\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", type=Path, metavar="TASK_DIR")
    parser.add_argument("--model", help="checkpoint; default: the bundled one")
    parser.add_argument("--name", default="m2rag-mini", help="what the table calls it")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the matrix products")
    parser.add_argument("--dimensions", nargs="+", type=int, default=[256, 128, 64], help="besides the full vectors'")
    args = parser.parse_args()
    embedder = M2Embedder(args.model, dtype=args.dtype)
    full = embedder.dimension
    kinds = {str(full): (full, False), f"{full}, int8": (full, True)}
    for dimensions in args.dimensions:
        kinds |= {str(dimensions): (dimensions, False), f"{dimensions}, int8": (dimensions, True)}
    ranker = SizedRanker(embedder, name=args.name)
    tasks: dict[str, dict[str, float]] = {}
    for task in map(load_task, args.tasks):
        tasks[task.name] = {}
        for kind, ranker.sizes in kinds.items():
            run = ranker.rank(task.corpus, task.queries, DEPTH)
            tasks[task.name][kind] = mean_metrics(score_run(task.qrels, run))["ndcg@10"]
        print(task.name, {kind: round(100 * value, 1) for kind, value in tasks[task.name].items()}, flush=True)
    tests = [figures for name, figures in tasks.items() if not name.startswith(DEVELOPMENT)]
    content = {
        "model": args.name,
        "date": datetime.date.today().isoformat(),
        "fingerprint": embedder.fingerprint,
        "environment": environment("cpu"),
        "sizes": list(kinds),
        "tasks": tasks,
        "mean": {kind: float(np.mean([figures[kind] for figures in tests])) for kind in kinds},
    }
    (RESULTS / "vector-sizes.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "vector-sizes.md").write_text(table(content), encoding="utf-8")
    print(table(content))


if __name__ == "__main__":
    main()
