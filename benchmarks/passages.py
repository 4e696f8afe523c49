"""How often the passage shown of the right document is the one that answers: 30 questions with a known answer.

    python benchmarks/passages.py run [--model M] [--name NAME] [--work DIR]
    python benchmarks/passages.py table

The questions are benchmarks/data/passage_questions.jsonl, the documents the demo's, 5,000 to 20,000 tokens long. `run`
indexes the documents in a folder under --work, so that a stopped run goes on where it was, asks each question of its
document alone, in each of the index's modes, and asks all-MiniLM-L6-v2 for its order of the same passages. A passage
is right if it contains all of the answer. It writes benchmarks/results/passages.json and .md, `table` the latter again.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import RESULTS, cpu_name

from m2rag import M2Embedder
from m2rag.demo import load_documents
from m2rag.evaluation import bootstrap_interval
from m2rag.index import AddProgress, Document, Embedder, LongDocumentIndex
from m2rag.index.hits import WEIGHT_OF_WORDS

PACKAGES = ("m2rag", "torch", "transformers", "qdrant-edge-py", "numpy")
QUESTIONS = Path(__file__).resolve().parent / "data" / "passage_questions.jsonl"
SHOWN = 3
MORE = 5
ALL = 10_000  # passages: more than a document has
SYSTEMS = {
    "hybrid": "index, hybrid (default)",
    "dense": "index, meaning",
    "lexical": "index, words (BM25)",
    "minilm": "MiniLM",
}
"""Result key -> what tables call it."""

Order = Callable[["Question", Document, Sequence[tuple[int, int]]], Sequence[tuple[int, int]]]


@dataclass(frozen=True)
class Question:
    """A question; `answer` is a part of the document's text that occurs once in it."""

    document: str
    text: str
    answer: str


