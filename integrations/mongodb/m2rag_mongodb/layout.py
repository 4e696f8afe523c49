"""How a point is kept: one document, and what makes it too large for MongoDB in parts beside it."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import bson
import numpy as np
from bson.binary import Binary
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument

from m2rag.errors import InvalidInputError, PointTooLargeError, StoreError
from m2rag.stores import Filter, OneOf, Point, Range, Scalar, VectorSpec
from m2rag.stores.base import Wanted
from m2rag_mongodb.errors import UnstorableError
from m2rag_mongodb.vectors import VectorKind, from_bindata, to_bindata

MANIFEST_ID = "m2rag"
"""The one document of a collection that is no point: it says what the collection was built with."""

OURS = "m2rag"
"""Field of a document that holds what is not payload."""

FILTERS = f"{OURS}.filters"
"""The index for `$vectorSearch` must name the fields that filters use; metadata has any fields. So the document has a
list of everything that a filter may ask for, each as one string, and the index names that list."""

INLINE_BYTES = 12_000_000
"""A document takes 16 MiB at most, and so does what a replica set hands on of a change to it."""

PART_BYTES = 8_000_000

_STAYING = {"_id", OURS, "id", "title", "metadata"}
_MAX_TOKEN = 200
_MAX_DEPTH = 90  # levels; MongoDB takes 100


@dataclass(frozen=True)
class Packed:
    """A point on its way into the store.

    Attributes:
        id: of the document.
        document: all of it that is kept in one piece.
        parts: what is kept beside it.
    """

    id: str
    document: RawBSONDocument
    parts: list[dict[str, Any]]

    @property
    def revision(self) -> str | None:
        """Of the parts; None if there are none."""
        return str(self.parts[0]["revision"]) if self.parts else None

    @property
    def size(self) -> int:
        """Of the document, in bytes."""
        return len(self.document.raw)


def pack(
    points: Sequence[Point],
    specs: Mapping[str, VectorSpec],
    kind: VectorKind,
    fields: Sequence[str],
    *,
    mark: str,
    generation: str,
    location: str,
) -> list[Packed]:
    """Points as documents; none is returned unless all can be.

    Args:
        points: to be stored.
        specs: vectors of the collection by name.
        kind: of the vectors that are searched.
        fields: payload fields that filters may ask for.
        mark: goes into the list for filters.
        generation: of the collection, in every part.
        location: of the collection, for error messages.

    Raises:
        PointTooLargeError: what cannot be kept beside some documents is too large for one piece.
        UnstorableError: some documents are beyond BSON.
        StoreError: a payload field has a name that is taken, or a vector is not of the collection.
    """
    packed: list[Packed] = []
    too_large: dict[UUID, int] = {}
    beyond: dict[UUID, str] = {}
    for point in points:
        document = _document(point, specs, kind, fields, mark, location)
        try:
            if _depth(point.payload) > _MAX_DEPTH:
                raise ValueError(f"metadata nested more than {_MAX_DEPTH} levels deep")
            one = _in_pieces(document, generation)
        except (BSONError, OverflowError, ValueError, TypeError) as error:
            beyond[point.id] = str(error)
            continue
        packed.append(one)
        if one.size > INLINE_BYTES:
            too_large[point.id] = one.size
    if too_large:
        sizes = ", ".join(f"{size / 1e6:.1f} MB" for size in too_large.values())
        raise PointTooLargeError(
            f"id, title and metadata take {sizes}, a document in {location} at most {INLINE_BYTES / 1e6:.0f} MB "
            "without its text: shorten the metadata",
            too_large,
        )
    if beyond:
        reasons = "; ".join(sorted(set(beyond.values())))
        raise UnstorableError(f"MongoDB cannot hold this document's metadata in {location}: {reasons}", beyond)
    return packed


def _document(
    point: Point, specs: Mapping[str, VectorSpec], kind: VectorKind, fields: Sequence[str], mark: str, location: str
) -> dict[str, Any]:
    taken = {"_id", OURS, *specs} & point.payload.keys()
    unknown = point.vectors.keys() - specs.keys()
    if taken or unknown:
        raise StoreError(
            f"point {point.id} cannot be stored in {location}: "
            f"names that are taken ({', '.join(sorted(taken))}) or unknown vectors ({', '.join(sorted(unknown))})"
        )
    kept: dict[str, Any] = {}
    searched: dict[str, Any] = {}
    for name, vector in point.vectors.items():
        if specs[name].searched:
            searched[name] = to_bindata(vector, kind)
        if not specs[name].searched or kind != "float32":
            kept[name] = _half(vector)
    ours = {"filters": [mark, *tokens(point.payload, fields)], "vectors": kept}
    return {"_id": str(point.id), **point.payload, **searched, OURS: ours}


def _in_pieces(document: dict[str, Any], generation: str) -> Packed:
    """Keep the largest fields beside the document until it fits, the text last: only where it stays can its words be
    searched."""
    id, kept = document["_id"], document[OURS]["vectors"]
    whole = bson.encode(document)
    if len(whole) <= INLINE_BYTES:
        return Packed(id, RawBSONDocument(whole), [])
    sizes: dict[tuple[str, ...], int] = {(OURS, name): len(vector["data"]) for name, vector in kept.items()}
    for name, value in document.items():
        if name not in _STAYING and not isinstance(value, Binary):
            sizes[(name,)] = len(bson.encode({"": value}))
    outside: dict[str, Any] = {}
    for path in sorted(sizes, key=lambda path: (path == ("text",), -sizes[path])):
        name = path[-1]
        outside[vector_path(name) if path[0] == OURS else name] = (kept if path[0] == OURS else document).pop(name)
        if len(bson.encode(document)) <= INLINE_BYTES:
            break
    blob = bson.encode(outside)
    revision = secrets.token_hex(16)
    starts = range(0, len(blob), PART_BYTES)
    document[OURS]["outside"] = {"fields": sorted(outside), "revision": revision, "parts": len(starts)}
    shared = {"point": id, "revision": revision, "generation": generation}
    parts = [
        {"_id": f"{id}/{revision}/{n}", **shared, "n": n, "data": blob[start : start + PART_BYTES]}
        for n, start in enumerate(starts)
    ]
    return Packed(id, RawBSONDocument(bson.encode(document)), parts)


def vector_path(name: str) -> str:
    """Where in a document a vector is kept that is not searched."""
    return f"{OURS}.vectors.{name}"


def put_together(parts: Sequence[Mapping[str, Any]], outside: Mapping[str, Any]) -> dict[str, Any] | None:
    """Fields that are kept beside a document; None if parts are missing."""
    ordered = sorted((part for part in parts if part["revision"] == outside["revision"]), key=lambda part: part["n"])
    if [part["n"] for part in ordered] != list(range(outside["parts"])):
        return None
    found: dict[str, Any] = bson.decode(b"".join(part["data"] for part in ordered))
    return found


def stored_vector(document: Mapping[str, Any], name: str, moved: Mapping[str, Any]) -> np.ndarray | None:
    """A vector of a stored document, (D,) or (P, D) float32: the float copy where the searched one is coarser."""
    half = moved.get(vector_path(name)) or document.get(OURS, {}).get("vectors", {}).get(name)
    if half is not None:
        numbers = np.frombuffer(half["data"], dtype="<f2").reshape(half["shape"])
        return numbers.astype(np.float32)
    packed = document.get(name)
    return None if packed is None else from_bindata(packed)


def tokens(payload: Mapping[str, Any], fields: Sequence[str]) -> Iterator[str]:
    """Every value that a filter may ask for, as one string with its path."""
    for name in fields:
        yield from _tokens((name,), payload.get(name))


def filter_token(path: tuple[str, ...], value: Scalar) -> str:
    """A condition as it is found in the list of a document that fulfils it."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # 7 and 7.0 are the same
    whole = f"{json.dumps(path, ensure_ascii=False)}={json.dumps(value, ensure_ascii=False)}"
    if len(whole) <= _MAX_TOKEN:
        return whole
    return "sha256=" + hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()


