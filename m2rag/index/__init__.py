"""Index whole documents and find them by meaning."""

from __future__ import annotations

from m2rag.index.asynchronous import AsyncLongDocumentIndex
from m2rag.index.documents import AddProgress, AddReport, Document, Failure, Hit, Outcome, Passage, Stored
from m2rag.index.embedding import Embedder
from m2rag.index.filters import MetadataFilter
from m2rag.index.index import LongDocumentIndex, read_info
from m2rag.index.maintenance import delete_documents, restore_index, snapshot_index
from m2rag.index.modes import Mode
from m2rag.index.on_ray import add_with_ray
from m2rag.index.readers import parse_document, parse_documents, read_document, read_documents
from m2rag.index.sync import SyncReport

__all__ = [
    "AddProgress",
    "AddReport",
    "AsyncLongDocumentIndex",
    "Document",
    "Embedder",
    "Failure",
    "Hit",
    "LongDocumentIndex",
    "MetadataFilter",
    "Mode",
    "Outcome",
    "Passage",
    "Stored",
    "SyncReport",
    "add_with_ray",
    "delete_documents",
    "parse_document",
    "parse_documents",
    "read_document",
    "read_documents",
    "read_info",
    "restore_index",
    "snapshot_index",
]
