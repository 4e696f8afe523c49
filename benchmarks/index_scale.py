"""What the index costs besides embedding: memory and time of many short documents, overhead on long ones.

    python benchmarks/index_scale.py many --documents 50000     # real engine, vectors drawn at random
    python benchmarks/index_scale.py long                       # real model: share of the time that is not embedding

`many`: documents of 20 to 200 words come one by one from a generator. Their vectors are near one of 500 centres, as
topics have it. Memory is this process's, above what it held with the index open and empty. Searches are whole ones,
with passages, but for the query's vector, which costs nothing here.

`long`: the demo's documents, and the same joined to full length, are embedded by the bundled model and stored.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, Row, environment, significant

from m2rag import Document, LongDocumentIndex, M2Embedder
from m2rag.demo import load_documents
from m2rag.results import EmbeddingResult, PassageVectors

DIMENSION = 384
CENTRES = 500
SEARCHES = 200


class DrawnEmbedder:
    """Vectors from a generator of random numbers: what is measured is everything else."""

    dimension = DIMENSION
    fingerprint = f"drawn:{DIMENSION}"

    def __init__(self) -> None:
        self._centres = np.random.default_rng(0).standard_normal((CENTRES, DIMENSION)).astype(np.float32)
        self._draw = np.random.default_rng(1)

    def _near(self, n: int) -> np.ndarray:
        some = self._centres[self._draw.integers(CENTRES, size=n)]
        vectors = some + 0.5 * self._draw.standard_normal((n, DIMENSION), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def embed_documents(
        self,
        texts: Sequence[str],
        *,
        on_too_long: Any = "error",
        on_error: Any = "raise",
        passages: bool = False,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> EmbeddingResult:
        n_tokens = np.array([len(text) // 4 + 2 for text in texts], dtype=np.int64)
        whole = [PassageVectors(self._near(1), np.array([0]), np.array([len(text)])) for text in texts]
        return EmbeddingResult(
            self._near(len(texts)), n_tokens, n_tokens, np.ones(len(texts), dtype=np.int64), passages=[*whole]
        )

    def embed_query(self, text: str) -> np.ndarray:
        return self._near(1)[0]


class TimedEmbedder:
    """The bundled model, and the seconds spent in it."""

    def __init__(self) -> None:
        self._inner = M2Embedder(device="cpu", dtype="auto")
        self.dimension = self._inner.dimension
        self.fingerprint = self._inner.fingerprint
        self.seconds = 0.0

    def embed_documents(self, texts: Sequence[str], **options: Any) -> EmbeddingResult:
        started = time.perf_counter()
        try:
            return self._inner.embed_documents(texts, **options)
        finally:
            self.seconds += time.perf_counter() - started

    def embed_query(self, text: str) -> np.ndarray:
        return self._inner.embed_query(text)


class Memory:
    """This process's memory, watched by a thread, in MB.

    `all` holds the pages of mapped files too, which the system takes back where others need them; `own` does not.
    """

    def __init__(self) -> None:
        self.start = self.now()
        self.peak = dict(self.start)
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def now(self) -> dict[str, float]:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return {name: int(lines[key].split()[0]) / 1024 for name, key in (("all", "VmRSS"), ("own", "RssAnon"))}

    def above_start(self, now: dict[str, float]) -> Row:
        return {name: round(now[name] - self.start[name]) for name in now}

    def end(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            now = self.now()
            self.peak = {name: max(self.peak[name], now[name]) for name in now}


def short_documents(n: int) -> Iterator[Document]:
    """Documents of words drawn by Zipf's law, each of them different."""
    draw = random.Random(0)
    words = sorted({word for document in load_documents()[:5] for word in document.text.split() if word.isalpha()})
    weights = [1 / (rank + 2) for rank in range(len(words))]
    for number in range(n):
        text = " ".join(draw.choices(words, weights, k=draw.randint(20, 200)))
        yield Document(f"document-{number}", text, title=f"Document {number}", metadata={"part": number % 10})


def many(documents: int, folder: Path) -> Row:
    """Memory, speed and searches with many short documents."""
    embedder = DrawnEmbedder()
    with LongDocumentIndex(folder / "index", embedder) as index:
        index.add([Document("first", "one document before anything is measured")])
        memory = Memory()
        report = index.add(short_documents(documents))
        held = memory.now()
        row: Row = {
            "documents": documents,
            "seconds": round(report.seconds, 1),
            "documents_per_s": round(documents / report.seconds),
            "memory_start_mb": round(memory.start["all"]),
            "memory_above_start_mb": {"peak": memory.above_start(memory.peak), "end": memory.above_start(held)},
            "size_mb": round((index.info()["size_bytes"] or 0) / 1e6),
        }
        memory.end()
        started = time.perf_counter()
        again = index.add(short_documents(documents))
        row["again_seconds"] = round(time.perf_counter() - started, 1)
        assert (report.added, again.unchanged) == (documents, documents)
        for mode in index.modes:
            times = []
            for number in range(SEARCHES):
                started = time.perf_counter()
                hits = index.search(f"document {number} of {number % 7} kinds", k=10, mode=mode)
                times.append(1000 * (time.perf_counter() - started))
                assert len(hits) == 10 or mode == "lexical"
            share = [significant(float(np.percentile(times[20:], p)), 3) for p in (50, 95)]
            row[f"search_{mode}_ms"] = {"p50": share[0], "p95": share[1]}
    return row


def long(folder: Path) -> Row:
    """Share of the time that is not embedding, for documents as they are and for full ones."""
    found = load_documents()
    joined = "\n\n".join(document.text for document in found)
    size = 100_000  # characters, some 25,000 tokens
    cases = {
        "demo": found,
        "full": [Document(f"full-{i}", joined[i * size : (i + 1) * size]) for i in range(len(joined) // size)],
    }
    row: Row = {}
    embedder = TimedEmbedder()
    embedder.embed_query("what is made at first use")
    for name, documents in cases.items():
        embedder.seconds = 0.0
        with LongDocumentIndex(folder / name, embedder) as index:
            report = index.add(documents)
        assert report.added == len(documents), report
        other = report.seconds - embedder.seconds
        row[name] = {
            "documents": len(documents),
            "tokens": report.n_tokens,
            "seconds": significant(report.seconds, 3),
            "not_embedding_percent": significant(100 * other / report.seconds, 3),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("part", choices=("many", "long"))
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--out", default=str(RESULTS / "index-scale.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = many(arguments.documents, Path(folder)) if arguments.part == "many" else long(Path(folder))
    out = Path(arguments.out)
    known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    results = {"environment": environment("cpu"), **known, arguments.part: row}
    out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
