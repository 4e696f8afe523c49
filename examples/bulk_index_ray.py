"""A million documents, planned at small scale: index some with Ray, measure, and see what all of them would take.

    pip install 'm2rag[ray,qdrant]'
    python examples/bulk_index_ray.py                       # a trial: Ray embeds, this process writes a folder
    python examples/bulk_index_ray.py /shared/papers --url https://qdrant.internal:6333/papers --address auto

The second line is the real thing: Ray Data reads, embeds and writes into a collection of a Qdrant server, on all
machines of the cluster (QDRANT_API_KEY holds the key). A folder can be written by one process only, so the trial has
Ray's workers embed, and everything else is done here; rates of a worker are the same, those of a server it cannot tell.
Without PATHS it takes documents that come with the package. Half of them are indexed first, then all, as after a stop.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util import ActorPool
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from m2rag import Document, LongDocumentIndex, M2Embedder
from m2rag.demo import load_documents
from m2rag.errors import M2RagError
from m2rag.index import AddProgress, AddReport, add_with_ray, read_info
from m2rag.results import EmbeddingResult

WORKERS = (1, 8, 32, 128)
GROUP_TOKENS = 65_536  # `batch_tokens` of add_with_ray: what a worker has at hand
SAMPLE = 20  # documents whose parts are weighed
BYTES_PER_WORD = 8  # number and weight of a word of BM25


@dataclass(frozen=True)
class Measured:
    """What the trial told.

    Attributes:
        documents: that were embedded.
        tokens: they have, in all.
        worker_seconds: of all workers together, for these.
        looked_up, lookup_seconds: documents found unchanged, and the time that took; the same in the real run.
        text_bytes, words, passages: of a document, on average.
        dimension: of the vectors.
    """

    documents: int
    tokens: int
    worker_seconds: float
    looked_up: int
    lookup_seconds: float
    text_bytes: float
    words: float
    passages: float
    dimension: int

    @property
    def tokens_per_document(self) -> float:
        return self.tokens / self.documents

    @property
    def tokens_per_second(self) -> float:
        """Of one worker."""
        return self.tokens / self.worker_seconds


# The trial


class Worker:
    """Embeds in a process of its own."""

    def __init__(self, model: str | None) -> None:
        self._embedder = M2Embedder(model)

    def about(self) -> tuple[int, str, Any]:
        """Dimension, fingerprint and source of the model."""
        return self._embedder.dimension, self._embedder.fingerprint, self._embedder.model_source

    def embed(self, text: str, options: dict[str, Any]) -> tuple[EmbeddingResult, float]:
        """One document, and the seconds it took."""
        start = time.perf_counter()
        return self._embedder.embed_documents([text], **options), time.perf_counter() - start

    def embed_query(self, text: str) -> np.ndarray:
        """Vector (D,)."""
        return self._embedder.embed_query(text)


class OnWorkers:
    """An embedder whose work Ray's workers do: what `LongDocumentIndex` needs of one, and no more."""

    def __init__(self, model: str | None, workers: int) -> None:
        made = ray.remote(Worker).options(num_cpus=1)
        self._workers = [made.remote(model) for _ in range(workers)]
        self.dimension, self.fingerprint, self.model_source = ray.get(self._workers[0].about.remote())
        ray.get([worker.about.remote() for worker in self._workers])  # all have loaded the model
        self.seconds = 0.0
        self.passages = 0

    def embed_documents(
        self, texts: Sequence[str], *, on_batch: Callable[[int, int], None] | None = None, **options: Any
    ) -> EmbeddingResult:
        """See `m2rag.index.Embedder`."""
        parts: list[EmbeddingResult] = []
        for result, seconds in ActorPool(self._workers).map(lambda one, text: one.embed.remote(text, options), texts):
            parts.append(result)
            self.seconds += seconds
            self.passages += sum(len(found) for found in result.passages or () if found is not None)
            if on_batch is not None:
                on_batch(1, int(result.n_tokens.sum()))
        names = ("vectors", "n_tokens", "n_used", "n_windows")
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        errors = {i: part.errors[0] for i, part in enumerate(parts) if part.errors}
        return EmbeddingResult(**joined, errors=errors, passages=[part.passages and part.passages[0] for part in parts])

    def embed_query(self, text: str) -> np.ndarray:
        """Vector (D,)."""
        return ray.get(self._workers[0].embed_query.remote(text))


