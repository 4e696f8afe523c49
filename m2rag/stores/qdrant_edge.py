"""The default store: Qdrant's engine inside this process, in a folder. Only this file knows `qdrant_edge`."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast, get_args
from uuid import UUID

import numpy as np
import qdrant_edge as engine

from m2rag.errors import IndexNotFoundError, StoreError
from m2rag.stores.base import FieldKind, Filter, Manifest, Point, Schema, SparseVector, VectorSpec
from m2rag.stores.folder import LOCK_FILE, MANIFEST_FILE, FolderLock, read_manifest, size_on_disk, write_manifest
from m2rag.stores.qdrant import (
    EXACT_UP_TO,
    NO_GRAPH,
    OVERSAMPLING,
    Condition,
    check_points,
    conditions,
    field_key,
    field_path,
    request_bytes,
)
from m2rag.stores.snapshots import SHARD, write_snapshot

logger = logging.getLogger(__name__)

UNFINISHED_SHARD = "shard.unfinished"
RESERVED_BYTES = 64 << 20
"""Room a disk must have before a write; the engine's files grow by 32 MB at a time."""

_QUANTIZED: dict[str, Any] = {
    "scalar": lambda: engine.ScalarQuantizationConfig(engine.ScalarType.Int8, memory=engine.Memory.Pinned),
    "binary": lambda: engine.BinaryQuantizationConfig(memory=engine.Memory.Pinned),
}
_FIELD_TYPES: dict[str, Any] = {
    kind: getattr(engine.PayloadSchemaType, kind.capitalize()) for kind in get_args(FieldKind)
}


