"""Whole long documents in Qdrant: collections made for an embedder, safe uploads, hybrid search."""

from __future__ import annotations

from m2rag_qdrant.asynchronous import AsyncDocumentCollection
from m2rag_qdrant.collection import DocumentCollection
from m2rag_qdrant.options import CollectionOptions, collection_config
from m2rag_qdrant.query import hybrid_query

__all__ = [
    "AsyncDocumentCollection",
    "CollectionOptions",
    "DocumentCollection",
    "collection_config",
    "hybrid_query",
]