def load_questions(path: Path = QUESTIONS) -> list[Question]:
    """The questions of a file, in its order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Question(row["document"], row["question"], row["answer"]) for row in rows]


def place(question: Question, document: Document, ordered: Sequence[tuple[int, int]]) -> int | None:
    """Place, from 0, of the first passage (its characters) that contains the answer; None if the answer was cut."""
    start = document.text.index(question.answer)
    end = start + len(question.answer)
    return next((i for i, (first, last) in enumerate(ordered) if first <= start and end <= last), None)


def measure(
    questions: Sequence[Question], embedder: Embedder, folder: Path, documents: Sequence[Document], *others: Order
) -> tuple[list[dict[str, Any]], list[float]]:
    """Where each mode, and each of the others, has the passage that answers, per question; seconds of each search.

    Args:
        others: put the passages of a document, given in the order of the text, in an order of their own.
    """
    wanted = {question.document for question in questions}
    by_id = {document.id: document for document in documents if document.id in wanted}
    found: list[dict[str, Any]] = []
    seconds: list[float] = []
    with LongDocumentIndex(folder, embedder) as index:
        index.add(list(by_id.values()), progress=progress_line)
        for question in questions:
            document = by_id[question.document]
            places: dict[str, int | None] = {}
            for mode in index.modes:
                start = time.perf_counter()
                hits = index.search(question.text, 1, mode=mode, filter=document.metadata, n_passages=ALL)
                seconds.append(time.perf_counter() - start)
                spans = [(passage.start, passage.end) for hit in hits for passage in hit.passages]
                places[mode] = place(question, document, spans)
            in_text = sorted(spans)
            more = [place(question, document, order(question, document, in_text)) for order in others]
            found.append({"document": question.document, "passages": len(spans), "places": places, "others": more})
    return found, seconds


def progress_line(state: AddProgress) -> None:
    rate = state.tokens / max(state.seconds, 1e-9)
    print(f"\r  {state.done} of {state.total} documents, {rate:,.0f} tokens/s ", end="", file=sys.stderr, flush=True)


def share(places: Sequence[int | None], among: int = 1) -> float:
    """How often the passage that answers is among the first, 0 to 1."""
    return sum(found is not None and found < among for found in places) / len(places)


def by_minilm(cache: Path) -> Order:
    """The order of passages by MiniLM; one longer than MiniLM reads has the mean of its pieces' vectors."""
    from minilm import MiniLM

    model = MiniLM(cache)

    def order(question: Question, document: Document, spans: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
        [[query]] = model.embed(model.chunks([question.text], only_first=True))
        pieces = model.embed(model.chunks([document.text[start:end] for start, end in spans]))
        vectors = np.stack([vectors.mean(axis=0) for vectors in pieces])
        scores = vectors @ query / np.linalg.norm(vectors, axis=1)
        return [spans[i] for i in np.argsort(-scores, kind="stable")]

    return order


def run(args: argparse.Namespace) -> None:
    embedder = M2Embedder(args.model, dtype=args.dtype)
    folder = args.work / embedder.fingerprint.partition("weights=")[2].partition(" ")[0].replace(":", "-")
    args.work.mkdir(parents=True, exist_ok=True)
    minilm = by_minilm(args.work / "minilm-bfloat16.bin")
    found, seconds = measure(load_questions(), embedder, folder, load_documents(), minilm)
    for entry in found:
        [entry["places"]["minilm"]] = entry.pop("others")
    systems = {}
    for key in SYSTEMS:
        places = [entry["places"][key] for entry in found]
        first = np.array([place == 0 for place in places], dtype=float)
        systems[key] = {
            "first": share(places),
            "first_interval": list(bootstrap_interval(first)),
            "shown": share(places, SHOWN),
            "more": share(places, MORE),
            "mean_reciprocal_rank": float(np.mean([0 if place is None else 1 / (1 + place) for place in places])),
        }
    content = {
        "model": args.name,
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores {cpu_name()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": {
            "fingerprint": embedder.fingerprint,
            "dtype": args.dtype,
            "weight_of_words": WEIGHT_OF_WORDS,
            "shown": SHOWN,
            "more": MORE,
        },
        "systems": systems,
        "search_ms": 1000 * median(seconds),
        "questions": found,
    }
    args.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    write_table(args.out)


def write_table(out: Path) -> None:
    """The Markdown beside a JSON file of figures."""
    out.with_suffix(".md").write_text(markdown(json.loads(out.with_suffix(".json").read_text())))


def markdown(content: Mapping[str, Any]) -> str:
    """A table, one row per system."""
    questions, settings = content["questions"], content["settings"]
    shown, more = settings["shown"], settings["more"]
    passages = [entry["passages"] for entry in questions]
    cut = sum(entry["places"]["dense"] is None for entry in questions)
    lines = [
        f"{len(questions)} questions, each asked of the one document that answers it; {min(passages)} to "
        f"{max(passages)} passages a document, {median(passages):g} in the median. The passage that contains all of "
        f"the answer is the first shown, or among the {shown} that are shown by default "
        f"({share_of(shown, passages)} of a document in the median) or {more} ({share_of(more, passages)}), in % of "
        f"the questions, with {content['model']}; {cut} answers are cut by a passage's end.",
        "",
        f"| passages chosen by | first (95 % interval) | among {shown} | among {more} | mean reciprocal rank |",
        "|---|---|---|---|---|",
    ]
    for key, name in SYSTEMS.items():
        system = content["systems"][key]
        low, high = system["first_interval"]
        lines.append(
            f"| {name} | {100 * system['first']:.0f} ({100 * low:.0f} to {100 * high:.0f}) "
            f"| {100 * system['shown']:.0f} | {100 * system['more']:.0f} | {system['mean_reciprocal_rank']:.2f} |"
        )
    lines += ["", f"Hybrid: words, related ones counted in, weigh {settings['weight_of_words']:g}, meaning 1."]
    return "\n".join(lines) + "\n"


def share_of(shown: int, passages: Sequence[int]) -> str:
    """How much of a document this many passages are, in the median of the documents."""
    return f"{100 * median(shown / number for number in passages):.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run")
    runner.add_argument("--model", help="checkpoint; default: the bundled one")
    runner.add_argument("--name", default="m2rag-mini", help="what the table calls it")
    runner.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"], help="of the matrix products")
    runner.add_argument(
        "--work",
        type=Path,
        default=Path(os.environ.get("M2RAG_CACHE", Path.home() / ".cache" / "m2rag")) / "passages",
        help="folder for the index and MiniLM's vectors; default: passages in $M2RAG_CACHE or ~/.cache/m2rag",
    )
    runner.add_argument("--out", type=Path, default=RESULTS / "passages", help="result files, without their endings")
    runner.set_defaults(call=run)
    tabler = commands.add_parser("table")
    tabler.add_argument("--out", type=Path, default=RESULTS / "passages")
    tabler.set_defaults(call=lambda args: write_table(args.out))
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