def trial(sources: Sequence[Any], folder: Path, model: str | None, workers: int, console: Console) -> Measured:
    """Index half of the sources, then all of them, into a folder."""
    embedder = OnWorkers(model, workers)
    with LongDocumentIndex(folder, embedder) as index:
        for part in (sources[: max(1, len(sources) // 2)], sources):
            with following(console) as follow:
                report = index.add(part, progress=follow)
            say(report, console)
        start = time.perf_counter()
        again = index.add(sources)
        seconds = time.perf_counter() - start
        weighed = weigh(index)
        n_documents = len(index)
    tokens = read_info(folder)["tokens"]
    passages = embedder.passages / n_documents
    return Measured(
        n_documents, tokens, embedder.seconds, again.unchanged, seconds, *weighed, passages, embedder.dimension
    )


def real(sources: Sequence[Any], args: argparse.Namespace, console: Console) -> Measured:
    """The same on a server, by `add_with_ray`; the rate is that of the run that took longest."""
    options: dict[str, Any] = {"model": args.model, "address": args.address, "actors": args.workers}
    options["quantization"] = args.quantization
    documents = tokens = 0
    spans: list[tuple[float, int]] = []
    for part in (sources[: max(1, len(sources) // 2)], sources):
        stamps: list[AddProgress] = []
        with following(console) as follow:

            def note(at: AddProgress, stamps: list[AddProgress] = stamps, follow: Any = follow) -> None:
                stamps.append(at)
                follow(at)

            report = add_with_ray(args.url, part, progress=note, **options)
        say(report, console)
        spans.append(steady(stamps))
        documents, tokens = documents + report.added + report.replaced, tokens + report.n_tokens
    start = time.perf_counter()
    again = add_with_ray(args.url, sources, **options)
    lookup = time.perf_counter() - start
    if not documents:
        raise SystemExit(f"all documents are in {args.url} already: there is nothing to measure")
    span, done = max(spans)
    seconds = span / done * tokens * args.workers
    embedder = M2Embedder(args.model)
    with LongDocumentIndex(args.url, embedder) as index:
        weighed = weigh(index)
        first = index.get(index.ids()[0])
    assert first is not None
    found = embedder.embed_documents([first.text], on_too_long="window", passages=True)
    per_token = len(found.passages[0] or ()) / int(found.n_tokens[0]) if found.passages else 0.0
    passages = per_token * tokens / documents
    return Measured(documents, tokens, seconds, again.unchanged, lookup, *weighed, passages, embedder.dimension)


def steady(stamps: Sequence[AddProgress]) -> tuple[float, int]:
    """Seconds and tokens from the first documents that were done to the last: without the start of Ray and the models.

    Of a run that did all at once, or nothing: the whole of it.
    """
    if not stamps or stamps[-1].tokens == 0:
        return 0.0, 1
    first, last = stamps[0], stamps[-1]
    if last.tokens > first.tokens and last.seconds > first.seconds:
        return last.seconds - first.seconds, last.tokens - first.tokens
    return last.seconds, last.tokens


def weigh(index: LongDocumentIndex) -> tuple[float, float]:
    """Bytes of text and different words of a document, of the first ones on average."""
    some = [index.get(id) for id in index.ids()[:SAMPLE]]
    texts = [document.text for document in some if document is not None]
    words = sum(len(set(text.lower().split())) for text in texts) / len(texts)
    return sum(len(text.encode()) for text in texts) / len(texts), words


@contextmanager
def following(console: Console) -> Iterator[Callable[[AddProgress], None]]:
    """Shows where a run stands."""
    with console.status("Ray starts its workers") as status:
        yield lambda at: status.update(f"{at.done} documents, {at.tokens:,} tokens, {at.seconds:,.0f} s")


def say(report: AddReport, console: Console) -> None:
    """What a run has done."""
    console.print(
        f"{report.added} added, {report.replaced} replaced, {report.unchanged} unchanged, {len(report.failed)} failed: "
        f"{report.n_tokens:,} tokens in {report.seconds:,.1f} s",
        highlight=False,
    )
    for failure in report.failed[:5]:
        console.print(f"  {failure.id}: {failure.cause}", highlight=False)


# The plan


def hours(measured: Measured, documents: int, workers: int) -> float:
    """How long so many documents take so many workers, if nothing else holds them up."""
    return documents * measured.tokens_per_document / (measured.tokens_per_second * workers) / 3600


def parts(measured: Measured) -> dict[str, float]:
    """Bytes of one document on the disk of the index, by what they hold."""
    vector = 4 * measured.dimension
    return {
        "text": measured.text_bytes,
        "vectors of passages": measured.passages * vector,
        "words for BM25": measured.words * BYTES_PER_WORD,
        "vector": vector,
    }


def in_memory(measured: Measured) -> dict[str, float]:
    """Bytes of one document that a search by meaning goes through, by the index's `quantization`."""
    dimension = measured.dimension
    return {"none (32 bits)": 4 * dimension, "scalar (8 bits)": dimension, "binary (1 bit)": dimension / 8}


def show(measured: Measured, documents: int, console: Console) -> None:
    """The plan for so many documents."""
    per_document = measured.tokens_per_document
    console.print(
        f"\nOne worker: {measured.tokens_per_second / per_document:,.2f} documents/s, "
        f"{measured.tokens_per_second:,.0f} tokens/s, documents of {per_document:,.0f} tokens.\n",
        highlight=False,
    )
    on_disk = parts(measured)
    time_table = Table("workers", "hours", "documents/s", "MB/s to write", title=f"{documents:,} documents: time")
    for n in WORKERS:
        took = hours(measured, documents, n)
        rate = documents / (took * 3600)
        time_table.add_row(f"{n:,}", f"{took:,.1f}", f"{rate:,.1f}", f"{rate * sum(on_disk.values()) / 1e6:,.2f}")
    size = Table("on disk", "of a document", "of all", title=f"{documents:,} documents: storage")
    for name, n_bytes in {**on_disk, "in all": sum(on_disk.values())}.items():
        size.add_row(name, f"{n_bytes / 1e3:,.2f} kB", f"{documents * n_bytes / 1e9:,.1f} GB")
    memory = Table("quantization", "of a document", "of all", title=f"{documents:,} documents: memory to search in")
    for name, n_bytes in in_memory(measured).items():
        memory.add_row(name, f"{n_bytes:,.0f} bytes", f"{documents * n_bytes / 1e9:,.2f} GB")
    for table in (time_table, size, memory):
        table.title_justify = "left"
        for column in table.columns[0 if table is time_table else 1 :]:
            column.justify = "right"
        console.print(table)
    console.print("\nWhat fails, and how it goes on")
    for line in failures(measured):
        console.print(Padding(f"- {line}", (0, 0, 0, 2)), highlight=False)


def failures(measured: Measured) -> list[str]:
    """What can go wrong, what it costs, and how it goes on."""
    at_hand = max(1, round(GROUP_TOKENS / measured.tokens_per_document))
    seconds = at_hand * measured.tokens_per_document / measured.tokens_per_second
    looked_up = f"{measured.looked_up:,} documents in {measured.lookup_seconds:,.1f} s"
    return [
        f"A worker dies: Ray starts another, which does its group again, {at_hand:,} documents or {seconds:,.0f} s.",
        "A document over which workers die again and again is reported with its id; so is one that cannot be read.",
        "The server does not answer: writes are tried again for a while, then the run ends with a StoreError. Nothing "
        "is lost that it has acknowledged.",
        "This process dies, or Ctrl-C: run the same command again. What is there and unchanged is looked up and not "
        f"embedded: here {looked_up}, of many in a row thousands a second.",
        "A changed document replaces the one there. Deleting those whose files are gone is `m2rag sync`.",
        "Give disks twice what the table says: servers merge segments, and a snapshot needs room. A replica doubles it "
        "again.",
    ]


def main(arguments: Sequence[str] | None = None) -> Measured:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, help="files and folders; default: the demo's documents")
    parser.add_argument("--url", help="collection of a Qdrant server; without it: a trial in a folder")
    parser.add_argument("--address", help="of a Ray cluster: auto or HOST:6379; default: a Ray on this machine")
    parser.add_argument("--workers", type=int, default=2, help="that embed; default: 2")
    parser.add_argument("--quantization", choices=["scalar", "binary"], help="of a new collection")
    parser.add_argument("--model", help="checkpoint; default: the bundled one")
    parser.add_argument("--limit", type=int, default=8, help="of the demo's 40 documents, so many")
    parser.add_argument("--documents", type=int, default=1_000_000, help="to plan for")
    args = parser.parse_args(arguments)
    console = Console()
    sources: list[Document | Path] = list(args.paths) or load_documents()[: args.limit]
    try:
        if args.url:
            measured = real(sources, args, console)
        else:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers over the network
            local = {"num_cpus": args.workers, "include_dashboard": False, "object_store_memory": 200_000_000}
            quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
            ray.init(args.address or "local", **quiet, **({} if args.address else local))
            try:
                with tempfile.TemporaryDirectory() as folder:
                    measured = trial(sources, Path(folder) / "index", args.model, args.workers, console)
            finally:
                ray.shutdown()
    except M2RagError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    show(measured, args.documents, console)
    return measured


if __name__ == "__main__":
    main()
