"""The same collection on a Qdrant server or in Qdrant Cloud. Only this file knows `qdrant_client`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit
from uuid import UUID

import grpc
import httpx
import numpy as np
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

from m2rag.errors import (
    IndexMismatchError,
    IndexNotFoundError,
    InvalidInputError,
    PointTooLargeError,
    StoreError,
)
from m2rag.stores.base import FieldKind, Filter, Manifest, Point, Schema, SparseVector, VectorSpec
from m2rag.stores.manifest import manifest_from_json, manifest_to_json
from m2rag.stores.qdrant import (
    EXACT_UP_TO,
    NO_GRAPH,
    OVERSAMPLING,
    Condition,
    check_points,
    conditions,
    field_key,
    field_path,
    in_requests,
)
from m2rag.stores.retry import Patience, Transient

logger = logging.getLogger(__name__)

API_KEY_VARIABLE = "QDRANT_API_KEY"
DEFAULT_COLLECTION = "m2rag"
METADATA_KEY = "m2rag"
"""Where in a collection's metadata the manifest is; the rest of the metadata belongs to others."""

MAX_REQUEST_BYTES = 4_000_000
"""Servers take 32 MB; requests of many megabytes run into time limits on the way."""

MAX_POINT_BYTES = 33_000_000
"""A server's own limit on a request is 32 MiB unless it is set otherwise. Checked here too: a server that is sent more
may hang up in the middle, which looks like a bad connection."""

REQUEST_SECONDS = 60
FIRST_CONTACT_SECONDS = 10.0
"""A server that does not answer when it is first asked is more often a wrong URL than a restart."""

_RETRIED = {408, 429, 500, 502, 503, 504}
_GRPC_STATUS = {
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.ABORTED: 503,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
}
"""A client with `prefer_grpc` has these errors instead."""
_FIELD_TYPES = {kind: models.PayloadSchemaType(kind) for kind in get_args(FieldKind)}
_QUANTIZED: dict[str, Any] = {
    "scalar": models.ScalarQuantization(
        scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, memory=models.Memory.PINNED)
    ),
    "binary": models.BinaryQuantization(binary=models.BinaryQuantizationConfig(memory=models.Memory.PINNED)),
}


class Place(NamedTuple):
    """Where a collection is: scheme, host and port, path before the collection, and its name."""

    server: str
    prefix: str
    collection: str

    @property
    def url(self) -> str:
        """All of it, as a person would name it."""
        return "/".join(part for part in (self.server, self.prefix, self.collection) if part)


