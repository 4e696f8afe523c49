"""Raw query-document pairs -> pairs to train on, and a task to measure on.

    python split_pairs.py documents.jsonl pairs.jsonl --out data [--hold-out 0.2] [--seed 0]

documents.jsonl holds {"_id", "title"?, "text"} and pairs.jsonl {"query", "document_id"}, one object a line (.zst too).
All queries of the documents held out go to the task data/validation, and none of them to data/pairs.jsonl; its corpus
has every document, so the right one must be found among those that were trained on.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from m2rag_train.sources import read_jsonl


def split(documents: Path, pairs: Path, out: Path, *, hold_out: float, seed: int) -> tuple[int, int]:
    """Write `out`; the number of pairs to train on and of queries to measure on.

    Raises:
        ValueError: a pair names a document that is not there, or nothing would be left on one side.
    """
    corpus = list(read_jsonl(documents))
    rows = list(read_jsonl(pairs))
    ids = {row["_id"] for row in corpus}
    for row in rows:
        if row["document_id"] not in ids:
            raise ValueError(f"{pairs}: document_id {row['document_id']!r} is not in {documents}")
    asked = sorted({row["document_id"] for row in rows})
    held_out = set(random.Random(seed).sample(asked, round(hold_out * len(asked))))
    # A query that is asked of a document on each side would be known from training.
    measured = [row for row in rows if row["document_id"] in held_out]
    known = {row["query"] for row in measured}
    trained = [row for row in rows if row["document_id"] not in held_out and row["query"] not in known]
    if not trained or not measured:
        raise ValueError(f"{len(trained)} pairs to train on, {len(measured)} to measure on: change --hold-out")
    task = out / "validation"
    task.mkdir(parents=True, exist_ok=True)
    _write(out / "documents.jsonl", corpus)
    _write(out / "pairs.jsonl", trained)
    _write(task / "corpus.jsonl", corpus)
    queries = {query: f"q{number}" for number, query in enumerate(sorted(known))}
    _write(task / "queries.jsonl", ({"_id": number, "text": query} for query, number in queries.items()))
    judged = sorted({(queries[row["query"]], row["document_id"]) for row in measured})
    lines = ["query-id\tcorpus-id\tscore", *(f"{query}\t{document}\t1" for query, document in judged)]
    (task / "qrels.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(trained), len(queries)


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hold-out", type=float, default=0.2, help="part of the documents; default 0.2")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    trained, measured = split(args.documents, args.pairs, args.out, hold_out=args.hold_out, seed=args.seed)
    print(f"{trained:,} pairs to train on, {measured:,} queries to measure on: {args.out}")


if __name__ == "__main__":
    main()
