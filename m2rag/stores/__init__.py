"""Where vectors live. One protocol (`VectorStore`) and Qdrant behind it: Qdrant Edge in a folder, or a server."""

from __future__ import annotations

from m2rag.stores.base import (
    FieldKind,
    Filter,
    Manifest,
    OneOf,
    Point,
    Quantization,
    Range,
    Scalar,
    Schema,
    SnapshotStore,
    SparseVector,
    TextStore,
    VectorSpec,
    VectorStore,
)
from m2rag.stores.opening import StoreOpener, open_store, without_secrets
from m2rag.stores.qdrant_edge import EdgeStore

__all__ = [
    "EdgeStore",
    "FieldKind",
    "Filter",
    "Manifest",
    "OneOf",
    "Point",
    "Quantization",
    "Range",
    "Scalar",
    "Schema",
    "SnapshotStore",
    "SparseVector",
    "StoreOpener",
    "TextStore",
    "VectorSpec",
    "VectorStore",
    "open_store",
    "without_secrets",
]
