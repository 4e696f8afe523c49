"""The steps of `LongDocumentIndex.add`: check, leave out what is unchanged, group, embed, store, count."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from m2rag.errors import (
    IndexMismatchError,
    InvalidInputError,
    M2RagError,
    NonFiniteError,
    PointTooLargeError,
    RemoteError,
)
from m2rag.index.documents import (
    AddProgress,
    AddReport,
    Document,
    Failure,
    Outcome,
    check_document,
    content_hash,
    point_id,
)
from m2rag.index.embedding import Embedder
from m2rag.index.pipeline import run_stages
from m2rag.index.readers import kind_of
from m2rag.index.seen import Seen
from m2rag.results import EmbeddingResult
from m2rag.stores import Point, SparseVector, VectorStore
from m2rag.stores.lexical import Bm25

logger = logging.getLogger(__name__)

DOC = "doc"
PASSAGES = "passages"
LEXICAL = "lexical"

_BYTES_PER_TOKEN = 4  # of English in UTF-8; groups need no exact count, and an exact one costs a tokenizer pass
MAX_GROUP = 256
"""Documents that are looked up, embedded and stored in one go, at most."""

_STATE_FIELDS = ("hash", "on_too_long", "n_tokens", "n_used", "n_windows", "origin")
_ALL_FIELDS = (*_STATE_FIELDS, "id", "title", "text", "metadata", "starts", "ends")


@dataclass(frozen=True)
class Pending:
    """A checked document on its way into the store; `tokens` is an estimate."""

    document: Document
    metadata: dict[str, Any]
    hash: str
    tokens: int
    is_new: bool = True


class Ingest:
    """One run of `add`.

    Args:
        store: where points go.
        embedder: makes the vectors.
        policy: `on_too_long`.
        monitor: counts what happens to each document.
    """

    def __init__(self, store: VectorStore, embedder: Embedder, policy: str, monitor: Monitor) -> None:
        self._store = store
        self._embedder = embedder
        self._policy = policy
        self._monitor = monitor
        self._bm25 = Bm25(store.manifest.lexical) if store.manifest.lexical else None

    def run(self, items: Iterable[Document | Failure], batch_tokens: int) -> None:
        """Bring the items into the store, one group after the other."""
        self.store(checked(items, self._monitor), batch_tokens)

    def store(self, documents: Iterable[Pending], batch_tokens: int) -> None:
        """Bring checked documents into the store, one group after the other; those that are unchanged are counted.

        While a group is embedded, the next one is read and the last one written.
        """
        groups = grouped(self._changed(documents, batch_tokens, self._follow), batch_tokens)
        run_stages(groups, self._embed, self._store_embedded)

    def changed(self, items: Iterable[Document | Failure], batch_tokens: int) -> Iterator[Pending]:
        """Those of the items that are new or changed; the others are counted, and nothing is done."""
        return self._changed(checked(items, self._monitor), batch_tokens, lambda moved: None)

    def _changed(
        self, documents: Iterable[Pending], batch_tokens: int, follow: Callable[[Sequence[Pending]], None]
    ) -> Iterator[Pending]:
        """The documents that are new or changed, looked up many at a time; `follow` is told those that were moved."""
        for group in grouped(documents, batch_tokens):
            ids = [point_id(pending.document.id) for pending in group]
            stored = self._store.retrieve(ids, payload=_STATE_FIELDS)
            moved: list[Pending] = []
            for id, pending in zip(ids, group, strict=True):
                if id not in stored:
                    yield pending
                elif _is_current(stored[id].payload, pending.hash, self._policy):
                    if _has_moved(stored[id].payload, pending.document):
                        moved.append(pending)
                    self._monitor.keep(pending.document.id)
                elif _is_other_file(stored[id].payload, pending):
                    other = f"the file {stored[id].payload['origin']}"
                    self._monitor.fail(pending.document.id, _taken(pending.document, other), pending.document.origin)
                else:
                    yield Pending(pending.document, pending.metadata, pending.hash, pending.tokens, is_new=False)
            follow(moved)

    def _follow(self, moved: Sequence[Pending]) -> None:
        """Store where unchanged documents lie now: `sync` deletes what came from its folder, and nothing else."""
        origins = {point_id(pending.document.id): pending.document.origin for pending in moved}
        if not origins:
            return
        points = self._store.retrieve(list(origins), payload=_ALL_FIELDS, vectors=(DOC, PASSAGES)).values()
        self._store.upsert(
            [
                replace(
                    point,
                    payload={**point.payload, "origin": origins[point.id]},
                    sparse=self._words(point.payload["title"], point.payload["text"]),
                )
                for point in points
            ]
        )

    def _embed(self, group: Sequence[Pending]) -> list[tuple[Point, Pending]]:
        """Points of a group, without the documents that failed."""
        check_embedder(self._store, self._embedder)
        self._monitor.show(group[0].document.id)
        try:
            result = self._embedder.embed_documents(
                [pending.document.text for pending in group],
                on_too_long=self._policy,
                on_error="skip",
                passages=getattr(self._embedder, "has_passages", True),
                on_batch=self._monitor.embedding,
            )
        except RemoteError as error:
            # Part of the answer is stored and the rest reported; a model that answers nothing ends the run.
            if error.result is None or len(error.missing) == len(group):
                raise
            result = error.result
        vectors = np.asarray(result.vectors, dtype=np.float32)
        if vectors.shape != (len(group), self._store.manifest.dimension):
            given = f"{self._embedder.fingerprint}: vectors {vectors.shape} for {len(group)} documents"
            raise mismatch(self._store, given)
        embedded: list[tuple[Point, Pending]] = []
        for i, pending in enumerate(group):
            if i in result.errors:
                self._monitor.fail(pending.document.id, result.errors[i], pending.document.origin)
                continue
            point = self._point(pending, vectors[i], result, i)
            if all(np.isfinite(vector).all() for vector in point.vectors.values()):
                embedded.append((point, pending))
            else:
                cause = NonFiniteError(
                    f"the vector of document {pending.document.id!r} holds NaN or infinity: it was not stored"
                )
                self._monitor.fail(pending.document.id, cause, pending.document.origin)
        return embedded

    def _store_embedded(self, embedded: Sequence[tuple[Point, Pending]]) -> None:
        # A new document may have been stored by a try whose answer was lost: then it is not written a second time.
        for is_new in (True, False):
            batch = [one for one in embedded if one[1].is_new == is_new]
            written = self._write(batch, insert_only=is_new)
            if written:
                tokens = sum(point.payload["n_tokens"] for point, _ in written)
                self._monitor.stored([pending for _, pending in written], tokens)

    def _write(self, batch: list[tuple[Point, Pending]], *, insert_only: bool) -> list[tuple[Point, Pending]]:
        """Store points; those too large for the store are reported, the others are returned."""
        while batch:
            try:
                self._store.upsert([point for point, _ in batch], insert_only=insert_only)
                break
            except PointTooLargeError as error:
                for point, pending in batch:
                    if point.id in error.ids:
                        self._monitor.fail(pending.document.id, error, pending.document.origin)
                batch = [one for one in batch if one[0].id not in error.ids]
        return batch

    def _point(self, pending: Pending, vector: np.ndarray, result: EmbeddingResult, i: int) -> Point:
        document = pending.document
        vectors = {DOC: vector}
        starts: list[int] = []
        ends: list[int] = []
        passages = result.passages[i] if result.passages is not None else None
        if passages is not None and len(passages):
            matrix = np.asarray(passages.vectors, dtype=np.float32)
            if matrix.shape[1:] != vector.shape:
                raise mismatch(self._store, f"{self._embedder.fingerprint}: passage vectors {matrix.shape}")
            vectors[PASSAGES] = matrix
            starts, ends = np.asarray(passages.starts).tolist(), np.asarray(passages.ends).tolist()
        payload = {
            "id": document.id,
            "title": document.title,
            "text": document.text,
            "metadata": pending.metadata,
            "origin": document.origin,
            "hash": pending.hash,
            "on_too_long": self._policy,
            "n_tokens": int(result.n_tokens[i]),
            "n_used": int(result.n_used[i]),
            "n_windows": int(result.n_windows[i]),
            "starts": starts,
            "ends": ends,
        }
        sparse = self._words(document.title, document.text)
        return Point(point_id(document.id), vectors, payload, sparse=sparse)

    def _words(self, title: str | None, text: str) -> dict[str, SparseVector]:
        if self._bm25 is None:
            return {}
        return {LEXICAL: self._bm25.document(f"{title}\n\n{text}" if title else text)}


class Monitor:
    """Counts what happens to each document and tells the caller's callback; stages in several threads tell it.

    Args:
        report: what is counted into.
        total: documents in all, None if unknown.
        callback: told after every step.
    """

    def __init__(self, report: AddReport, total: int | None, callback: Callable[[AddProgress], None] | None) -> None:
        self._report = report
        self._total = total
        self._callback = callback
        self._started = time.perf_counter()
        self._tokens = 0
        self._current = ""
        # Held while the callback runs, so that it is not called by two threads at once.
        self._lock = threading.RLock()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._started

    def show(self, current: str, *finished: Outcome) -> None:
        """This document is at hand; those finished are dealt with."""
        with self._lock:
            self._current = current
            if self._callback is not None:
                self._callback(
                    AddProgress(self._report.done, self._total, self._tokens, current, self.seconds, finished)
                )

    def keep(self, id: str) -> None:
        """This document is unchanged."""
        with self._lock:
            self._report.unchanged += 1
            self.show(id, Outcome(id, "unchanged"))

    def fail(self, id: str, cause: M2RagError, path: str | None) -> None:
        """This document, of this file, is not indexed."""
        with self._lock:
            logger.warning("%s was not indexed: %s", id, cause)
            self._report.failed.append(Failure(id, cause, path))
            self.show(id, Outcome(id, "failed", cause, path))

    def embedding(self, documents: int, tokens: int) -> None:
        """A batch of the group at hand is embedded, not yet stored."""
        with self._lock:
            self._tokens += tokens
            self.show(self._current)

    def stored(self, group: Sequence[Pending], tokens: int) -> None:
        """These documents are safe."""
        with self._lock:
            self._report.n_tokens += tokens
            self._tokens = max(self._tokens, self._report.n_tokens)
            self._report.added += sum(pending.is_new for pending in group)
            self._report.replaced += sum(not pending.is_new for pending in group)
            outcomes = [Outcome(pending.document.id, "added" if pending.is_new else "replaced") for pending in group]
            self.show(group[-1].document.id if group else self._current, *outcomes)

    def elsewhere(self, outcomes: Sequence[Outcome], tokens: int) -> None:
        """What the monitor of another process has seen: documents that are dealt with, and tokens stored."""
        with self._lock:
            states = [outcome.state for outcome in outcomes]
            self._report.added += states.count("added")
            self._report.replaced += states.count("replaced")
            self._report.unchanged += states.count("unchanged")
            for outcome in outcomes:
                if outcome.cause is not None:
                    logger.warning("%s was not indexed: %s", outcome.id, outcome.cause)
                    self._report.failed.append(Failure(outcome.id, outcome.cause, outcome.path))
            self._report.n_tokens += tokens
            self._tokens = self._report.n_tokens
            self.show(outcomes[-1].id if outcomes else self._current, *outcomes)


def checked(items: Iterable[Document | Failure], monitor: Monitor) -> Iterator[Pending]:
    """Checked documents; another document under an id of this run fails, the same one again is unchanged."""
    seen = Seen()
    for item in items:
        if isinstance(item, Failure):
            monitor.fail(item.id, item.cause, item.path)
            continue
        try:
            metadata = check_document(item)
        except M2RagError as error:
            monitor.fail(str(item.id), error, item.origin)
            continue
        hash = content_hash(item)
        digest = bytes.fromhex(hash)[:16]
        first = seen.first(point_id(item.id).bytes, digest)
        if first is None:
            yield Pending(item, metadata, hash, len(item.text.encode("utf-8")) // _BYTES_PER_TOKEN + 2)
        elif first == digest:
            monitor.keep(item.id)
        else:
            monitor.fail(item.id, _taken(item, "another document handed in with it"), item.origin)


def grouped(documents: Iterable[Pending], batch_tokens: int) -> Iterator[list[Pending]]:
    """Groups of documents of at most `batch_tokens` together; a longer document makes a group of its own."""
    group: list[Pending] = []
    tokens = 0
    for pending in documents:
        if group and (tokens + pending.tokens > batch_tokens or len(group) == MAX_GROUP):
            yield group
            group, tokens = [], 0
        group.append(pending)
        tokens += pending.tokens
    if group:
        yield group


def check_embedder(store: VectorStore, embedder: Embedder) -> None:
    """Raise `IndexMismatchError` unless the store was built with this embedder."""
    if embedder.fingerprint != store.manifest.fingerprint or embedder.dimension != store.manifest.dimension:
        raise mismatch(store, f"{embedder.fingerprint} ({embedder.dimension} dimensions)")


def mismatch(store: VectorStore, given: str) -> IndexMismatchError:
    """The error that names both sides."""
    stored = f"{store.manifest.fingerprint} ({store.manifest.dimension} dimensions)"
    return IndexMismatchError(store.location, stored, given)


def _is_current(stored: Mapping[str, Any], hash: str, policy: str) -> bool:
    if stored["hash"] != hash:
        return False
    fits = stored["n_windows"] == 1 and stored["n_used"] == stored["n_tokens"]
    return fits or stored["on_too_long"] == policy


def _has_moved(stored: Mapping[str, Any], document: Document) -> bool:
    """Whether a document was read from another file than the stored one, which is gone."""
    old, new = stored["origin"], document.origin
    return old is not None and new is not None and old != new and not os.path.exists(old)


def _is_other_file(stored: Mapping[str, Any], pending: Pending) -> bool:
    """Whether the stored document comes from a file that still exists and is not the one at hand."""
    old, new = stored["origin"], pending.document.origin
    if old is None or new is None or old == new or stored["hash"] == pending.hash:
        return False
    try:
        return not os.path.samefile(old, new)
    except OSError:  # the old one is gone: the file was moved
        return False


def _taken(document: Document, by: str) -> InvalidInputError:
    kind = kind_of(document.origin) if document.origin is not None else None
    advice = "files are named relative to the folder given, so index the folder that holds both"
    if kind is not None and kind.has_rows:
        advice = "give each row of the file an id of its own, or none"
    return InvalidInputError(
        f"the id {document.id!r} is taken by {by}: {advice}, or pass Documents with ids of your own"
    )