class EdgeStore:
    """A collection in a folder: Qdrant Edge's shard, our manifest beside it, one opener at a time.

    Creation is crash-safe by its order: the shard is made under another name, then the manifest is written, then
    the shard gets its name. A folder without manifest is no index yet; one with it is complete or can be completed.

    Args:
        folder: the index folder.
        create: what to create when there is no index yet; None to only open.

    Raises:
        IndexNotFoundError: there is no index and `create` is None.
        IndexLockedError: another opener has it.
        StoreError: the folder holds other things, is damaged or cannot be written.
    """

    def __init__(self, folder: str | Path, *, create: tuple[Manifest, Schema] | None = None) -> None:
        self._folder = Path(folder)
        self._shard: Any = None
        self._lock: FolderLock | None = None
        if read_manifest(self._folder) is None:
            if create is None:
                raise IndexNotFoundError(f"there is no index at {self._folder}")
            self._claim_folder()
        self._lock = FolderLock(self._folder)
        try:
            manifest = read_manifest(self._folder)
            if manifest is None and create is not None:
                manifest = self._create(*create)
            if manifest is None:
                raise IndexNotFoundError(f"there is no index at {self._folder}")
            self._manifest = manifest
            self._load()
        except BaseException:
            self._lock.release()
            raise

    @property
    def location(self) -> str:
        """The folder."""
        return str(self._folder)

    @property
    def manifest(self) -> Manifest:
        """What the collection was built with."""
        return self._manifest

    def count(self) -> int:
        """Points in the collection."""
        with self._engine("count") as shard:
            return shard.count(engine.CountRequest(exact=True))

    def upsert(self, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Write or replace points; when this returns they are in the engine's write-ahead log.

        Raises:
            StoreError: a vector has a wrong dimension or holds NaN or infinity (then no point of the call is written),
                or the engine failed.
        """
        check_points(points, self._manifest.dimension, self.location)
        self._check_there()
        if self._shard is not None:
            self._check_room(sum(map(request_bytes, points)))
        records = [engine.Point(point.id, cast(Any, _vectors(point)), dict(point.payload)) for point in points]
        mode = engine.UpdateMode.InsertOnly if insert_only else None
        with self._engine("write") as shard:
            shard.update(engine.UpdateOperation.upsert_points(records, update_mode=mode))

    def retrieve(
        self, ids: Sequence[UUID], *, payload: Sequence[str] = (), vectors: Sequence[str] = ()
    ) -> dict[UUID, Point]:
        """Points by id with the named payload fields and vectors; ids that are not stored are absent."""
        with self._engine("read") as shard:
            records = shard.retrieve(list(ids), list(payload) or False, list(vectors) or False)
        return {record.id: _to_point(record) for record in records}

    def query(
        self,
        name: str,
        vector: np.ndarray | SparseVector,
        *,
        limit: int,
        filter: Filter | None = None,
        payload: Sequence[str] = (),
    ) -> list[Point]:
        """The `limit` points nearest to `vector`, best first: by cosine to a vector (D,), or by a sparse one.

        Raises:
            InvalidInputError: the filter names a field the engine cannot address.
        """
        nearest, fulfil = _nearest(name, vector), [_condition(c) for c in conditions(filter)] if filter else []
        with self._engine("search") as shard:
            # An exact count takes as long as a search.
            about = shard.count(engine.CountRequest(exact=False))
            request = engine.QueryRequest(
                limit=limit,
                query=nearest,
                filter=engine.Filter(must=fulfil) if fulfil else None,
                params=_search_params(exact=about <= EXACT_UP_TO),
                with_payload=list(payload) or False,
            )
            return [_to_point(record, record.score) for record in shard.query(request)]

    def similarities(self, name: str, vector: np.ndarray, ids: Sequence[UUID]) -> dict[UUID, float]:
        """The cosine of each point's vector of this name to `vector` (D,), of a matrix its nearest row's."""
        if not ids:
            return {}
        request = engine.QueryRequest(
            limit=len(ids),
            query=_nearest(name, vector),
            filter=engine.Filter(must=[engine.HasIdCondition(set(ids))]),
            params=_search_params(exact=True),
        )
        with self._engine("search") as shard:
            return {record.id: record.score for record in shard.query(request)}

    def values(self, listed_field: str) -> dict[str | int, int]:
        """Every value of a listed payload field -> number of points that have it."""
        n = self.count()
        if n == 0:
            return {}
        with self._engine("list") as shard:
            facet = shard.facet(engine.FacetRequest(listed_field, limit=n, exact=True))
        # The engine may still name values that only deleted points had.
        return {hit.value: hit.count for hit in facet.hits if hit.count}

    def filterable(self) -> dict[tuple[str, ...], str]:
        """Payload fields, by path, that have an index for filters, and its kind."""
        with self._engine("describe") as shard:
            schema = shard.info().payload_schema
        kinds = {type: kind for kind, type in _FIELD_TYPES.items()}
        paths = {field_path(key): kinds.get(field.data_type, "other") for key, field in schema.items()}
        return {path: kind for path, kind in paths.items() if len(path) > 1}

    def make_filterable(self, path: tuple[str, ...], kind: FieldKind) -> None:
        """Give a payload field an index, in place of one of another kind; nothing happens where it has this one."""
        there, key = self.filterable().get(path), field_key(path)
        if there == kind:
            return
        with self._engine("index a field") as shard:
            if there is not None:
                shard.update(engine.UpdateOperation.delete_field_index(key))
            shard.update(engine.UpdateOperation.create_field_index(key, _FIELD_TYPES[kind]))
            shard.flush()

    def delete(self, ids: Sequence[UUID]) -> None:
        """Remove points; ids that are not stored are ignored."""
        self._check_there()
        with self._engine("delete") as shard:
            shard.update(engine.UpdateOperation.delete_points(list(ids)))

    def flush(self) -> None:
        """Write everything to disk: what was written so far survives a power failure too."""
        self._check_there()
        with self._engine("flush") as shard:
            shard.flush()

    def optimize(self, *, live: bool = False) -> None:
        """Let the engine index and merge segments; it does nothing where little has changed (about 10 MB of vectors).

        It holds Python's global lock for the while: 20,000 documents take a minute of one core, in which no other
        thread of the process goes on. With `live` it is left for later: searches find the same, somewhat slower (2.7
        against 2.1 ms among 20,000 documents, 384 dimensions).
        """
        with self._engine("optimize") as shard:
            if live:
                return
            # What is merged is written anew before the old is removed.
            if shutil.disk_usage(self._folder).free < self.size_bytes() + RESERVED_BYTES:
                logger.warning("%s is not optimized: the disk has too little room for it", self.location)
                return
            shard.optimize()

    def snapshot(self, file: Path) -> None:
        """Write the folder into a new file, all of it or none; nothing may be written to the store meanwhile.

        Raises:
            StoreError: the file is there already, lies in the folder itself, or cannot be written.
        """
        self.flush()
        write_snapshot(self._folder, file)

    def size_bytes(self) -> int:
        """Space taken by the folder, in bytes."""
        return size_on_disk(self._folder)

    def close(self) -> None:
        """Flush and let others open the folder. Closing twice is fine."""
        if self._shard is None:
            return
        try:
            with self._engine("close") as shard:
                shard.close()
        finally:
            self._shard = None
            if self._lock is not None:
                self._lock.release()

    def _claim_folder(self) -> None:
        ours = {LOCK_FILE, UNFINISHED_SHARD, f"{MANIFEST_FILE}.partial"}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            others = [p.name for p in self._folder.iterdir() if p.name not in ours and p.name[0] != "."]
        except OSError as error:
            raise StoreError(
                f"no index can be created at {self._folder}: {error.strerror}. Choose another folder"
            ) from error
        if MANIFEST_FILE in others:  # another process created the index a moment ago
            return
        if others:
            raise StoreError(
                f"{self._folder} is not an index and holds other things ({sorted(others)[0]}, {len(others)} in all): "
                "choose a new or empty folder for the index"
            )

    def _create(self, manifest: Manifest, schema: Schema) -> Manifest:
        filterable = {field_key(path): kind for path, kind in schema.filterable.items()}
        indexed: dict[str, str] = {**schema.listed_fields, **filterable}
        unfinished = self._folder / UNFINISHED_SHARD
        shutil.rmtree(unfinished, ignore_errors=True)
        config = engine.EdgeConfig(
            vectors={spec.name: _vector_params(spec) for spec in schema.vectors},
            sparse_vectors={
                name: engine.EdgeSparseVectorParams(modifier=engine.Modifier.Idf) for name in schema.sparse
            },
            payload_memory=engine.Memory.Cold,  # whole texts: read from disk when asked for
        )
        with _translated("create", self.location):
            shard = engine.EdgeShard.create(str(unfinished), config)
            for key, kind in indexed.items():
                shard.update(engine.UpdateOperation.create_field_index(key, _FIELD_TYPES[kind]))
            shard.close()
        write_manifest(self._folder, manifest)
        return manifest

    def _load(self) -> None:
        shard = self._folder / SHARD
        unfinished = self._folder / UNFINISHED_SHARD
        if not shard.exists():
            if not unfinished.exists():
                raise StoreError(
                    f"the index at {self._folder} is damaged: it has {MANIFEST_FILE} and no {SHARD}/. "
                    "Restore the folder or build the index anew in another one"
                )
            unfinished.rename(shard)
        for leftover in (shard / "temp_segments").glob("*"):  # of optimizations that were killed; never cleaned up
            shutil.rmtree(leftover, ignore_errors=True)
        with _translated("open", self.location):
            self._shard = engine.EdgeShard.load(str(shard))

    def _check_there(self) -> None:
        """Before a write the folder must be ours still: into one that was removed the engine writes without a word."""
        if self._shard is not None and (self._lock is None or not self._lock.is_in_place):
            raise StoreError(f"the index at {self.location} is gone: its folder was removed or replaced meanwhile")

    def _check_room(self, n_bytes: int) -> None:
        """The disk must have room: the engine writes through mapped memory, and a full disk ends the process there."""
        free, needed = shutil.disk_usage(self._folder).free, RESERVED_BYTES + n_bytes
        if free < needed:
            raise StoreError(
                f"the disk of the index at {self.location} is full: {free / 1e6:,.0f} MB are free, and "
                f"{needed / 1e6:,.0f} are needed to go on safely. What was stored is safe; make room and run it again"
            )

    @contextmanager
    def _engine(self, doing: str) -> Iterator[Any]:
        if self._shard is None:
            raise StoreError(f"the index at {self.location} is closed")
        with _translated(doing, self.location):
            yield self._shard


@contextmanager
def _translated(doing: str, location: str) -> Iterator[None]:
    """Give the engine's errors our type. They are plain `Exception`s, so only engine calls may stand in here."""
    try:
        yield
    except Exception as error:
        raise StoreError(f"the index at {location} failed to {doing}: {error}") from error


def _vector_params(spec: VectorSpec) -> Any:
    multi = engine.MultiVectorConfig(engine.MultiVectorComparator.MaxSim) if spec.multi else None
    quantized = _QUANTIZED[spec.quantization]() if spec.quantization else None
    if spec.searched:
        return engine.EdgeVectorParams(
            spec.size, engine.Distance.Cosine, multivector_config=multi, quantization_config=quantized
        )
    return engine.EdgeVectorParams(
        spec.size,
        engine.Distance.Cosine,
        multivector_config=multi,
        quantization_config=quantized,
        hnsw_config=engine.HnswIndexConfig(**NO_GRAPH),
        datatype=engine.VectorStorageDatatype.Float16,  # compared within one document only: 3 digits do
        memory=engine.Memory.Cold,
    )


def _search_params(exact: bool) -> Any:
    quantized = engine.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=OVERSAMPLING)
    return engine.SearchParams(exact=exact, quantization=quantized)


