"""What the two Qdrant stores share: the same rules for points, filters and searches, whichever client carries them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2rag.errors import InvalidInputError, StoreError
from m2rag.stores.base import Filter, OneOf, Point, Range, Wanted

EXACT_UP_TO = 20_000
"""Collections up to this many points are searched exactly: below a few milliseconds, and no recall to think about."""

OVERSAMPLING = 10.0
"""How many times the points asked for a search takes from a quantized copy before it scores them with the vectors.

One bit a number makes the many small ones of m2rag-mini's vectors count like the large ones: of 360 paragraphs 3.0
finds 59 % of the ten best, 10.0 finds 87 %.
"""

NO_GRAPH: dict[str, Any] = {"m": 0, "ef_construct": 100, "full_scan_threshold": 10_000}
"""HNSW settings of a vector that is only fetched: m=0 builds no graph."""


@dataclass(frozen=True)
class Condition:
    """A payload field and what it must be, of these the one that is set.

    Attributes:
        key: path of the field, as the engine reads it.
        equals: this value.
        range: within these bounds.
        strings: one of these.
        any_of: one of these conditions holds.
    """

    key: str
    equals: str | int | bool | None = None
    range: Range | None = None
    strings: tuple[str, ...] | None = None
    any_of: tuple[Condition, ...] | None = None


def conditions(filter: Filter | None) -> list[Condition]:
    """A filter as the engine's conditions, all of which must hold.

    Raises:
        InvalidInputError: a field name the engine cannot address.
    """
    return [_condition(field_key(path), value) for path, value in (filter or {}).items()]


def field_key(path: tuple[str, ...]) -> str:
    """Path of a payload field, as the engine reads it.

    Raises:
        InvalidInputError: a name the engine cannot address.
    """
    for part in path:
        if '"' in part or "\\" in part:
            raise InvalidInputError(f"cannot filter by {part!r}: a field name with a quote or backslash")
    return ".".join([path[0], *(f'"{part}"' for part in path[1:])])  # quoted, a dot is part of the name


def field_path(key: str) -> tuple[str, ...]:
    """The path in a key, whose quotes the engine leaves out where it can."""
    return tuple(quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|([^."]+)', key))


def _condition(key: str, value: Wanted) -> Condition:
    if isinstance(value, Range):
        return Condition(key, range=value)
    if isinstance(value, OneOf):
        strings = tuple(one for one in value.values if isinstance(one, str))
        if len(strings) == len(value.values):
            return Condition(key, strings=strings)
        return Condition(key, any_of=tuple(_condition(key, one) for one in value.values))
    if isinstance(value, (bool, str)) or isinstance(value, int) and abs(value) >= 2**53:
        return Condition(key, equals=value)
    return Condition(key, range=Range(gte=value, lte=value))  # 7 and 7.0 are the same


def check_points(points: Sequence[Point], dimension: int, location: str) -> None:
    """Raise `StoreError` for the first point with a vector of another dimension or with NaN or infinity.

    The engine stores NaN, and the points before one with a wrong dimension.
    """
    for point in points:
        for name, vector in point.vectors.items():
            if vector.shape[-1] != dimension or not np.isfinite(vector).all():
                raise StoreError(
                    f"vector {name!r} of point {point.id} cannot be stored in the index at {location}: shape "
                    f"{vector.shape}, dimension {dimension}, or it holds NaN or infinity"
                )
        for name, sparse in point.sparse.items():
            if sparse.indices.shape != sparse.values.shape or not np.isfinite(sparse.values).all():
                raise StoreError(
                    f"sparse vector {name!r} of point {point.id} cannot be stored in the index at {location}: "
                    f"{sparse.indices.shape} indices, {sparse.values.shape} values, or it holds NaN or infinity"
                )


def in_requests(points: Sequence[Point], max_bytes: int) -> Iterator[list[Point]]:
    """Groups of points that make requests of about `max_bytes` at most; a larger point goes alone."""
    group: list[Point] = []
    size = 0
    for point in points:
        own = request_bytes(point)
        if group and size + own > max_bytes:
            yield group
            group, size = [], 0
        group.append(point)
        size += own
    if group:
        yield group


def request_bytes(point: Point) -> int:
    """About how many bytes a point takes in a request: texts count as they are, all else by its usual size."""
    numbers = sum(vector.size for vector in point.vectors.values()) + sum(
        2 * s.indices.size for s in point.sparse.values()
    )
    texts = sum(len(value.encode("utf-8")) for value in point.payload.values() if isinstance(value, str))
    lists = sum(len(value) for value in point.payload.values() if isinstance(value, (list, tuple)))
    return 20 * numbers + texts + 8 * lists + 500
