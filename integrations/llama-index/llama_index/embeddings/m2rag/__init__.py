"""m2rag for LlamaIndex: whole long documents as one vector each."""

from __future__ import annotations

from llama_index.embeddings.m2rag.base import M2Embedding, TextsNotEmbeddedError
from llama_index.embeddings.m2rag.node_parser import WholeDocumentNodeParser
from llama_index.embeddings.m2rag.retriever import M2LongDocumentRetriever

__all__ = ["M2Embedding", "M2LongDocumentRetriever", "TextsNotEmbeddedError", "WholeDocumentNodeParser"]
