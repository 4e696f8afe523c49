"""m2rag for LangChain: whole long documents as one vector each."""

from __future__ import annotations

from langchain_m2rag.embeddings import M2Embeddings
from langchain_m2rag.retrievers import M2LongDocumentRetriever
from langchain_m2rag.vectorstores import DocumentsNotStoredError, M2QdrantVectorStore

__all__ = ["DocumentsNotStoredError", "M2Embeddings", "M2LongDocumentRetriever", "M2QdrantVectorStore"]
