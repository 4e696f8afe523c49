"""One vector for a whole long document. See README.md for the first example."""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from m2rag import errors
from m2rag._auto_classes import register_on_import
from m2rag.errors import M2RagError

if TYPE_CHECKING:
    from m2rag.embedder import M2Embedder
    from m2rag.index import Document, Hit, LongDocumentIndex
    from m2rag.models import M2BertConfig, M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel
    from m2rag.results import EmbeddingResult, PassageVectors

try:
    __version__ = version("m2rag")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0"

__all__ = [
    "Document",
    "EmbeddingResult",
    "Hit",
    "LongDocumentIndex",
    "M2BertConfig",
    "M2BertForMaskedLM",
    "M2BertForSequenceClassification",
    "M2BertModel",
    "M2Embedder",
    "M2RagError",
    "PassageVectors",
    "__version__",
    "errors",
]

# Imported on first use: torch and transformers take seconds, and `m2rag --help` needs neither.
_MODULES = {
    "m2rag.embedder": ("M2Embedder",),
    "m2rag.index": ("Document", "Hit", "LongDocumentIndex"),
    "m2rag.models": ("M2BertConfig", "M2BertForMaskedLM", "M2BertForSequenceClassification", "M2BertModel"),
    "m2rag.results": ("EmbeddingResult", "PassageVectors"),
}
_EXPORTS = {name: module for module, names in _MODULES.items() for name in names}

register_on_import()


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
