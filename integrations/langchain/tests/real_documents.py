"""Long documents of the world, as LangChain has them."""

from __future__ import annotations

from langchain_core.documents import Document

from m2rag.demo import load_documents


def long_documents(n: int) -> list[Document]:
    """The `n` shortest of forty Python Enhancement Proposals."""
    shortest = sorted(load_documents(), key=lambda document: len(document.text))[:n]
    return [
        Document(
            id=document.id, page_content=document.text, metadata={**(document.metadata or {}), "title": document.title}
        )
        for document in shortest
    ]