def parse_url(url: str) -> Place:
    """`http[s]://HOST[:PORT][/PREFIX]/COLLECTION`; without a port 6333, without a collection "m2rag".

    Raises:
        InvalidInputError: it is not of this form, or holds a key or password: those do not belong into URLs.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInputError(f"this is not the URL of a Qdrant server: {error}") from error
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise InvalidInputError(
            f"the URL of a Qdrant server on {host} holds more than host, port and collection: "
            f"give a key in the environment variable {API_KEY_VARIABLE} or as api_key"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise InvalidInputError(f"{url!r} is not of the form http[s]://HOST[:PORT]/COLLECTION")
    host = f"[{host}]" if ":" in host else host
    *prefix, collection = [part for part in parts.path.split("/") if part] or [DEFAULT_COLLECTION]
    return Place(f"{parts.scheme}://{host}" + (f":{port}" if port else ""), "/".join(prefix), collection)


def open_url(
    url: str, *, create: tuple[Manifest, Schema] | None = None, api_key: str | None = None
) -> QdrantServerStore:
    """Open the collection a URL names; see `parse_url` and `QdrantServerStore`.

    Args:
        url: of the collection.
        create: what to create where there is no collection of this name.
        api_key: default: the environment variable QDRANT_API_KEY.

    Raises:
        InvalidInputError: the URL or the key is malformed.
        IndexNotFoundError, StoreError: see `QdrantServerStore`.
    """
    place = parse_url(url)
    key = (api_key or os.environ.get(API_KEY_VARIABLE, "")).strip()  # files that keys come from end with a newline
    if not key.isascii() or not key.isprintable():
        raise InvalidInputError(
            f"the key for {place.url} holds characters that no key has: look at where it comes from"
        )
    client = QdrantClient(
        url=place.server,
        prefix=place.prefix or None,
        api_key=key or None,
        timeout=REQUEST_SECONDS,
        check_compatibility=False,  # it asks the server, once and without patience
    )
    try:
        return QdrantServerStore(client, place.collection, create=create, location=place.url, owns_client=True)
    except BaseException:
        client.close()
        raise


class QdrantServerStore:
    """A collection on a Qdrant server, its manifest in the collection's metadata.

    Writes are acknowledged (`wait=True`) before they return, and go in requests of a few megabytes. A server that is
    away, overloaded or restarting is waited for, then it is an error. Before every write and every query the
    collection's metadata is read again: someone else may have made the collection anew with another model.

    Creation is crash-safe by its order: the collection comes into being together with its metadata, and field indexes
    that are still missing are made whenever it is opened.

    Args:
        client: a `QdrantClient`, or anything with its methods.
        collection: name of the collection.
        create: what to create where there is no collection of this name; None to only open.
        location: how a person would name the place; the collection's name by default.
        owns_client: close the client with the store.
        patience: how long to wait for a server that does not answer.
        create_options: more arguments for `create_collection` (shard_number, replication_factor, ...).

    Raises:
        IndexNotFoundError: there is no such collection and `create` is None.
        StoreError: the collection was not made by m2rag, the server cannot be reached, refuses, or is too old.
    """

    def __init__(
        self,
        client: Any,
        collection: str,
        *,
        create: tuple[Manifest, Schema] | None = None,
        location: str | None = None,
        owns_client: bool = False,
        patience: Patience | None = None,
        create_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._client: Any = client
        self._create_options = dict(create_options or {})
        self._collection = collection
        self._location = location or collection
        self._owns_client = owns_client
        patience = patience or Patience()
        self._patience = replace(patience, seconds=min(patience.seconds, FIRST_CONTACT_SECONDS))
        info = self._info()
        if info is None:
            if create is None:
                raise IndexNotFoundError(f"there is no index at {self.location}")
            self._create(*create)
            info = self._info()
            if info is None:
                raise StoreError(f"the collection {self.location} was created and is gone")
        stored = self._stored_manifest(info)
        self._manifest = manifest_from_json(stored, index=self.location, kept_in=self._kept_in)
        self._check_sizes(info)
        vectors = info.config.params.vectors or {}
        self._halved = {name for name, params in vectors.items() if params.datatype == models.Datatype.FLOAT16}
        self._matrices = {name for name, params in vectors.items() if params.multivector_config is not None}
        self._index_fields({**(stored.get("listed_fields") or {}), **(stored.get("filterable") or {})}, info)
        self._patience = patience

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"

    @property
    def location(self) -> str:
        """URL of the collection, without any key."""
        return self._location

    @property
    def manifest(self) -> Manifest:
        """What the collection was built with."""
        return self._manifest

    def count(self) -> int:
        """Points in the collection."""
        return self._ask("count", exact=True).count

    def upsert(self, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Write or replace points; when this returns the server has acknowledged all of them.

        Raises:
            IndexMismatchError: the collection was made anew with another model.
            PointTooLargeError: a point is larger than the server takes.
            StoreError: a vector has a wrong dimension or holds NaN or infinity (then no point of the call is written),
                or the server failed.
        """
        check_points(points, self._manifest.dimension, self.location)
        self._verify()
        mode = models.UpdateMode.INSERT_ONLY if insert_only else None
        for group in in_requests(points, MAX_REQUEST_BYTES):
            records = [_record(point, self._halved) for point in group]
            self._check_size(records)
            try:
                self._ask("upsert", points=records, wait=True, update_mode=mode)
            except _RequestTooLargeError as error:
                if len(group) > 1:
                    raise
                raise PointTooLargeError(str(error), [group[0].id]) from error

    def retrieve(
        self, ids: Sequence[UUID], *, payload: Sequence[str] = (), vectors: Sequence[str] = ()
    ) -> dict[UUID, Point]:
        """Points by id with the named payload fields and dense vectors; ids that are not stored are absent."""
        if not ids:
            return {}
        records = self._ask(
            "retrieve",
            ids=[str(id) for id in ids],
            with_payload=list(payload) or False,
            with_vectors=list(vectors) or False,
        )
        return {point.id: point for point in map(to_point, records)}

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
            IndexMismatchError: the collection was made anew with another model.
            InvalidInputError: the filter names a field the engine cannot address.
        """
        where = to_filter(filter)
        n_points = self._verify()
        answer = self._ask(
            "query_points",
            query=to_vector(vector),
            using=name,
            limit=limit,
            query_filter=where,
            search_params=search_params(n_points),
            with_payload=list(payload) or False,
        )
        return [to_point(record) for record in answer.points]

    def similarities(self, name: str, vector: np.ndarray, ids: Sequence[UUID]) -> dict[UUID, float]:
        """The cosine of each point's vector of this name to `vector` (D,), of a matrix its nearest row's."""
        if not ids:
            return {}
        answer = self._ask(
            "query_points",
            query=to_vector(vector[None, :] if name in self._matrices else vector),
            using=name,
            limit=len(ids),
            query_filter=models.Filter(must=[models.HasIdCondition(has_id=[str(id) for id in ids])]),
            search_params=search_params(len(ids)),
            with_payload=False,
        )
        return {UUID(str(record.id)): record.score for record in answer.points}

    def values(self, listed_field: str) -> dict[str | int, int]:
        """Every value of a listed payload field -> number of points that have it."""
        n = self.count()
        if n == 0:
            return {}
        answer = self._ask("facet", key=listed_field, limit=n, exact=True)
        return {hit.value: hit.count for hit in answer.hits}

    def filterable(self) -> dict[tuple[str, ...], str]:
        """Payload fields, by path, that have an index for filters, and its kind."""
        schema = self._ask("get_collection").payload_schema
        paths = {field_path(key): field.data_type.value for key, field in schema.items()}
        return {path: kind for path, kind in paths.items() if len(path) > 1}

    def make_filterable(self, path: tuple[str, ...], kind: FieldKind) -> None:
        """Give a payload field an index, in place of one of another kind; nothing happens where it has this one."""
        self._verify()
        there, key = self.filterable().get(path), field_key(path)
        if there == kind:
            return
        if there is not None:
            self._ask("delete_payload_index", field_name=key, wait=True)
        self._ask("create_payload_index", field_name=key, field_schema=_FIELD_TYPES[kind], wait=True)

    def delete(self, ids: Sequence[UUID]) -> None:
        """Remove points; ids that are not stored are ignored."""
        if not ids:
            return
        self._verify()
        selected = models.PointIdsList(points=[str(id) for id in ids])
        self._ask("delete", points_selector=selected, wait=True)

    def flush(self) -> None:
        """Nothing to do: what a server has acknowledged is in its write-ahead log."""
        self._open_client()

    def optimize(self, *, live: bool = False) -> None:
        """Nothing to do: a server optimizes by itself."""
        self._open_client()

    def size_bytes(self) -> int | None:
        """None: a server does not tell what one collection takes."""
        return None

    def close(self) -> None:
        """Let go of the client. Closing twice is fine."""
        client, self._client = self._client, None
        if client is not None and self._owns_client:
            client.close()

    @property
    def _kept_in(self) -> str:
        return f"the metadata of the collection {self.location}"

    def _open_client(self) -> Any:
        if self._client is None:
            raise StoreError(f"the index at {self.location} is closed")
        return self._client

    def _info(self) -> Any:
        """The server's description of the collection; None where there is none of this name."""
        try:
            return self._ask("get_collection")
        except IndexNotFoundError:
            return None

    def _verify(self) -> int:
        """Check that the collection is still of our fingerprint; returns about how many points it has."""
        info = self._info()
        if info is None:
            raise StoreError(f"the index at {self.location} is gone: its collection was deleted on the server")
        found = manifest_from_json(self._stored_manifest(info), index=self.location, kept_in=self._kept_in)
        ours = self._manifest
        if (found.fingerprint, found.dimension) != (ours.fingerprint, ours.dimension):
            raise IndexMismatchError(
                self.location,
                f"{found.fingerprint} ({found.dimension} dimensions)",
                f"{ours.fingerprint} ({ours.dimension} dimensions)",
            )
        return info.points_count or 0

    def _create(self, manifest: Manifest, schema: Schema) -> None:
        try:
            self._ask("create_collection", **{**self._create_options, **collection_config(manifest, schema)})
        except _ExistsError:  # made by another process a moment ago, or by a try whose answer was lost
            logger.debug("the collection %s exists already", self.location)

    def _stored_manifest(self, info: Any) -> dict[str, Any]:
        stored = (info.config.metadata or {}).get(METADATA_KEY)
        if not isinstance(stored, dict):
            raise StoreError(
                f"the collection {self.location} is there and has no m2rag metadata: it was not made by m2rag, or the "
                "server is older than Qdrant 1.16 and drops metadata. Choose another collection, or upgrade the server"
            )
        return stored

    def _check_sizes(self, info: Any) -> None:
        """The collection's own configuration must agree with the manifest in its metadata."""
        for name, params in (info.config.params.vectors or {}).items():
            if params.size != self._manifest.dimension:
                raise StoreError(
                    f"the vector {name!r} of the collection {self.location} has {params.size} dimensions and its "
                    f"metadata says {self._manifest.dimension}: build the index anew in another collection"
                )

    def _check_size(self, records: list[models.PointStruct]) -> None:
        if len(records) > 1:  # many small ones
            return
        size = len(models.PointsList(points=records).model_dump_json(exclude_unset=True).encode("utf-8"))
        if size > MAX_POINT_BYTES:
            raise PointTooLargeError(
                f"the document takes {size / 1e6:.1f} MB with its vectors, a request to {self.location} at most "
                f"{MAX_POINT_BYTES / 1e6:.1f}: split it into volumes",
                [UUID(str(records[0].id))],
            )

    def _index_fields(self, fields: dict[str, str], info: Any) -> None:
        there = {field_path(key) for key in info.payload_schema}
        for name, kind in fields.items():
            if field_path(name) not in there:
                self._ask("create_payload_index", field_name=name, field_schema=_FIELD_TYPES[kind], wait=True)

    def _ask(self, method: str, **arguments: Any) -> Any:
        """Call a method of the client, with patience, and give its errors our types."""
        client = self._open_client()

        def call() -> Any:
            try:
                return getattr(client, method)(collection_name=self._collection, **arguments)
            except (ApiException, QdrantException) as error:
                raise self._translated(error, method) from error
            except grpc.RpcError as error:
                raise self._answered(_GRPC_STATUS.get(error.code(), 400), str(error.details()), method) from error
            except ValueError as error:  # what the client's in-memory mode raises
                text = f"the index at {self.location} refused to {method}: {error}"
                raise (IndexNotFoundError if "not found" in str(error) else StoreError)(text) from error

        try:
            return self._patience.run(call, f"the index at {self.location}")
        except Transient as error:
            raise StoreError(
                f"the index at {self.location} cannot be reached or used, after tries for "
                f"{self._patience.seconds:.0f} s: {error}. Nothing of this call counts as done; run it again when the "
                "server is back"
            ) from error.cause

    def _translated(self, error: Exception, method: str) -> Exception:
        """Our error for one of the client's; `Transient` where it may pass."""
        if isinstance(error, ResourceExhaustedResponse):
            return Transient(error, wait=error.retry_after_s)
        if isinstance(error, ResponseHandlingException):
            if isinstance(error.source, httpx.LocalProtocolError):  # its text may hold the header with the key
                return StoreError(f"no request can be sent to {self.location}: a header holds characters it must not")
            if isinstance(error.source, httpx.TransportError):
                return Transient(_Described(str(error.source) or type(error.source).__name__))
            return StoreError(f"the answer of {self.location} to {method} cannot be read: {error.source}")
        if not isinstance(error, UnexpectedResponse):
            return StoreError(f"the index at {self.location} failed to {method}: {error}")
        return self._answered(error.status_code or 0, _said(error), method)

    def _answered(self, status: int, said: str, method: str) -> Exception:
        """Our error for an answer of this status."""
        if status in _RETRIED:
            return Transient(_Described(f"{status} {said}"))
        if status in (401, 403):
            return StoreError(
                f"the server of {self.location} refuses access ({status} {said}): give its key in the environment "
                f"variable {API_KEY_VARIABLE} or as api_key"
            )
        if status == 404:
            return IndexNotFoundError(f"there is no index at {self.location} ({said})")
        if status == 409:
            return _ExistsError(f"{self.location} exists already ({said})")
        text = f"the index at {self.location} refused to {method}: {status} {said}"
        return (_RequestTooLargeError if status == 413 or "larger than allowed" in said else StoreError)(text)


