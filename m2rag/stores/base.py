"""What the index asks of a vector store: nothing that Qdrant (in process or as a server) and its like do not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable
from uuid import UUID

import numpy as np

Scalar: TypeAlias = "str | int | float | bool"
Bound: TypeAlias = "int | float | datetime"


@dataclass(frozen=True)
class Range:
    """Numbers, or dates, within bounds; a bound that is None is none.

    Attributes:
        gte, gt, lte, lt: at least, more than, at most, less than. All numbers, or all dates with a time zone: those
            are compared with strings in ISO 8601, of which one without a time zone means UTC.
    """

    gte: Bound | None = None
    gt: Bound | None = None
    lte: Bound | None = None
    lt: Bound | None = None

    @property
    def of_dates(self) -> bool:
        """Whether it bounds dates."""
        return any(isinstance(bound, datetime) for bound in self.bounds().values())

    def bounds(self) -> dict[str, Bound]:
        """Those that are set, by name."""
        return {name: bound for name, bound in vars(self).items() if bound is not None}


@dataclass(frozen=True)
class OneOf:
    """Any of some values, of which there is at least one."""

    values: tuple[Scalar, ...]


Wanted: TypeAlias = "Scalar | Range | OneOf"
Filter: TypeAlias = "Mapping[tuple[str, ...], Wanted]"
"""Path of a payload field -> what it must be (or, where the field is a list, what one of its items must be). Several
mean AND."""

FieldKind: TypeAlias = Literal["keyword", "integer", "float", "bool", "datetime"]
"""What the values of a payload field with an index are; the index leaves all others out."""

Quantization: TypeAlias = Literal["scalar", "binary"]

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
        lexical: language of the words in its sparse vectors; None where it has none.
        quantization: of its searched vectors, as `VectorSpec` has it.
    """

    fingerprint: str
    dimension: int
    created: str
    m2rag_version: str
    format: int = FORMAT
    model: str | None = None
    lexical: str | None = None
    quantization: Quantization | None = None


@dataclass(frozen=True)
class VectorSpec:
    """One named vector of a collection, compared by cosine.

    Attributes:
        name: its name.
        size: dimension D.
        multi: a point holds a matrix (P, D) under this name instead of one (D,) vector.
        searched: an approximate index is worth its price; False for vectors that are only fetched.
        quantization: also keep a copy of 8 bits ("scalar") or 1 bit ("binary") a number, which searches go through
            first; what they find is scored with the vector itself.
    """

    name: str
    size: int
    multi: bool = False
    searched: bool = True
    quantization: Quantization | None = None


@dataclass(frozen=True)
class Schema:
    """What a collection holds.

    Attributes:
        vectors: dense vectors.
        listed_fields: payload fields whose values can be listed without reading payloads.
        sparse: names of sparse vectors, compared by dot product with the query's numbers weighed by rarity (IDF).
        filterable: payload fields, by path, that filters are fast on.
    """

    vectors: tuple[VectorSpec, ...]
    listed_fields: Mapping[str, Literal["keyword", "integer"]] = field(default_factory=dict)
    sparse: tuple[str, ...] = ()
    filterable: Mapping[tuple[str, ...], FieldKind] = field(default_factory=dict)


@dataclass(frozen=True)
class SparseVector:
    """A vector of which only some numbers are not 0.

    Attributes:
        indices: (S,) integers in [0, 2**32), each once.
        values: (S,) float32.
    """

    indices: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Point:
    """One stored document.

    Attributes:
        id: its id.
        vectors: dense vectors by name, (D,) or (P, D) float32.
        payload: JSON values.
        score: how near it is, after a query.
        sparse: sparse vectors by name.
    """

    id: UUID
    vectors: Mapping[str, np.ndarray]
    payload: Mapping[str, Any]
    score: float = 0.0
    sparse: Mapping[str, SparseVector] = field(default_factory=dict)


@runtime_checkable
class TextStore(Protocol):
    """What a `VectorStore` has besides where it finds words by itself, and not by sparse vectors."""

    @property
    def text_language(self) -> str | None:
        """Language its words are read in; None where this collection has no index of words."""
        ...

    def by_words(
        self, text: str, *, limit: int, filter: Filter | None = None, payload: Sequence[str] = ()
    ) -> list[Point]:
        """The `limit` points whose text or title fits the words best, best first; the score is above 0."""
        ...


@runtime_checkable
class SnapshotStore(Protocol):
    """What a `VectorStore` has besides where all of it can be written into one file."""

    def snapshot(self, file: Path) -> None:
        """Write everything into a new file, all of it or none; nothing may be written to the store meanwhile."""
        ...


@runtime_checkable
class VectorStore(Protocol):
    """One open collection. Every method raises `StoreError` when the store fails or is closed.

    A store that others can change while it is open checks before every write and query that the collection is still
    of the fingerprint in `manifest`, and raises `IndexMismatchError` if it is not.
    """

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

    def upsert(self, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Write or replace points. Once this returns they survive the death of this process.

        With `insert_only` points that are there already are left alone. A call that fails may have written some of the
        points, each of them whole; the same call again puts that right.

        Raises:
            PointTooLargeError: points that the store cannot take; the call works without them.
        """
        ...

    def retrieve(
        self, ids: Sequence[UUID], *, payload: Sequence[str] = (), vectors: Sequence[str] = ()
    ) -> dict[UUID, Point]:
        """Points by id with the named payload fields and dense vectors; ids that are not stored are absent."""
        ...

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

        A point that has no vector of this name, or none of whose sparse numbers meet the query's, is not found.
        """
        ...

    def similarities(self, name: str, vector: np.ndarray, ids: Sequence[UUID]) -> dict[UUID, float]:
        """How near points are to `vector` (D,): the cosine of their vector of this name, of a matrix its nearest row's.

        Points that are not stored or have no vector of this name are absent.
        """
        ...

    def values(self, listed_field: str) -> dict[str | int, int]:
        """Every value of a listed payload field -> number of points that have it."""
        ...

    def filterable(self) -> dict[tuple[str, ...], str]:
        """Payload fields, by path, that have an index for filters, and its kind; "any" where the store has no kinds."""
        ...

    def make_filterable(self, path: tuple[str, ...], kind: FieldKind) -> None:
        """Give a payload field an index, in place of one of another kind; nothing happens where it has this one."""
        ...

    def delete(self, ids: Sequence[UUID]) -> None:
        """Remove points; ids that are not stored are ignored."""
        ...

    def flush(self) -> None:
        """Make everything written so far survive a power failure too."""
        ...

    def optimize(self, *, live: bool = False) -> None:
        """Let the engine build or merge its search structures where it finds that worth while.

        With `live` only what does not stop the other threads of this process for long.
        """
        ...

    def size_bytes(self) -> int | None:
        """Space taken, in bytes; None where the store does not tell."""
        ...

    def close(self) -> None:
        """Write what is pending and let go of the store. Closing twice is fine."""
        ...
