"""The index behind the page: uploads are queued and indexed by one thread; searches and reads go straight to it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from m2rag.errors import DocumentError, InvalidInputError, M2RagError
from m2rag.index import AddProgress, Document, Failure, Hit, LongDocumentIndex, Outcome, Stored, parse_documents
from m2rag.index.filters import MetadataFilter
from m2rag.index.index import BATCH_TOKENS
from m2rag.index.modes import Mode
from m2rag.index.readers import PACKED, READERS, ROW_READERS, kind_of, supported_suffixes
from m2rag.server.errors import ApiError
from m2rag.stores import Scalar

logger = logging.getLogger(__name__)

MAX_UPLOAD_BYTES = 64 * 1024 * 1024
MAX_ID_CHARACTERS = 1024
_RETRY_SECONDS = 2.0
_FAILURES_KEPT = 200
_LONGEST_WAIT = 3.0  # seconds that uploads which keep coming are collected before they are embedded
_FIELD_SAMPLE = 100  # documents whose metadata is looked at for fields to suggest
_VALUES_SUGGESTED = 12


@dataclass(frozen=True)
class FailedUpload:
    """A document that was not indexed, and why, in words."""

    id: str
    error: str
    message: str


@dataclass(frozen=True)
class Progress:
    """Where indexing stands. Counts are since the library last began to work.

    Attributes:
        active: documents are waiting or being indexed.
        queued: files that wait or are being read.
        indexing: documents at hand.
        done: documents dealt with: the sum of the next four.
        added, replaced, unchanged, failed: what became of them.
        failures: the last of those that failed.
        tokens: tokens embedded.
        seconds: time spent.
        documents_per_second, tokens_per_second: so far; 0 at first.
        eta_seconds: time left, judged by lengths; None while nothing is done.
        current: id of the document at hand.
    """

    active: bool
    queued: int
    indexing: int
    done: int
    added: int
    replaced: int
    unchanged: int
    failed: int
    failures: list[FailedUpload]
    tokens: int
    seconds: float
    documents_per_second: float
    tokens_per_second: float
    eta_seconds: float | None
    current: str


@dataclass
class _Tally:
    """What happened since the library began to work."""

    started: float
    ended: float | None = None
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("added", "replaced", "unchanged", "failed"), 0)
    )
    failures: deque[FailedUpload] = field(default_factory=lambda: deque(maxlen=_FAILURES_KEPT))
    tokens: int = 0
    characters_done: int = 0
    characters_read: int = 0
    bytes_read: int = 0
    current: str = ""


@dataclass
class _Upload:
    """The file that is being read; one of rows holds many documents and may be read in several runs."""

    id: str
    size: int
    found: Iterator[Document | Failure]


class Library:
    """An index that takes uploads.

    Uploads wait in a queue that is bounded in files and bytes, and one thread indexes them as `m2rag index` does:
    one call of `LongDocumentIndex.add` takes all that come in quick succession. Methods block and can be called from
    any thread; `upload`, `room` and `progress` only for moments.

    Args:
        index: where documents go; the caller closes it, after `stop`.
        max_tokens: how many the model takes at once, for the page to tell.
        facets: metadata fields whose values can be listed, and documents by them.
        temporary: the index goes when the server does, for the page to tell.
        on_too_long: what to do with documents longer than that.
        batch_tokens: how much to embed and store in one go.
        max_upload_bytes: of one file.
        max_waiting: files in the queue.
        max_waiting_bytes: their bytes.
        idle_seconds: how long a call of `add` waits for another document before it ends.
        clock: seconds, for rates.
    """

    def __init__(
        self,
        index: LongDocumentIndex,
        *,
        max_tokens: int | None = None,
        facets: Sequence[str] = (),
        temporary: bool = False,
        on_too_long: str = "window",
        batch_tokens: int = BATCH_TOKENS,
        max_upload_bytes: int = MAX_UPLOAD_BYTES,
        max_waiting: int = 2_000,
        max_waiting_bytes: int = 4 * MAX_UPLOAD_BYTES,
        idle_seconds: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.index = index
        self.max_tokens = max_tokens
        self._facets = tuple(facets)
        self.temporary = temporary
        self.max_upload_bytes = max_upload_bytes
        self._on_too_long = on_too_long
        self._batch_tokens = batch_tokens
        self._max_waiting = max_waiting
        self._max_waiting_bytes = max(max_waiting_bytes, max_upload_bytes)
        self._idle_seconds = idle_seconds
        self._clock = clock
        # All below is guarded by this lock, which is never held while anything is read, embedded or stored.
        self._changed = threading.Condition()
        self._waiting: dict[str, bytes] = {}
        self._reading: _Upload | None = None
        self._at_hand: dict[str, int] = {}  # id of a document -> characters
        self._held_bytes = 0  # of what waits, is being read, and is on its way in
        self._others_turn = 0  # deletions that wait for the run at hand to end
        self._stopping = False
        self._tally = _Tally(clock(), ended=clock())
        self._fields: dict[str, list[Scalar]] | None = None
        self._catalogue: dict[str, dict[str, list[Scalar]]] | None = None  # id -> facet -> values
        self._version = 0  # of what is in the index
        index.optimize()  # now, as it may stop all threads: while documents are added nothing of it is done
        self._thread = threading.Thread(target=self._work, daemon=True, name="m2rag-library")
        self._thread.start()

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The rankings that can be searched with."""
        return self.index.modes

    @property
    def suffixes(self) -> list[str]:
        """The kinds of files that can be uploaded, also compressed."""
        return [*READERS, *ROW_READERS]

    @property
    def packings(self) -> list[str]:
        """Suffixes of compressed files."""
        return list(PACKED)

    # Uploads

    @contextmanager
    def room(self, id: str, size: int) -> Iterator[None]:
        """Keep room in the queue for an upload of `size` bytes while it is received.

        Raises:
            ApiError: 413 too large, 429 no room now, 503 stopping.
        """
        if size > self.max_upload_bytes:
            raise self.too_large()
        with self._changed:
            self._check_room(size, files=int(id not in self._waiting))
            self._held_bytes += size
        try:
            yield
        finally:
            with self._changed:
                self._held_bytes -= size

    def too_large(self) -> ApiError:
        """The answer to an upload of too many bytes."""
        limit = f"{self.max_upload_bytes:,} bytes"
        return ApiError(413, f"the file is too large: one file may have {limit}", code="too_large")

    def upload(self, id: str, data: bytes) -> str:
        """Queue a file; an earlier one of the same id that still waits is dropped. Returns its state, "queued".

        Args:
            id: name of the document: a relative path, which is never looked up on disk.
            data: all bytes of the file.

        Raises:
            ApiError: 400 not a name, 413 too large, 415 of no supported kind, 429 the queue is full, 503 stopping.
        """
        check_name(id)
        if kind_of(id) is None:
            raise ApiError(415, f"{id} is of no supported kind: the index reads {supported_suffixes()}", param="id")
        if len(data) > self.max_upload_bytes:
            raise self.too_large()
        with self._changed:
            earlier = self._waiting.get(id)
            more = len(data) - len(earlier or b"")
            self._check_room(more, files=int(earlier is None))
            if not self._is_busy():
                self._tally = _Tally(self._clock())
            self._waiting[id] = data
            self._held_bytes += more
            self._changed.notify_all()
        return "queued"

    def is_pending(self, id: str) -> bool:
        """Whether an upload of this id waits or is being indexed."""
        with self._changed:
            reading = self._reading is not None and self._reading.id == id
            return reading or id in self._waiting or id in self._at_hand

    def progress(self) -> Progress:
        """Where indexing stands."""
        with self._changed:
            tally, at_hand = self._tally, len(self._at_hand)
            queued = len(self._waiting) + int(self._reading is not None)
            seconds = (self._clock() if tally.ended is None else tally.ended) - tally.started
            done = sum(tally.counts.values())
            by_second = 1 / seconds if seconds > 0 else 0.0
            return Progress(
                active=self._is_busy(),
                queued=queued,
                indexing=at_hand,
                done=done,
                **tally.counts,
                failures=list(tally.failures),
                tokens=tally.tokens,
                seconds=seconds,
                documents_per_second=done * by_second,
                tokens_per_second=tally.tokens * by_second,
                eta_seconds=seconds * self._left() / tally.characters_done if tally.characters_done else None,
                current=tally.current,
            )

    def stop(self, timeout: float | None = None) -> list[str]:
        """Finish the documents at hand, take no more, and say which were not indexed.

        Args:
            timeout: how long to wait for those at hand, in seconds; None: until they are done.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout)
        with self._changed:
            reading = [self._reading.id] if self._reading is not None else []
            left = [*dict.fromkeys([*self._at_hand, *reading, *self._waiting])]
        if left:
            logger.warning("%d uploads were not indexed, %s the first: send them again", len(left), left[0])
        return left

    # What is in the index

    def search(
        self,
        query: str,
        k: int,
        *,
        mode: Mode | None = None,
        rescore: float | None = None,
        filter: MetadataFilter | None = None,
        n_passages: int = 3,
    ) -> list[tuple[Hit, int]]:
        """Hits, best first, each with the number of characters of its text; see `LongDocumentIndex.search`."""
        hits = self.index.search(query, k, mode=mode, rescore=rescore, filter=filter, n_passages=n_passages)
        lengths = {stored.id: stored.n_characters for stored in self.index.describe(hit.id for hit in hits)}
        return [(hit, lengths[hit.id]) for hit in hits if hit.id in lengths]  # the others were deleted meanwhile

    def get(self, id: str) -> tuple[Document, Stored] | None:
        """A document and what is known of it, None if there is none."""
        document, known = self.index.get(id), self.index.describe([id])
        return (document, known[0]) if document is not None and known else None

    def documents(
        self, offset: int, limit: int, prefix: str = "", having: Mapping[str, Scalar] | None = None
    ) -> tuple[list[Stored], int]:
        """Some of the documents whose ids begin with `prefix`, in the order of their ids, and how many there are.

        Args:
            having: facets and the value each must have.

        Raises:
            InvalidInputError: a field is no facet.
        """
        if unknown := [name for name in having or {} if name not in self._facets]:
            facets = ", ".join(self._facets) or "none"
            raise InvalidInputError(f"documents cannot be listed by {unknown[0]!r}: the facets are {facets}")
        if having:
            catalogue = self._read_catalogue()
            ids = [id for id, values in catalogue.items() if all(_has(values, *one) for one in having.items())]
        else:
            ids = self.index.ids()
        ids = [id for id in ids if id.startswith(prefix)]
        return self.index.describe(ids[offset : offset + limit]), len(ids)

    def delete(self, id: str) -> bool:
        """Remove a document, also one that waits to be indexed; whether there was one.

        Waits for the documents at hand to be stored: writers take turns.
        """
        with self._changed:
            waiting = self._waiting.pop(id, None)
            if waiting is not None:
                self._held_bytes -= len(waiting)
                self._end_if_done()
            self._others_turn += 1
            self._changed.notify_all()
        try:
            return bool(self.index.delete(id)) or waiting is not None
        finally:
            with self._changed:
                self._others_turn -= 1
                self._forget()
                self._changed.notify_all()

    def fields(self) -> dict[str, list[Scalar]]:
        """Metadata fields that some documents have, with some of their values: what a filter may be made of."""
        with self._changed:
            known = self._fields
        if known is not None:
            return known
        ids = self.index.ids()
        sample = ids[:: max(1, len(ids) // _FIELD_SAMPLE)][:_FIELD_SAMPLE]
        found: dict[str, list[Scalar]] = {}
        for stored in self.index.describe(sample):
            for name, value in stored.metadata.items():
                values = found.setdefault(name, [])
                for one in value if isinstance(value, list) else [value]:
                    if isinstance(one, (str, int, float, bool)) and one not in values:
                        if len(values) < _VALUES_SUGGESTED and len(str(one)) <= 80:
                            values.append(one)
        with self._changed:
            self._fields = found
        return found

    def facets(self) -> dict[str, dict[Scalar, int]]:
        """Each facet's values, sorted, and how many documents have each."""
        found: dict[str, dict[Scalar, int]] = {name: {} for name in self._facets}
        for values in self._read_catalogue().values() if found else ():
            for name, some in values.items():
                for value in some:
                    found[name][value] = found[name].get(value, 0) + 1
        by_kind = {name: sorted(counts, key=lambda value: (str(type(value)), value)) for name, counts in found.items()}
        return {name: {value: found[name][value] for value in values} for name, values in by_kind.items()}

    def _read_catalogue(self) -> dict[str, dict[str, list[Scalar]]]:
        """The facets of all documents, in the order of their ids."""
        with self._changed:
            known, version = self._catalogue, self._version
        if known is not None:
            return known
        found = {stored.id: _values(stored.metadata, self._facets) for stored in self.index.describe(self.index.ids())}
        with self._changed:
            if version == self._version:
                self._catalogue = found
        return found

    def _forget(self) -> None:
        """What was read of all documents: one has changed."""
        self._version += 1
        self._fields = self._catalogue = None

    # The thread

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or (self._has_more() and not self._others_turn))
                if self._stopping:
                    return
            cause: M2RagError | None = None
            follow = partial(self._follow, self._tally.tokens)
            try:
                self.index.add(
                    self._feed(),
                    on_too_long=self._on_too_long,
                    batch_tokens=self._batch_tokens,
                    live=True,
                    progress=follow,
                )
            except M2RagError as error:
                logger.error("indexing failed: %s", error)
                cause = error
            # Of the model or a library below it: told with the documents it met, and the next ones are tried.
            except Exception as error:
                logger.exception("indexing failed")
                cause = M2RagError(f"indexing failed: {type(error).__name__}: {error}")
            with self._changed:
                for id in list(self._at_hand):
                    self._finish(Outcome(id, "failed", cause or M2RagError(f"{id} got lost while it was indexed")))

    def _feed(self) -> Iterator[Document]:
        """The documents of one run: it ends when no upload comes for a while, and where another writer waits."""
        names: set[str] = set()
        until = self._clock() + _LONGEST_WAIT
        while self._take_file(names, until):
            found = self._read_on()
            if isinstance(found, Document):
                with self._changed:
                    self._at_hand[found.id] = len(found.text)
                    self._tally.characters_read += len(found.text)
                yield found
            elif found is not None:
                with self._changed:
                    self._finish(Outcome(found.id, "failed", found.cause))

    def _take_file(self, names: set[str], until: float) -> bool:
        """Have a file to read from: the one at hand or the next; False where the run should end."""
        with self._changed:
            if self._reading is None:
                patience = min(self._idle_seconds, until - self._clock())
                self._changed.wait_for(
                    lambda: self._stopping or self._others_turn or self._has_more(), timeout=max(patience, 0.0)
                )
            if self._stopping or self._others_turn or not self._has_more():
                return False
            if self._reading is None:
                name = next(iter(self._waiting))
                if name in names:  # a new version of a file of this run: an id can be given but once to each
                    return False
                data = self._waiting.pop(name)
                self._reading = _Upload(name, len(data), parse_documents(data, name))
                self._tally.current = name
            names.add(self._reading.id)
            return True

    def _read_on(self) -> Document | Failure | None:
        """What comes next in the file at hand; None at its end."""
        upload = self._reading
        assert upload is not None
        try:
            found = next(upload.found, None)
        # A fault of a parser on foreign bytes: told of this file only, not of those beside it.
        except Exception as error:
            logger.exception("%s cannot be read", upload.id)
            found = Failure(upload.id, DocumentError(f"{upload.id} cannot be read: {type(error).__name__}: {error}"))
            upload.found = iter(())
        if found is None:
            with self._changed:
                self._reading = None
                self._held_bytes -= upload.size
                self._tally.bytes_read += upload.size
                self._end_if_done()
        return found

    def _follow(self, tokens_before: int, at: AddProgress) -> None:
        with self._changed:
            self._tally.tokens = tokens_before + at.tokens
            self._tally.current = at.current
            for outcome in at.finished:
                self._finish(outcome)

    def _finish(self, outcome: Outcome) -> None:
        tally = self._tally
        tally.characters_done += self._at_hand.pop(outcome.id, 0)
        tally.counts[outcome.state] += 1
        if outcome.cause is not None:
            tally.failures.append(FailedUpload(outcome.id, type(outcome.cause).__name__, str(outcome.cause)))
        self._forget()
        self._end_if_done()

    def _end_if_done(self) -> None:
        if not self._is_busy() and self._tally.ended is None:
            self._tally.ended = self._clock()

    def _is_busy(self) -> bool:
        return self._has_more() or bool(self._at_hand)

    def _has_more(self) -> bool:
        return self._reading is not None or bool(self._waiting)

    def _left(self) -> float:
        """Characters still to be embedded; of files not yet read as many a byte as of those that were."""
        tally = self._tally
        unread = float(sum(map(len, self._waiting.values())))
        if tally.bytes_read:
            unread *= tally.characters_read / tally.bytes_read
        return sum(self._at_hand.values()) + unread

    def _check_room(self, size: int, files: int) -> None:
        if self._stopping:
            raise ApiError(503, "the server is shutting down", retry_after=10)
        if len(self._waiting) + files > self._max_waiting:
            raise _full(f"{self._max_waiting:,} files wait to be indexed")
        if self._held_bytes and self._held_bytes + size > self._max_waiting_bytes:
            raise _full(f"{self._held_bytes / 2**20:,.0f} MB of files wait to be indexed")