class _Described(Exception):
    """A client's error in words fit for a message."""


class _RequestTooLargeError(StoreError):
    """A request has more bytes than the server takes."""


class _ExistsError(StoreError):
    """The collection to be created is there."""


def _said(error: UnexpectedResponse) -> str:
    """What a refusing server gives as the reason."""
    try:
        return str(json.loads(error.content)["status"]["error"])
    except (ValueError, KeyError, TypeError):
        return error.content[:200].decode("utf-8", "replace") or error.reason_phrase


def vector_params(spec: VectorSpec) -> models.VectorParams:
    """A named vector, as the server takes it."""
    params = models.VectorParams(size=spec.size, distance=models.Distance.COSINE)
    if spec.multi:
        params.multivector_config = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    if spec.quantization:
        params.quantization_config = _QUANTIZED[spec.quantization]
    if not spec.searched:
        params.hnsw_config = models.HnswConfigDiff(**NO_GRAPH)
        params.datatype = models.Datatype.FLOAT16  # compared within one document only: 3 digits do
        params.memory = models.Memory.COLD
    return params


def collection_config(manifest: Manifest, schema: Schema) -> dict[str, Any]:
    """What `create_collection` takes for a collection of this schema, its manifest in the metadata."""
    filterable = {field_key(path): kind for path, kind in schema.filterable.items()}
    fields = {"listed_fields": dict(schema.listed_fields), **({"filterable": filterable} if filterable else {})}
    return {
        "vectors_config": {spec.name: vector_params(spec) for spec in schema.vectors},
        "sparse_vectors_config": {
            name: models.SparseVectorParams(modifier=models.Modifier.IDF) for name in schema.sparse
        },
        "metadata": {METADATA_KEY: {**manifest_to_json(manifest), **fields}},
    }


