"""`LongDocumentIndex`: whole documents in, hits with their best passages out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from m2rag.errors import InvalidInputError, NonFiniteError, StoreError
from m2rag.index.documents import AddProgress, AddReport, Document, Failure, Hit, Stored, is_unicode, point_id
from m2rag.index.embedding import Embedder
from m2rag.index.filters import METADATA, MetadataFilter, filterable_fields, metadata_filter
from m2rag.index.hits import HIT_FIELDS, READ_AT_ONCE, Query, make_hits
from m2rag.index.ingest import DOC, LEXICAL, PASSAGES, Ingest, Monitor, check_embedder, mismatch
from m2rag.index.maintenance import delete_from, write_snapshot_of
from m2rag.index.modes import Mode, check_numbers, checked_order
from m2rag.index.ranking import Search, StoreSource
from m2rag.index.ranking import Source as Rankings
from m2rag.index.related import RelatedWords
from m2rag.index.sources import Source, plan, read
from m2rag.index.sync import FolderSync, SyncReport
from m2rag.stores import FieldKind, Manifest, Quantization, Schema, TextStore, VectorSpec, VectorStore, open_store
from m2rag.stores.lexical import Bm25

logger = logging.getLogger(__name__)

Report = TypeVar("Report", bound=AddReport)

POLICIES = ("error", "truncate", "window")

BATCH_TOKENS = 65_536
"""Tokens (estimated) embedded and stored in one go: two documents of full length. A kill loses at most this much."""

_DOCUMENT_FIELDS = ("text", "title", "metadata", "origin")


class LongDocumentIndex:
    """Whole documents with one vector each, kept in a folder or on a Qdrant server, found by meaning and by words.

    Every write and query is preceded by a check that the embedder is the one the index was built with. What `add` has
    stored survives the death of the process at any moment; running the same `add` again completes it, and embeds
    nothing twice. Searching from several threads is fine; writers take turns.

    Args:
        path_or_store: the index folder, the URL of a collection (`https://HOST:6333/COLLECTION` of a Qdrant server or
            cloud; others come with packages), or an open store.
        embedder: makes the vectors.
        create: make a new index where there is none.
        lexical: language of stemmer and stop words of a new index ("english", "german", ...), for search by words and
            hybrid search; None for neither. An index that is there keeps what it was made with.
        quantization: a new index also keeps its documents' vectors in 8 bits ("scalar") or 1 bit ("binary") a number:
            large ones are searched in these, and what is found is scored with the vectors themselves.
        filterable: metadata fields of a new index that filters are to be fast on, as `make_filterable` takes them.
        api_key: of the server; default: the environment variable QDRANT_API_KEY.

    Raises:
        InvalidInputError: there is no such language, quantization or kind of field.
        IndexNotFoundError: there is no index and `create` is False.
        IndexMismatchError: the index was built with another embedder.
        IndexLockedError: another process has the folder open.
        StoreError: the folder or collection holds other things, is damaged, or cannot be reached or written.
    """

    def __init__(
        self,
        path_or_store: str | Path | VectorStore,
        embedder: Embedder,
        *,
        create: bool = True,
        lexical: str | None = "english",
        quantization: Quantization | None = None,
        filterable: Mapping[str, FieldKind] | None = None,
        api_key: str | None = None,
    ) -> None:
        self._embedder = embedder
        self._writing = threading.Lock()
        self._related: dict[str, RelatedWords | None] = {}
        if isinstance(path_or_store, (str, Path)):
            new = new_index(embedder, lexical, quantization, filterable) if create else None
            self._store = open_store(path_or_store, create=new, api_key=api_key)
        else:
            self._store = path_or_store
        try:
            check_embedder(self._store, self._embedder)
            language = self._store.manifest.lexical
            self._bm25 = Bm25(language) if language else None
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LongDocumentIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def location(self) -> str:
        """Folder or URL of the index, without any key."""
        return self._store.location

    @property
    def modes(self) -> tuple[Mode, ...]:
        """What `search` can be asked for here, the default first: "hybrid", "dense", "lexical", or "dense" alone."""
        return ("dense",) if self._no_words() else ("hybrid", "dense", "lexical")

    def close(self) -> None:
        """Write what is pending and let others open the folder. Closing twice is fine."""
        self._store.close()

    def add(
        self,
        documents_or_paths: Source | Iterable[Source],
        *,
        on_too_long: str = "window",
        batch_tokens: int = BATCH_TOKENS,
        live: bool = False,
        progress: Callable[[AddProgress], None] | None = None,
    ) -> AddReport:
        """Index documents: new ones are added, changed ones replaced, unchanged ones left alone.

        Documents stream: while some are embedded, the next are read and the last written, so that about six times
        `batch_tokens` of text are in memory, however many there are. A document that cannot be read or embedded is
        reported, and its earlier version, if any, stays. Ctrl-C lets the group being embedded be stored, a second one
        does not; what was stored stays stored.

        Args:
            documents_or_paths: a `Document`, a file, a folder (read recursively), or an iterable of these.
            on_too_long: what to do with documents longer than the model takes: "window" (overlapping windows over all
                of the text), "truncate" (its beginning) or "error" (report it). A document that was cut or windowed
                counts as changed when this changes.
            batch_tokens: how much to embed and store in one go.
            live: for a process that must go on answering: what would hold up its other threads is left to `optimize`.
            progress: called as work goes on, by one thread at a time, not always by this one.

        Returns:
            What was done.

        Raises:
            DocumentError: a folder holds no document of a supported kind; nothing was done.
            IndexMismatchError: the embedder is not the index's, or its vectors have another dimension.
            InvalidInputError, InvalidInputTypeError: an argument is wrong.
            RemoteError: a remote model gave not one vector of a group of documents; those before are stored.
            StoreError: the store failed.
        """
        report = AddReport()
        items, total = plan(documents_or_paths, report.skipped)
        monitor = Monitor(report, total, progress)
        ingest = self._ingest(on_too_long, batch_tokens, monitor)
        with self._writing:
            self._run(ingest, read(items), batch_tokens, report, live)
        return self._finished(report, monitor)

    def sync(
        self,
        folder: str | Path,
        *,
        allow_empty: bool = False,
        dry_run: bool = False,
        only: Collection[str | Path] | None = None,
        on_too_long: str = "window",
        batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[AddProgress], None] | None = None,
    ) -> SyncReport:
        """Make the index hold what a folder holds: `add` the folder, then delete the documents whose files are gone.

        Deleted is only what was indexed from this folder, by `sync` or `add`; a document is not if its file, or one
        row of its file, could not be read. Killed at any moment and run again, it ends in the same index.

        Args:
            folder: the folder, as given to `add`.
            allow_empty: also take a folder that is missing or has no documents, and delete what came from it. A disk
                that is not mounted looks the same, so this is an error by default.
            dry_run: only tell what would be done; the folder is read, nothing is embedded.
            only: files and folders in it to look at, where it is known that no others have changed.
            on_too_long, batch_tokens, progress: as `add` takes them.

        Returns:
            What was done.

        Raises:
            DocumentError: the folder is missing, unreadable or empty; nothing was done.
            others: as `add` raises them.
        """
        found = FolderSync(folder, allow_empty=allow_empty, only=only)
        report = SyncReport(skipped=found.skipped, dry_run=dry_run)
        monitor = Monitor(report, found.total, progress)
        ingest = self._ingest(on_too_long, batch_tokens, monitor)
        with self._writing:
            if dry_run:
                for pending in ingest.changed(found.documents(), batch_tokens):
                    (report.to_add if pending.is_new else report.to_replace).append(pending.document.id)
                    monitor.stored([pending], 0)
                report.deleted = [id for ids in found.gone(self._store) for id in ids]
            else:
                self._run(ingest, found.documents(), batch_tokens, report)
                for ids in found.gone(self._store):
                    self._store.delete([point_id(id) for id in ids])
                    report.deleted += ids
                self._store.flush()
        report.deleted.sort()
        return self._finished(report, monitor)

    def optimize(self) -> None:
        """Build what makes searches in many documents fast, where that is worth while; `add` and `sync` end with this.

        In a folder it stops all threads of the process for the while, up to minutes after much was added.
        """
        with self._writing:
            self._store.optimize()

    def _ingest(self, on_too_long: str, batch_tokens: int, monitor: Monitor) -> Ingest:
        if on_too_long not in POLICIES:
            raise InvalidInputError(f"on_too_long must be one of {', '.join(POLICIES)}, not {on_too_long!r}")
        if batch_tokens < 1:
            raise InvalidInputError(f"batch_tokens must be at least 1, not {batch_tokens}")
        check_embedder(self._store, self._embedder)
        return Ingest(self._store, self._embedder, on_too_long, monitor)

    def _run(
        self,
        ingest: Ingest,
        documents: Iterable[Document | Failure],
        batch_tokens: int,
        report: AddReport,
        live: bool = False,
    ) -> None:
        try:
            ingest.run(documents, batch_tokens)
        finally:
            self._store.flush()
        if report.added or report.replaced:
            self._store.optimize(live=live)

    def _finished(self, report: Report, monitor: Monitor) -> Report:
        report.seconds = monitor.seconds
        logger.info(
            "%s: %d added, %d replaced, %d unchanged, %d deleted, %d failed, %d tokens in %.1f s",
            *(self._store.location, report.added, report.replaced, report.unchanged),
            len(report.deleted) if isinstance(report, SyncReport) else 0,
            *(len(report.failed), report.n_tokens, report.seconds),
        )
        return report

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        mode: Mode | None = None,
        weights: tuple[float, float] | None = None,
        rescore: float | None = None,
        filter: MetadataFilter | None = None,
        passages: bool = True,
        n_passages: int = 3,
    ) -> list[Hit]:
        """The `k` documents that fit a query best, best first.

        Args:
            query: what is looked for, in any words.
            k: how many documents.
            mode: "dense" (cosine of whole documents), "lexical" (BM25), or "hybrid": the scores of both, each brought
                to 0 (the last document considered) to 1 (the first), averaged. Default: hybrid where the index has
                words, else dense.
            weights: of the dense and the lexical score, in hybrid mode. Default: 0.7 and 1.
            rescore: weight of the best passage, 0 to 1, in the order of the best documents (three times `k`, at least
                30): in dense and hybrid mode against the document's own vector, in lexical mode against its words.
                Default: 0.5 in hybrid mode, else 0.
            filter: metadata fields and the value each must have, a range or several values: `{"year": 2020}`, `{"year":
                {"gte": 2015, "lt": 2020}}`, `{"suffix": {"in": [".pdf", ".md"]}}`. Dates are strings in ISO 8601. All
                must hold; a list in the metadata matches by any of its items.
            passages: also find the passages of each hit that fit the query best: by their vectors, their words (BM25
                among the document's passages) or both, as the mode has it.
            n_passages: at most how many per hit; they do not overlap.

        Returns:
            Hits; `score` is what orders them: the cosine, BM25's number, or a mean of scores from 0 to about 1.
            `document_score` is always the cosine.

        Raises:
            InvalidInputError: a number is out of range, the filter is malformed, the query is empty or not valid
                Unicode, or the mode needs words and the index has none.
            IndexMismatchError: the embedder is not the index's.
            NonFiniteError: the query's vector holds NaN or infinity.
        """
        rankings = StoreSource(self._store, self._bm25, metadata_filter(filter))
        return self._search(rankings, query, k, mode, weights, rescore, n_passages if passages else 0)

    def _search(
        self,
        rankings: Rankings,
        query: str,
        k: int,
        mode: Mode | None,
        weights: tuple[float, float] | None,
        rescore: float | None,
        n_passages: int,
    ) -> list[Hit]:
        """`search` in rankings from anywhere."""
        check_numbers(k, n_passages)
        if not is_unicode(query):
            raise InvalidInputError("the query is not valid Unicode: it holds a lone surrogate")
        order = checked_order(mode, weights, rescore, no_words=self._no_words())
        vector = self._query_vector(query)
        points, scores = Search(self._store, rankings, query, vector, order).best(k)
        bm25 = self._bm25 or _bm25_of(language_of_words(self._store))
        related = self._related_words(bm25) if n_passages and order.mode == "hybrid" else None
        asked = Query(query, vector, order.mode, bm25, related)
        return make_hits(self._store, points, scores, asked, n_passages)

    def _related_words(self, bm25: Bm25 | None) -> RelatedWords | None:
        """Of a language, made at its first search; None where the embedder knows nothing of words."""
        if bm25 is None:
            return None
        if bm25.language not in self._related:
            words = getattr(self._embedder, "word_vectors", None)
            self._related[bm25.language] = RelatedWords(bm25, words) if words is not None else None
        return self._related[bm25.language]

    def _no_words(self) -> str | None:
        """Why documents cannot be found by their words; None if they can."""
        if language_of_words(self._store):
            return None
        return f"the index at {self.location} has no words to search by: it was made without (lexical=None)"

    def _query_vector(self, query: str) -> np.ndarray:
        """Checked vector (D,) of a query, by the embedder of the index."""
        check_embedder(self._store, self._embedder)
        vector = np.asarray(self._embedder.embed_query(query), dtype=np.float32)
        if vector.shape != (self._store.manifest.dimension,):
            raise mismatch(self._store, f"a query vector of shape {vector.shape}")
        if not np.isfinite(vector).all():
            raise NonFiniteError("the query's vector holds NaN or infinity: the embedder's weights are damaged")
        return vector

    def delete(self, ids: str | Iterable[str]) -> int:
        """Remove documents by id; returns how many were there."""
        with self._writing:
            return len(delete_from(self._store, ids))

    def snapshot(self, file: str | Path) -> None:
        """Write the index, as it is now, into one new file; `restore_index` makes a folder of it again.

        Others can search meanwhile; writers wait.

        Args:
            file: a gzipped tar; there must be none yet.

        Raises:
            StoreError: the index is on a server, which makes its own, or the file is there or cannot be written.
        """
        with self._writing:
            write_snapshot_of(self._store, file)

    def get(self, id: str) -> Document | None:
        """The document with this id, as stored; None if there is none."""
        for point in self._store.retrieve([point_id(id)], payload=_DOCUMENT_FIELDS).values():
            stored = point.payload
            return Document(id, stored["text"], stored["title"], stored["metadata"], stored["origin"])
        return None

    def describe(self, ids: Iterable[str]) -> list[Stored]:
        """What is known of the documents with these ids, in their order; those that are not there are left out."""
        wanted = [point_id(id) for id in ids]
        described = []
        for start in range(0, len(wanted), READ_AT_ONCE):
            some = wanted[start : start + READ_AT_ONCE]
            points = self._store.retrieve(some, payload=(*HIT_FIELDS, "text"))
            described += [_stored(points[id].payload) for id in some if id in points]
        return described

    def ids(self) -> list[str]:
        """Ids of all documents, sorted."""
        return sorted(str(id) for id in self._store.values("id"))

    def __len__(self) -> int:
        return self._store.count()

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and bool(self._store.retrieve([point_id(id)]))

    def make_filterable(self, field: str, kind: FieldKind) -> None:
        """Give a metadata field an index, so that filters on it are fast in large collections; it is kept up to date.

        Such a field is taken to have values of one kind: documents that have others in it are found by no range of it,
        and a filter by whole numbers finds none that are not whole.

        Args:
            field: of the metadata.
            kind: "keyword" (strings), "integer", "float" (all numbers), "bool" or "datetime" (strings in ISO 8601).

        Raises:
            InvalidInputError: there is no such kind, or the engine cannot address the field.
        """
        (path,) = filterable_fields({field: kind})
        with self._writing:
            self._store.make_filterable(path, kind)

    def info(self) -> dict[str, Any]:
        """What it holds: path, documents, tokens, size_bytes, fingerprint, model, dimension, lexical, created, ....

        `path` is the folder or URL; `windowed` how many documents were longer than the model takes at once (None in an
        index made before that was listed); `size_bytes` is None on a server, which does not tell; `lexical` is the
        language of its words, None where it has none; `filterable` the metadata fields that filters are fast on, and
        their kind.
        """
        return _info(self._store)


def read_info(path: str | Path, *, api_key: str | None = None) -> dict[str, Any]:
    """What an index holds, without its embedder; see `LongDocumentIndex.info`.

    Raises:
        IndexNotFoundError, IndexLockedError, StoreError: it cannot be opened.
    """
    store = open_store(path, api_key=api_key)
    try:
        return _info(store)
    finally:
        store.close()


def new_index(
    embedder: Embedder,
    lexical: str | None = "english",
    quantization: Quantization | None = None,
    filterable: Mapping[str, FieldKind] | None = None,
) -> tuple[Manifest, Schema]:
    """Manifest and schema of an index that is created now with this embedder.

    Args:
        embedder: makes its vectors.
        lexical: language of its words; None for none.
        quantization: of its documents' vectors.
        filterable: metadata fields that filters are to be fast on.

    Raises:
        InvalidInputError: there is no such language, quantization or kind of field.
    """
    if lexical is not None:
        Bm25(lexical)
    manifest = new_manifest(embedder, lexical, quantization)
    return manifest, index_schema(embedder.dimension, lexical, quantization, filterable)


def new_manifest(embedder: Embedder, lexical: str | None = None, quantization: Quantization | None = None) -> Manifest:
    """The manifest of an index that is created now with this embedder."""
    try:
        ours = version("m2rag")
    except PackageNotFoundError:  # imported from a source tree that is not installed
        ours = "unknown"
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    model = getattr(embedder, "model_source", None)
    return Manifest(
        *(embedder.fingerprint, embedder.dimension, created, ours),
        model=model,
        lexical=lexical,
        quantization=quantization,
    )


def index_schema(
    dimension: int,
    lexical: str | None = None,
    quantization: Quantization | None = None,
    filterable: Mapping[str, FieldKind] | None = None,
) -> Schema:
    """Vectors and fields of a collection of documents; with a language, sparse vectors of their words."""
    if quantization not in (None, *get_args(Quantization)):
        raise InvalidInputError(
            f"quantization must be one of {', '.join(get_args(Quantization))}, not {quantization!r}"
        )
    vectors = (
        VectorSpec(DOC, dimension, quantization=quantization),
        VectorSpec(PASSAGES, dimension, multi=True, searched=False),
    )
    listed: Mapping[str, Literal["keyword", "integer"]] = {
        "id": "keyword",
        "n_tokens": "integer",
        "n_windows": "integer",
    }
    return Schema(vectors, listed, (LEXICAL,) if lexical else (), filterable_fields(filterable))


def language_of_words(store: VectorStore) -> str | None:
    """Language in which a store's documents can be found by their words; None if they cannot."""
    return store.text_language if isinstance(store, TextStore) else store.manifest.lexical


def _bm25_of(language: str | None) -> Bm25 | None:
    """For the words of passages; None also for a language that only the store knows."""
    try:
        return Bm25(language) if language else None
    except InvalidInputError:
        return None


def _stored(payload: Mapping[str, Any]) -> Stored:
    return Stored(
        id=payload["id"],
        title=payload["title"],
        metadata=dict(payload["metadata"]),
        n_tokens=payload["n_tokens"],
        n_characters=len(payload["text"]),
        n_windows=payload["n_windows"],
        truncated=payload["n_used"] < payload["n_tokens"],
    )


def _windowed(store: VectorStore) -> int | None:
    """Documents longer than the model takes at once; None for an index that was made before it kept a list of them."""
    try:
        counts = store.values("n_windows")
    except StoreError:
        return None
    return sum(count for windows, count in counts.items() if int(windows) > 1)


def _info(store: VectorStore) -> dict[str, Any]:
    tokens = sum(int(value) * count for value, count in store.values("n_tokens").items())
    held: dict[str, Any] = {"path": store.location, "documents": store.count(), "tokens": tokens}
    held["windowed"] = _windowed(store)
    filterable = {path[1]: kind for path, kind in store.filterable().items() if path[0] == METADATA and len(path) == 2}
    held["size_bytes"] = store.size_bytes()
    return {**held, **asdict(store.manifest), "lexical": language_of_words(store), "filterable": filterable}
