"""Whole long documents in MongoDB Atlas: collections made for an embedder, hybrid search."""

from __future__ import annotations

from m2rag_mongodb.asynchronous import AsyncDocumentCollection
from m2rag_mongodb.collection import DocumentCollection
from m2rag_mongodb.errors import (
    DefinitionMismatchError,
    IndexNotReadyError,
    SearchUnavailableError,
    UnstorableError,
)
from m2rag_mongodb.indexes import IndexProgress, TextIndex, VectorIndex, aensure_index, ensure_index
from m2rag_mongodb.opening import open_url
from m2rag_mongodb.options import CollectionOptions
from m2rag_mongodb.record import StoreOptions
from m2rag_mongodb.store import MongoStore
from m2rag_mongodb.vectors import from_bindata, to_bindata

__all__ = [
    "AsyncDocumentCollection",
    "CollectionOptions",
    "DefinitionMismatchError",
    "DocumentCollection",
    "IndexNotReadyError",
    "IndexProgress",
    "MongoStore",
    "SearchUnavailableError",
    "StoreOptions",
    "TextIndex",
    "UnstorableError",
    "VectorIndex",
    "aensure_index",
    "ensure_index",
    "from_bindata",
    "open_url",
    "to_bindata",
]