def search_params(n_points: int) -> models.SearchParams:
    """How to search a collection of this many points."""
    exact = n_points <= EXACT_UP_TO
    quantized = models.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=OVERSAMPLING)
    return models.SearchParams(exact=exact, quantization=quantized)


def to_filter(filter: Filter | None) -> models.Filter | None:
    """A filter, as the server takes it.

    Raises:
        InvalidInputError: it names a field the engine cannot address.
    """
    return models.Filter(must=[_to_condition(c) for c in conditions(filter)]) if filter else None


def to_vector(vector: np.ndarray | SparseVector) -> Any:
    """A dense or sparse vector, as the server takes it."""
    if isinstance(vector, SparseVector):
        return models.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())
    return vector.tolist()


def to_point(record: Any) -> Point:
    """A point from the server's record of it."""
    found = record.vector or {}
    arrays = {name: np.asarray(vector, dtype=np.float32) for name, vector in found.items() if isinstance(vector, list)}
    return Point(UUID(str(record.id)), arrays, record.payload or {}, getattr(record, "score", None) or 0.0)


def _to_condition(condition: Condition) -> models.FieldCondition | models.Filter:
    if condition.any_of is not None:
        return models.Filter(should=[_to_condition(one) for one in condition.any_of])
    if condition.strings is not None:
        return models.FieldCondition(key=condition.key, match=models.MatchAny(any=list(condition.strings)))
    if condition.range is not None:
        bounds: dict[str, Any] = dict(condition.range.bounds())
        within = models.DatetimeRange(**bounds) if condition.range.of_dates else models.Range(**bounds)
        return models.FieldCondition(key=condition.key, range=within)
    assert condition.equals is not None
    return models.FieldCondition(key=condition.key, match=models.MatchValue(value=condition.equals))


def _record(point: Point, halved: Collection[str]) -> models.PointStruct:
    """A point as the server takes it; vectors it keeps in 16 bits are sent with 6 decimals, half as many bytes."""
    every: dict[str, np.ndarray | SparseVector] = {**point.vectors, **point.sparse}
    for name in point.vectors.keys() & set(halved):
        every[name] = np.round(point.vectors[name].astype(np.float64), 6)
    vectors = {name: to_vector(vector) for name, vector in every.items()}
    return models.PointStruct(id=str(point.id), vector=vectors, payload=dict(point.payload))
