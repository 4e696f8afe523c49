"""Where vectors live. One protocol (`VectorStore`) and its default, Qdrant Edge in a folder."""

from __future__ import annotations

from pathlib import Path

from m2rag.errors import InvalidInputError
from m2rag.stores.base import Filter, Manifest, Point, Scalar, Schema, VectorSpec, VectorStore
from m2rag.stores.qdrant_edge import EdgeStore

__all__ = [
    "EdgeStore",
    "Filter",
    "Manifest",
    "Point",
    "Scalar",
    "Schema",
    "VectorSpec",
    "VectorStore",
    "open_store",
]


def open_store(where: str | Path, *, create: tuple[Manifest, Schema] | None = None) -> VectorStore:
    """Open the store at a place; create it there if it is missing and `create` says what.

    Args:
        where: a folder.
        create: manifest and schema of a new collection; None to only open.

    Raises:
        InvalidInputError: `where` is a URL or is empty.
        IndexNotFoundError, IndexLockedError, StoreError: see `EdgeStore`.
    """
    if isinstance(where, str) and "://" in where:
        raise InvalidInputError(f"{where} is a URL; this version keeps an index in a folder")
    if not str(where).strip():
        raise InvalidInputError("an index needs a folder, the path given is empty")
    return EdgeStore(where, create=create)