def _condition(condition: Condition) -> Any:
    if condition.any_of is not None:
        return engine.Filter(should=[_condition(one) for one in condition.any_of])
    if condition.strings is not None:
        return engine.FieldCondition(condition.key, match=engine.MatchAny(list(condition.strings)))
    if condition.range is not None:
        bounds = condition.range.bounds()
        dates = {name: bound.isoformat() for name, bound in bounds.items() if isinstance(bound, datetime)}
        within = engine.RangeDateTime(**dates) if dates else engine.RangeFloat(**cast(Any, bounds))
        return engine.FieldCondition(condition.key, range=within)
    value = condition.equals
    if isinstance(value, bool):
        # A Python bool would be taken for the integers 0 and 1, which match no stored bool.
        value = cast(bool, np.bool_(value))
    return engine.FieldCondition(condition.key, match=engine.MatchValue(cast(Any, value)))


def _vectors(point: Point) -> dict[str, Any]:
    return {**point.vectors, **{name: _sparse(vector) for name, vector in point.sparse.items()}}


def _nearest(name: str, vector: Any) -> Any:
    return engine.Query.Nearest(_sparse(vector) if isinstance(vector, SparseVector) else vector, name)


def _sparse(vector: SparseVector) -> Any:
    return engine.SparseVector(vector.indices.tolist(), vector.values.tolist())


def _to_point(record: Any, score: float = 0.0) -> Point:
    vectors = record.vector or {}
    arrays = {name: np.asarray(vector, dtype=np.float32) for name, vector in vectors.items()}
    return Point(record.id, arrays, record.payload or {}, score)