def _values(metadata: Mapping[str, Any], names: Iterable[str]) -> dict[str, list[Scalar]]:
    """Of each field its plain values; none of a field that is missing."""
    found: dict[str, list[Scalar]] = {}
    for name in names:
        value = metadata.get(name)
        several = value if isinstance(value, list) else [value]
        # A list of one value twice, or of 1 and True, would count a document twice.
        found[name] = list(dict.fromkeys(one for one in several if isinstance(one, (str, int, float, bool))))
    return found


def _has(values: Mapping[str, list[Scalar]], name: str, wanted: Scalar) -> bool:
    # True is no 1 for the store's filters either.
    return any(one == wanted and isinstance(one, bool) == isinstance(wanted, bool) for one in values[name])


def check_name(id: str) -> None:
    """Check that an id is fit for an upload: a relative path in plain Unicode.

    Raises:
        ApiError: 400, it is not.
    """
    reason = None
    if not id.strip():
        reason = "it is empty"
    elif len(id) > MAX_ID_CHARACTERS:
        reason = f"it has more than {MAX_ID_CHARACTERS:,} characters"
    elif any(ord(letter) < 32 or ord(letter) == 127 or "\ud800" <= letter <= "\udfff" for letter in id):
        reason = "it holds control characters or is not valid Unicode"
    elif any(part in ("", ".", "..") for part in id.split("/")):
        reason = "it must be a relative path like folder/file.txt, without . and .."
    if reason is not None:
        raise ApiError(400, f"this cannot be the name of a document: {reason}", param="id")


def _full(reason: str) -> ApiError:
    return ApiError(429, f"{reason}: try again in a moment", code="queue_full", retry_after=_RETRY_SECONDS)
