"""Real long documents with the bundled model, end to end: add, kill, resume, query, filter, delete."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from conftest import Doc
from pymongo import MongoClient
from pymongo.database import Database

from m2rag import M2Embedder
from m2rag.demo import load_documents
from m2rag.index import Document
from m2rag_mongodb import DocumentCollection


def real_documents(n: int) -> list[Document]:
    """Python Enhancement Proposals, of thousands of tokens each."""
    return [
        replace(document, metadata={**(document.metadata or {}), "third": i % 3 == 0})
        for i, document in enumerate(load_documents()[:n])
    ]


def add_some(uri: str, database: str, documents: Sequence[Document], tokens: int | None, enough: Any, n: int) -> None:
    def watch(state: Any) -> None:
        if state.done >= n:
            enough.set()
            time.sleep(600)

    client: MongoClient[Doc] = MongoClient(uri)
    opened = DocumentCollection.on_server(client[database]["docs"], M2Embedder(max_tokens=tokens))
    opened.add(documents, on_too_long="truncate", batch_tokens=20_000, progress=watch)


@pytest.mark.parametrize(
    ("n", "tokens"),
    [
        pytest.param(6, 256, id="openings-of-some"),
        pytest.param(30, None, id="thirty-whole", marks=pytest.mark.slow),
    ],
)
def test_real_documents(mongodb_uri: str, database: Database[Doc], n: int, tokens: int | None) -> None:
    documents = real_documents(n)
    assert sum(len(document.text) > 20_000 for document in documents) > n / 2
    context = multiprocessing.get_context("spawn")
    enough = context.Event()
    args = (mongodb_uri, database.name, documents, tokens, enough, n // 3)
    process = context.Process(target=add_some, args=args)
    process.start()
    assert enough.wait(300)
    process.kill()
    process.join()
    embedder = M2Embedder(max_tokens=tokens)
    with DocumentCollection.on_server(database["docs"], embedder, create=False) as again:
        there = len(again)
        report = again.add(documents, on_too_long="truncate")
        assert n // 3 <= there < n
        assert (report.unchanged, report.added, report.failed, len(again)) == (there, n - there, [], n)
        for document in documents:
            assert again.get(document.id) == document, "the whole text is kept, whatever the vector is made of"
        wanted = documents[n // 2]
        again.wait_until_ready(300)
        assert again.search(wanted.title or "", 3, mode="lexical")[0].id == wanted.id
        assert wanted.id in [hit.id for hit in again.search(wanted.title or "", 3)]
        hit = again.search(wanted.text[:700], 3, mode="dense")
        assert wanted.id in [one.id for one in hit] and hit[0].passages and hit[0].truncated == (tokens is not None)
        third = {document.id for document in documents[::3]}
        assert {hit.id for hit in again.search("Python", n, filter={"third": True})} == third
        assert again.delete(third) == len(third) and len(again) == n - len(third)
        assert again.search("Python", n, filter={"third": True}) == []
