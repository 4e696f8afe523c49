"""Thirty real long documents with the bundled model, end to end: add, kill, resume, query, filter, delete."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from m2rag import M2Embedder
from m2rag.demo import load_documents
from m2rag.index import Document
from m2rag_qdrant import DocumentCollection

N = 30


def real_documents() -> list[Document]:
    """Python Enhancement Proposals, of thousands of tokens each."""
    return [
        replace(document, metadata={**(document.metadata or {}), "third": i % 3 == 0})
        for i, document in enumerate(load_documents()[:N])
    ]


def opened(place: str, name: str, max_tokens: int | None) -> DocumentCollection:
    embedder = M2Embedder(max_tokens=max_tokens)
    if "://" in place:
        return DocumentCollection.on_server(QdrantClient(place, check_compatibility=False), name, embedder)
    return DocumentCollection.in_folder(place, embedder)


def add_some(
    place: str,
    name: str,
    max_tokens: int | None,
    documents: Sequence[Document],
    killed: multiprocessing.synchronize.Event,
) -> None:
    def watch(state: object) -> None:
        if state.done >= 10:  # type: ignore[attr-defined]
            killed.set()
            time.sleep(600)

    opened(place, name, max_tokens).add(documents, on_too_long="truncate", batch_tokens=20_000, progress=watch)


@pytest.mark.parametrize(
    "max_tokens",
    [pytest.param(256, id="openings"), pytest.param(None, id="whole", marks=pytest.mark.slow)],  # a minute
)
@pytest.mark.parametrize("kind", ["server", "folder"])
def test_thirty_real_documents(
    kind: str, max_tokens: int | None, tmp_path: Path, qdrant_url: str, collection: str
) -> None:
    documents = real_documents()
    assert sum(len(document.text) > 20_000 for document in documents) > 20
    place = qdrant_url if kind == "server" else str(tmp_path / "folder")
    context = multiprocessing.get_context("spawn")
    enough = context.Event()
    process = context.Process(target=add_some, args=(place, collection, max_tokens, documents, enough))
    process.start()
    assert enough.wait(120)
    process.kill()
    process.join()
    with opened(place, collection, max_tokens) as again:
        there = len(again)
        report = again.add(documents, on_too_long="truncate")
        assert 10 <= there < N
        assert (report.unchanged, report.added, report.failed, len(again)) == (there, N - there, [], N)
        for document in documents:
            assert again.get(document.id) == document, "the whole text is kept, whatever the vector is made of"
        wanted = documents[7]
        assert again.search(wanted.title or "", 3, mode="lexical")[0].id == wanted.id
        assert wanted.id in [hit.id for hit in again.search(wanted.title or "", 3)]
        hit = again.search(wanted.text[:700], 1, mode="dense")[0]
        assert hit.id == wanted.id and hit.truncated == (max_tokens is not None) and hit.passages
        third = {document.id for document in documents[::3]}
        found = {hit.id for hit in again.search("Python", N, filter={"third": True})}
        assert found == third
        assert again.delete(third) == 10 and len(again) == N - 10
        assert again.search("Python", N, filter={"third": True}) == []
