"""A collection of documents in MongoDB behind the store protocol of m2rag."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import numpy as np
from pymongo import InsertOne, ReplaceOne
from pymongo.errors import BulkWriteError

from m2rag.errors import IndexMismatchError, IndexNotFoundError, InvalidInputError, StoreError
from m2rag.stores import FieldKind, Filter, Manifest, Point, Schema, SparseVector, VectorSpec
from m2rag.stores.qdrant import check_points
from m2rag.stores.retry import Patience
from m2rag_mongodb.indexes import TIMEOUT, IndexProgress, SearchIndex, TextIndex, VectorIndex, make_index
from m2rag_mongodb.layout import (
    FILTERS,
    MANIFEST_ID,
    OURS,
    Packed,
    field_name,
    pack,
    stored_vector,
    to_filter,
    vector_path,
)
from m2rag_mongodb.parts import Parts
from m2rag_mongodb.queries import SCORE, both, index_name, shown, text_stages, vector_stage
from m2rag_mongodb.record import StoreOptions, create_record, find_record, read_manifest
from m2rag_mongodb.searches import READY_SECONDS, Searches
from m2rag_mongodb.server import DUPLICATE_KEY, Caller, Doc, Server
from m2rag_mongodb.vectors import to_bindata

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 8_000_000
FIRST_CONTACT_SECONDS = 10.0
"""A server that does not answer when it is first asked is more often a wrong URL than a restart."""

EXACT_UP_TO = 20_000
"""Collections up to this many documents are searched exactly: that is fast, and no recall to think about."""

READ_AT_ONCE = 16
"""Documents whose vectors are in memory together where this process compares them."""

OVERSAMPLING = 4
"""With vectors of 8 or 1 bits: how many times the documents asked for are found by them and ordered by the floats."""

_TRIES = 5


class MongoStore:
    """A collection of MongoDB Atlas, what it was built with in one of its documents.

    Writes are acknowledged by a majority before they return. What is larger than MongoDB takes in one piece is kept in
    the collection `NAME.parts`: parts are written before the document that names them and removed after the one that
    no longer does, so that a reader finds a document whole, in its old form or its new. A server that is away is
    waited for, then it is an error. Before every write and query it is checked that the collection is still of our
    model.

    Search indexes are made when the collection is opened and are missing. Nothing waits for them until the first query
    and the end of an upload; a query of an index that is not ready is never answered with nothing.

    Args:
        caller: makes the requests.
        collection: name of the collection.
        create: what to create where there is no collection of this name; None to only open. MongoDB has no sparse
            vectors: `sparse` of the schema is left out, and the manifest's `lexical` with it.
        options: for a new collection; by default a text index in the manifest's `lexical`, where that is set.
        location: how a person would name the place, without any password; DATABASE.COLLECTION by default.
        patience: how long to wait for a server that does not answer.
        ready_seconds: how long to wait for a search index that is being built.
        on_close: called once when the store is closed.

    Raises:
        IndexNotFoundError: there is no such collection and `create` is None.
        DefinitionMismatchError: it has a search index of our name that is none of ours.
        SearchUnavailableError: the server has no vector search.
        InvalidInputError: an option is wrong.
        StoreError: the collection was not made by m2rag, or the server cannot be reached or refuses.
    """

    def __init__(
        self,
        caller: Caller,
        collection: str,
        *,
        create: tuple[Manifest, Schema] | None = None,
        options: StoreOptions | None = None,
        location: str | None = None,
        patience: Patience | None = None,
        ready_seconds: float = READY_SECONDS,
        on_close: Callable[[], object] | None = None,
    ) -> None:
        patience = patience or Patience()
        hasty = replace(patience, seconds=min(patience.seconds, FIRST_CONTACT_SECONDS))
        self._server = Server(caller, location or f"{caller.name}.{collection}", hasty)
        self._collection = collection
        self._ready_seconds = ready_seconds
        self._parts = Parts(self._server, collection)
        self._on_close = on_close
        self._closed = False
        self._unseen: tuple[str, np.ndarray, UUID, str] | None = None
        record = find_record(self._server, collection)
        if record is None:
            if create is None:
                raise IndexNotFoundError(f"there is no index at {self.location}")
            record = create_record(
                self._server, collection, self._parts, *create, options or StoreOptions(lexical=create[0].lexical)
            )
        self._manifest = read_manifest(record, self.location)
        self._specs = {one["name"]: VectorSpec(**one) for one in record["vectors"]}
        self._options = StoreOptions(
            **{**record["options"], "filter_fields": tuple(record["options"]["filter_fields"])}
        )
        self._fields = ("metadata", *record["listed_fields"])
        self._generation = str(record["generation"])
        for index in self.search_indexes:
            make_index(self._server, collection, index)
        self._searches = Searches(self._server, collection, self.search_indexes, ready_seconds)
        self._index_fields(record["listed_fields"])
        self._server.patience = patience

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"

    @property
    def location(self) -> str:
        """URL or name of the collection, without user and password."""
        return self._server.location

    @property
    def manifest(self) -> Manifest:
        """What the collection was built with."""
        return self._manifest

    @property
    def options(self) -> StoreOptions:
        """How it keeps and searches its documents."""
        return self._options

    @property
    def text_language(self) -> str | None:
        """Language of Lucene's analyzer of the text index; None where there is none."""
        return self._options.lexical

    @property
    def search_indexes(self) -> list[SearchIndex]:
        """The search indexes of the collection, as they should be."""
        kind = self._options.vectors
        found: list[SearchIndex] = [
            VectorIndex(
                spec.size,
                path=spec.name,
                name=index_name(spec.name),
                similarity="euclidean" if kind == "packed_bit" else "cosine",
                quantization=spec.quantization,
                filters=(FILTERS, *self._options.filter_fields),
            )
            for spec in self._specs.values()
            if spec.searched
        ]
        if self._options.lexical:
            found.append(TextIndex(("text", "title"), index_name("text"), f"lucene.{self._options.lexical}"))
        return found

    def wait_until_ready(
        self, timeout: float = TIMEOUT, *, progress: Callable[[IndexProgress], None] | None = None
    ) -> None:
        """Wait until the search indexes answer by the definitions they should have.

        Args:
            timeout: seconds, for each.
            progress: called at every look.

        Raises:
            IndexNotReadyError: the time is up.
            StoreError: an index failed.
        """
        self._check_open()
        for index in self.search_indexes:
            self._searches.wait(index, timeout, progress)

    def count(self) -> int:
        """Points in the collection."""
        return int(self._ask("count_documents", {"_id": {"$ne": MANIFEST_ID}}))

    def upsert(self, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Write or replace points; when this returns a majority of the servers has them.

        Raises:
            IndexMismatchError: the collection was made anew with another model.
            PointTooLargeError, UnstorableError: points MongoDB cannot hold; no point of the call is written.
            StoreError: a vector has a wrong dimension or holds NaN or infinity (then no point of the call is written),
                or the server failed.
        """
        self._check_open()
        check_points(points, self._manifest.dimension, self.location)
        if not points:
            return
        last = {point.id: point for point in (reversed(points) if insert_only else points)}  # one of each id
        mark = f"write={secrets.token_hex(8)}"
        packed = pack(
            list(last.values()),
            self._specs,
            self._options.vectors,
            self._fields,
            mark=mark,
            generation=self._generation,
            location=self.location,
        )
        self._verify()
        for group in _grouped(packed):
            self._write(group, insert_only)
        self._remember(list(last.values()), mark)

    def retrieve(
        self, ids: Sequence[UUID], *, payload: Sequence[str] = (), vectors: Sequence[str] = ()
    ) -> dict[UUID, Point]:
        """Points by id with the named payload fields and vectors; ids that are not stored are absent."""
        self._check_open()
        found: dict[UUID, Point] = {}
        missing = [str(id) for id in ids]
        for _ in range(_TRIES):
            if not missing:
                break
            documents = self._fetch("find", {"_id": {"$in": missing}}, self._projection(payload, vectors))
            points = self._points(documents, payload, vectors)
            found.update(points)
            # Replaced by someone while we read: the parts of the old form are gone, those of the new are there.
            missing = [document["_id"] for document in documents if UUID(document["_id"]) not in points]
        if missing:
            raise StoreError(
                f"{len(missing)} documents of {self.location} lack parts, such as {missing[0]}: "
                "delete them and add them again"
            )
        return found

    def query(
        self,
        name: str,
        vector: np.ndarray | SparseVector,
        *,
        limit: int,
        filter: Filter | None = None,
        payload: Sequence[str] = (),
    ) -> list[Point]:
        """The `limit` points nearest to `vector`, best first, by cosine; see `nearest`.

        Raises:
            IndexMismatchError: the collection was made anew with another model.
            IndexNotReadyError: the search index is still being built.
            InvalidInputError: the filter asks for a field that is not kept for filters.
            StoreError: the vector is sparse or not searched in this collection, or the server failed.
        """
        if isinstance(vector, SparseVector):
            raise StoreError(f"the index at {self.location} has no sparse vectors: MongoDB has none")
        return self.nearest(name, vector, limit=limit, filter=filter, payload=payload)

    def nearest(
        self,
        name: str,
        vector: np.ndarray,
        *,
        limit: int,
        filter: Filter | None = None,
        where: Mapping[str, Any] | None = None,
        exact: bool | None = None,
        payload: Sequence[str] = (),
    ) -> list[Point]:
        """The `limit` points nearest to `vector` (D,), best first; the score is the cosine.

        Args:
            name: of the vector.
            vector: (D,).
            limit: how many points.
            filter: payload fields and the values they must have.
            where: a condition in MongoDB's own language, on the `filter_fields` of the collection.
            exact: compare with every vector, or go through the graph. Default: exact up to 20,000 documents.
            payload: fields to return.

        Raises:
            as `query`.
        """
        self._check_open()
        stage, verified = self._vector_stage(name, vector, limit, filter, where, exact)
        self._verify()
        extra = (name,) if verified else ()
        last = shown(self._projection(payload, extra), "vectorSearchScore")
        found = self._searches.run(index_name(name), [stage, last])
        points = self._scored(found, payload, extra)
        if not verified:
            return [replace(point, score=2 * point.score - 1) for point in points]
        points = [replace(point, vectors={}, score=_cosine(point.vectors[name], vector)) for point in points]
        return sorted(points, key=lambda point: -point.score)[:limit]

    def by_words(
        self,
        text: str,
        *,
        limit: int,
        filter: Filter | None = None,
        where: Mapping[str, Any] | None = None,
        payload: Sequence[str] = (),
    ) -> list[Point]:
        """The `limit` points whose text or title fits the words best (Lucene's BM25), best first.

        Raises:
            InvalidInputError: the collection has no text index.
            as `query` otherwise.
        """
        self._check_open()
        stages = self._text_stages(text, limit, filter, where)
        self._verify()
        last = shown(self._projection(payload, ()), "searchScore")
        return self._scored(self._searches.run(index_name("text"), [*stages, last]), payload)

    def similarities(self, name: str, vector: np.ndarray, ids: Sequence[UUID]) -> dict[UUID, float]:
        """The cosine of each point's vector of this name to `vector` (D,), of a matrix its nearest row's."""
        found: dict[UUID, float] = {}
        for start in range(0, len(ids), READ_AT_ONCE):
            points = self.retrieve(ids[start : start + READ_AT_ONCE], vectors=(name,))
            for id, point in points.items():
                if name in point.vectors:
                    found[id] = _cosine(point.vectors[name], vector)
        return found

    def values(self, listed_field: str) -> dict[str | int, int]:
        """Every value of a listed payload field -> number of points that have it."""
        pipeline = [
            {"$match": {"_id": {"$ne": MANIFEST_ID}, listed_field: {"$exists": True}}},
            {"$project": {"_id": 0, listed_field: 1}},
            {"$unwind": f"${listed_field}"},
            {"$group": {"_id": f"${listed_field}", "n": {"$sum": 1}}},
        ]
        return {one["_id"]: int(one["n"]) for one in self._fetch("aggregate", pipeline)}

    def filterable(self) -> dict[tuple[str, ...], str]:
        """Payload fields, by path, that filters may ask for ranges of; MongoDB has no kinds."""
        return {tuple(name.split(".")): "any" for name in self._options.filter_fields}

    def make_filterable(self, path: tuple[str, ...], kind: FieldKind) -> None:
        """Let filters ask for ranges of a payload field, of whatever kind; equality and lists need no index.

        Returns when the search index knows the field, after `ready_seconds` at most.

        Raises:
            IndexNotReadyError: the time is up; the index goes on being built.
            InvalidInputError: MongoDB cannot address the field.
            StoreError: the server cannot be reached or refuses.
        """
        self._check_open()
        name = field_name(path)
        if name in self._options.filter_fields:
            return
        self._verify()
        before = self._options
        self._options = replace(before, filter_fields=(*before.filter_fields, name))
        try:
            for index in self.search_indexes:
                make_index(self._server, self._collection, index, update=True)
            # After the index: more fields there than the record names are no obstacle to opening the collection.
            self._ask("update_one", {"_id": MANIFEST_ID}, {"$addToSet": {"options.filter_fields": name}})
        except BaseException:
            self._options = before  # else the next call would take it for done
            raise
        self._searches = Searches(self._server, self._collection, self.search_indexes, self._ready_seconds)
        for index in self.search_indexes:
            self._searches.wait(index, self._ready_seconds)

    def delete(self, ids: Sequence[UUID]) -> None:
        """Remove points; ids that are not stored are ignored."""
        self._check_open()
        if not ids:
            return
        self._verify()
        names = [str(id) for id in ids]
        before = self._parts.named(names)
        self._parts.release(before)
        self._ask("delete_many", {"_id": {"$in": names}})
        self._parts.remove(before)

    def flush(self) -> None:
        """Nothing to do: a majority of the servers has acknowledged what was written."""
        self._check_open()

    def optimize(self, *, live: bool = False) -> None:
        """Wait until searches find what was written last, for `ready_seconds` at most; then log that they do not yet.

        A search index learns of documents some time after they are written: without this, a search right after an
        upload would miss some. What killed processes left is swept up, too.
        """
        self._check_open()
        self._parts.sweep()
        if self._unseen is None:
            return
        name, vector, id, mark = self._unseen
        self._unseen = None
        if self._ask("count_documents", {"_id": str(id), FILTERS: mark}) == 0:
            return  # it was there before, or has been replaced or removed since
        query = to_bindata(vector, self._options.vectors)
        stage = vector_stage(name, query, 1, {FILTERS: {"$eq": mark}}, exact=True)
        why = self._searches.catch_up(index_name(name), [stage, {"$project": {"_id": 1}}])
        if why:
            logger.warning("%s: all is stored, but searches do not find all of it yet: %s", self.location, why)

    def size_bytes(self) -> int | None:
        """None: a cluster does not tell what one collection takes with its search indexes."""
        return None

    def close(self) -> None:
        """Let go of the server. Closing twice is fine."""
        on_close, self._on_close = self._on_close, None
        self._closed = True
        if on_close is not None:
            on_close()

    # The collection

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the index at {self.location} is closed")

    def _ask(self, method: str, *args: Any, **options: Any) -> Any:
        self._check_open()
        return self._server.ask(self._collection, method, *args, **options)

    def _fetch(self, method: str, *args: Any, **options: Any) -> list[Doc]:
        self._check_open()
        return self._server.fetch(self._collection, method, *args, **options)

    def _index_fields(self, fields: Iterable[str]) -> None:
        for collection, names in ((self._collection, fields), (self._parts.name, ["point", "named"])):
            there = {name for one in self._server.fetch(collection, "list_indexes") for name in one["key"]}
            for name in names:
                if name not in there:
                    self._server.ask(collection, "create_index", name)

    def _verify(self) -> None:
        """Check that the collection is still of our fingerprint."""
        found = self._fetch("find", {"_id": MANIFEST_ID})
        if not found:
            raise StoreError(f"the index at {self.location} is gone: its collection was deleted on the server")
        stored, ours = read_manifest(found[0], self.location), self._manifest
        if (stored.fingerprint, stored.dimension) != (ours.fingerprint, ours.dimension):
            raise IndexMismatchError(
                self.location,
                f"{stored.fingerprint} ({stored.dimension} dimensions)",
                f"{ours.fingerprint} ({ours.dimension} dimensions)",
            )

    # Writing

    def _write(self, group: Sequence[Packed], insert_only: bool) -> None:
        ids = [one.id for one in group]
        ours = {one.id: one.revision for one in group if one.revision}
        before = {} if insert_only else self._parts.named(ids)
        self._parts.write(group)
        self._parts.release(before)
        if insert_only:
            requests: list[Any] = [InsertOne(one.document) for one in group]
        else:
            requests = [ReplaceOne({"_id": one.id}, one.document, upsert=True) for one in group]
        try:
            self._ask("bulk_write", requests, ordered=False)
        except BulkWriteError as error:
            self._check_only_there(error, group, insert_only)
        if ours and insert_only:  # what was there keeps the parts it names, and ours are not needed
            now = self._parts.named(ids)
            before = {id: revision for id, revision in ours.items() if now.get(id) != revision}
        self._parts.confirm({id: revision for id, revision in ours.items() if before.get(id) != revision})
        self._parts.remove(before)

    def _check_only_there(self, error: BulkWriteError, group: Sequence[Packed], insert_only: bool) -> None:
        """Of a bulk write that only inserts, what is there already is no error; everything else is."""
        for one in (error.details or {}).get("writeErrors", []):
            if one["code"] != DUPLICATE_KEY or not insert_only:
                raise StoreError(
                    f"the index at {self.location} refused to write {group[one['index']].id}: {one['code']} "
                    f"{str(one.get('errmsg'))[:300]}"
                ) from None  # the driver's error holds the documents

    def _remember(self, points: Sequence[Point], mark: str) -> None:
        """What the search index must know before it is up to date."""
        for point in reversed(points):
            for name, vector in point.vectors.items():
                if self._specs[name].searched and vector.any():  # a cosine needs a direction
                    self._unseen = (name, vector, point.id, mark)
                    return

    # Searching

    def _vector_stage(
        self,
        name: str,
        vector: np.ndarray,
        limit: int,
        filter: Filter | None,
        where: Mapping[str, Any] | None,
        exact: bool | None,
    ) -> tuple[Doc, bool]:
        """The stage, and whether what it finds is to be put in order by the float copies."""
        spec = self._specs.get(name)
        if spec is None or not spec.searched:
            raise StoreError(f"the index at {self.location} has no vector {name!r} that is searched")
        if vector.shape != (spec.size,):
            raise StoreError(
                f"a query of shape {vector.shape} does not fit {name!r} of {self.location}: ({spec.size},)"
            )
        verified = self._options.vectors != "float32"
        if exact is None:
            exact = int(self._ask("estimated_document_count")) <= EXACT_UP_TO
        query = to_bindata(vector, self._options.vectors)
        condition = both(to_filter(filter, self._fields, self._options.filter_fields), where)
        wanted = limit * (OVERSAMPLING if verified else 1)
        return vector_stage(name, query, wanted, condition, exact=exact), verified

    def _text_stages(self, text: str, limit: int, filter: Filter | None, where: Mapping[str, Any] | None) -> list[Doc]:
        if not self._options.lexical:
            raise InvalidInputError(f"{self.location} has no text index: it was made with lexical=None")
        return text_stages(text, limit, both(to_filter(filter, self._fields, self._options.filter_fields), where))

    # Reading

    def _projection(self, payload: Sequence[str], vectors: Sequence[str]) -> Doc:
        shown: Doc = {"_id": 1, **dict.fromkeys(payload, 1)}
        if payload or vectors:
            shown[f"{OURS}.outside"] = 1
        for name in vectors:
            kept = not self._specs[name].searched or self._options.vectors != "float32"
            shown[vector_path(name) if kept else name] = 1
        return shown

    def _points(self, documents: Sequence[Doc], payload: Sequence[str], vectors: Sequence[str]) -> dict[UUID, Point]:
        """Points of documents; without those whose parts are missing."""
        wanted = {*payload, *(vector_path(name) for name in vectors)}
        outside = self._parts.of(documents, wanted)
        found: dict[UUID, Point] = {}
        for one in documents:
            moved = outside.get(one["_id"], {})
            if moved is not None:
                point = self._point(one, payload, vectors, moved)
                found[point.id] = point
        return found

    def _scored(self, documents: Sequence[Doc], payload: Sequence[str], vectors: Sequence[str] = ()) -> list[Point]:
        """Points of a search's answer in its order."""
        scores = {UUID(one["_id"]): float(one[SCORE]) for one in documents}
        points = self._points(documents, payload, vectors)
        return [replace(point, score=scores[id]) for id, point in points.items()]

    def _point(self, document: Doc, payload: Sequence[str], vectors: Sequence[str], moved: Mapping[str, Any]) -> Point:
        arrays = {name: stored_vector(document, name, moved) for name in vectors}
        fields = {name: moved.get(name, document.get(name)) for name in payload if name in document or name in moved}
        return Point(UUID(document["_id"]), {name: one for name, one in arrays.items() if one is not None}, fields)


def _cosine(vector: np.ndarray, query: np.ndarray) -> float:
    """Of a vector (D,) or of the nearest row of a matrix (P, D) to a query (D,)."""
    lengths = np.linalg.norm(vector, axis=-1) * np.linalg.norm(query)
    return float(np.max(vector @ query / np.maximum(lengths, 1e-12)))


def _grouped(packed: Sequence[Packed]) -> Iterator[list[Packed]]:
    """Groups that make requests of `MAX_REQUEST_BYTES` at most; a larger document goes alone."""
    group: list[Packed] = []
    size = 0
    for one in packed:
        if group and size + one.size > MAX_REQUEST_BYTES:
            yield group
            group, size = [], 0
        group.append(one)
        size += one.size
    if group:
        yield group
