"""What the index asks of a vector store: nothing that Qdrant (in process or as a server) and its like do not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable
from uuid import UUID

import numpy as np

Scalar: TypeAlias = "str | int | float | bool"
Filter: TypeAlias = "Mapping[tuple[str, ...], Scalar]"
"""Path of a payload field -> the value it must have (or, where the field is a list, hold). Several mean AND."""

FORMAT = 1
"""Version of the payload layout. A store with a higher one was written by a newer m2rag and is not opened."""


@dataclass(frozen=True)
class Manifest:
    """What a collection was built with, kept beside its vectors.

    Attributes:
        fingerprint: the embedder's, as it was when the collection was created.
        dimension: D of its vectors.
        created: when, ISO 8601 in UTC.
        m2rag_version: by which version of this library.
        format: version of the payload layout.
        model: what `M2Embedder` loads the model by, where that is known; the fingerprint decides whether it is the one.
    """

    fingerprint: str
    dimension: int
    created: str
    m2rag_version: str
    format: int = FORMAT
    model: str | None = None


@dataclass(frozen=True)
class VectorSpec:
    """One named vector of a collection, compared by cosine.

    Attributes:
        name: its name.
        size: dimension D.
        multi: a point holds a matrix (P, D) under this name instead of one (D,) vector.
        searched: an approximate index is worth its price; False for vectors that are only fetched.
    """

    name: str
    size: int
    multi: bool = False
    searched: bool = True


@dataclass(frozen=True)
class Schema:
    """The vectors of a collection, and the payload fields whose values can be listed without reading payloads."""

    vectors: tuple[VectorSpec, ...]
    listed_fields: Mapping[str, Literal["keyword", "integer"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """One stored document: id, vectors by name ((D,) or (P, D) float32), payload, and its score after a query."""

    id: UUID
    vectors: Mapping[str, np.ndarray]
    payload: Mapping[str, Any]
    score: float = 0.0


@runtime_checkable
class VectorStore(Protocol):
    """One open collection. Every method raises `StoreError` when the store fails or is closed."""

    @property
    def location(self) -> str:
        """Folder or URL, as a person would name it."""
        ...

    @property
    def manifest(self) -> Manifest:
        """What the collection was built with."""
        ...

    def count(self) -> int:
        """Points in the collection."""
        ...

    def upsert(self, points: Sequence[Point]) -> None:
        """Write or replace points. Once this returns they survive the death of this process."""
        ...

    def retrieve(
        self, ids: Sequence[UUID], *, payload: Sequence[str] = (), vectors: Sequence[str] = ()
    ) -> dict[UUID, Point]:
        """Points by id with the named payload fields and vectors; ids that are not stored are absent."""
        ...

    def query(
        self,
        name: str,
        vector: np.ndarray,
        *,
        limit: int,
        filter: Filter | None = None,
        payload: Sequence[str] = (),
    ) -> list[Point]:
        """The `limit` points whose vector `name` is nearest by cosine to `vector` (D,), best first."""
        ...

    def values(self, listed_field: str) -> dict[str | int, int]:
        """Every value of a listed payload field -> number of points that have it."""
        ...

    def delete(self, ids: Sequence[UUID]) -> None:
        """Remove points; ids that are not stored are ignored."""
        ...

    def flush(self) -> None:
        """Make everything written so far survive a power failure too."""
        ...

    def optimize(self) -> None:
        """Let the engine build or merge its search structures where it finds that worth while."""
        ...

    def size_bytes(self) -> int:
        """Space taken, in bytes."""
        ...

    def close(self) -> None:
        """Write what is pending and let go of the store. Closing twice is fine."""
        ...