def to_filter(filter: Filter | None, fields: Sequence[str], indexed: Sequence[str] = ()) -> dict[str, Any]:
    """A filter as the server takes it.

    Args:
        filter: what is asked for.
        fields: payload fields that are kept for filters.
        indexed: fields that the search index knows by their own values, which ranges need.

    Raises:
        InvalidInputError: it asks for a field that is not kept for filters, or for a range that cannot be asked for.
    """
    every = [_condition(path, wanted, fields, indexed) for path, wanted in (filter or {}).items()]
    return {"$and": every} if len(every) > 1 else every[0] if every else {}


def field_name(path: tuple[str, ...]) -> str:
    """A payload field as an index names it.

    Raises:
        InvalidInputError: MongoDB cannot address it.
    """
    for part in path:
        if not part or "." in part or "$" in part:
            raise InvalidInputError(
                f"MongoDB cannot index the field {part!r}: a name with a dot, or $ in front, or none"
            )
    return ".".join(path)


def _condition(path: tuple[str, ...], wanted: Wanted, fields: Sequence[str], indexed: Sequence[str]) -> dict[str, Any]:
    if path[0] not in fields:
        raise InvalidInputError(f"cannot filter by {'.'.join(path)!r}: only by {', '.join(fields)}")
    if isinstance(wanted, OneOf):
        return {FILTERS: {"$in": [filter_token(path, value) for value in wanted.values]}}
    if not isinstance(wanted, Range):
        return {FILTERS: {"$eq": filter_token(path, wanted)}}
    if wanted.of_dates:
        raise InvalidInputError(
            f"MongoDB cannot compare dates that are strings, as in {path[-1]!r}: keep them as numbers, like 20200131"
        )
    name = field_name(path)
    if name not in indexed:
        raise InvalidInputError(
            f"MongoDB finds no ranges of {path[-1]!r} before its search index knows this field: call "
            f"make_filterable({path[-1]!r}, ...), or name it in filterable when the index is made"
        )
    return {name: {f"${bound}": value for bound, value in wanted.bounds().items()}}


def _tokens(path: tuple[str, ...], value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _tokens((*path, str(name)), inner)
    elif isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, (str, int, float, bool)):
                yield filter_token(path, item)
    elif isinstance(value, (str, int, float, bool)):
        yield filter_token(path, value)


def _half(vector: np.ndarray) -> dict[str, Any]:
    """Compared within one document, or after a search: 3 digits do."""
    return {"shape": list(vector.shape), "data": np.asarray(vector).astype("<f2").tobytes()}


def _depth(value: Any) -> int:
    """Levels of nesting, counted up to one more than is allowed."""
    depth, level = 0, [value]
    while level and depth <= _MAX_DEPTH:
        depth += 1
        inner = [one for one in level if isinstance(one, (Mapping, list, tuple))]
        level = [item for one in inner for item in (one.values() if isinstance(one, Mapping) else one)]
    return depth
