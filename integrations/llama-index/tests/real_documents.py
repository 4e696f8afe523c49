"""Long documents of the world, as LlamaIndex has them."""

from __future__ import annotations

from llama_index.core import Document

from m2rag.demo import load_documents


def long_documents(n: int) -> list[Document]:
    """The `n` shortest of forty Python Enhancement Proposals."""
    shortest = sorted(load_documents(), key=lambda document: len(document.text))[:n]
    return [
        Document(id_=one.id, text=one.text, metadata={**(one.metadata or {}), "title": one.title}) for one in shortest
    ]
