"""Uploads that are killed, cancelled, or lose their server: run again, nothing is lost and nothing paid twice."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_embedder import HashEmbedder
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from support.collection_cases import DOCUMENTS, document
from support.killed import kill_once_done
from support.qdrant_server import QdrantTestServer

from m2rag.errors import StoreError
from m2rag.index.documents import point_id
from m2rag.stores.retry import Patience
from m2rag_qdrant import AsyncDocumentCollection, DocumentCollection

N = len(DOCUMENTS)
WORKER = Path(__file__).with_name("kill_worker.py")


@pytest.mark.parametrize("kind", ["client", "async client", "folder"])
def test_killed_and_run_again(
    kind: str, tmp_path: Path, qdrant: QdrantClient, qdrant_url: str, collection: str
) -> None:
    def opened(embedder: HashEmbedder) -> DocumentCollection:
        if kind == "folder":
            return DocumentCollection.in_folder(tmp_path / "folder", embedder)
        return DocumentCollection.on_server(qdrant, collection, embedder)

    place = str(tmp_path / "folder") if kind == "folder" else qdrant_url
    paths = os.pathsep.join([str(WORKER.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths}
    done = kill_once_done([str(WORKER), kind, place, collection], 7, env=environment, after=0.02)
    embedder = HashEmbedder()
    with opened(embedder) as again:
        there = len(again)
        assert done <= there < N, "what was counted as done got lost"
        report = again.add(DOCUMENTS)
        assert (report.unchanged, report.added, len(again)) == (there, N - there, N)
        assert len(embedder.embedded) == N - there
        for one in DOCUMENTS:
            assert again.get(one.id) == one
        assert [hit.id for hit in again.search("only3", mode="lexical")] == ["folder/03.txt"]


class Watched:
    """A client whose writes are counted, by mode."""

    def __init__(self, client: QdrantClient) -> None:
        self.client = client
        self.modes: list[tuple[Any, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def upsert(self, **arguments: Any) -> Any:
        assert arguments["wait"] is True
        self.modes.append((arguments["update_mode"], len(arguments["points"])))
        return self.client.upsert(**arguments)


@pytest.fixture
def watched(double: QdrantTestServer) -> Any:
    client = QdrantClient(double.url, check_compatibility=False)
    yield Watched(client)
    client.close()


@pytest.mark.parametrize("done_first", [False, True], ids=["before", "after"])
def test_the_connection_breaks_in_the_middle(
    watched: Any, double: QdrantTestServer, patience: Patience, done_first: bool
) -> None:
    embedder = HashEmbedder()
    opened = DocumentCollection.on_server(watched, "docs", embedder, patience=patience)
    double.fail(3, "PUT .*/points", status=0, done_first=done_first)
    report = opened.add(DOCUMENTS, batch_tokens=100)
    assert (report.added, report.failed, len(opened), len(embedder.embedded)) == (N, [], N, N)
    changed = [document(i, " Changed.") for i in range(3)]
    opened.add([*changed, *DOCUMENTS[3:]])
    new, replaced = models.UpdateMode.INSERT_ONLY, None
    assert [mode for mode, _ in watched.modes[:-1]] == [new] * (len(watched.modes) - 1)
    assert watched.modes[-1] == (replaced, 3) and sum(n for _, n in watched.modes[:-1]) > N


def test_a_rate_limit_is_obeyed(watched: Any, double: QdrantTestServer) -> None:
    slept: list[float] = []
    patience = Patience(seconds=60, sleep=slept.append, clock=lambda: sum(slept))
    opened = DocumentCollection.on_server(watched, "docs", HashEmbedder(), patience=patience)
    double.fail(2, "PUT .*/points", status=429, retry_after=5)
    assert opened.add(DOCUMENTS).added == N and slept == [5, 5]


def test_the_server_goes_away(watched: Any, double: QdrantTestServer) -> None:
    done: list[int] = []
    impatient = Patience(seconds=0.3, first_pause=0.01, longest_pause=0.05)
    opened = DocumentCollection.on_server(watched, "docs", HashEmbedder(), patience=impatient)

    def watch(state: Any) -> None:
        done.append(state.done)
        if state.done >= 6:
            double.stop()

    with pytest.raises(StoreError, match="cannot be reached.*Nothing of this call counts as done"):
        opened.add(DOCUMENTS, batch_tokens=60, progress=watch)
    double.start()
    there = len(opened)
    assert done[-1] <= there < N
    report = opened.add(DOCUMENTS)
    assert (report.unchanged, report.added, len(opened)) == (there, N - there, N)


def test_two_uploaders_at_once(double: QdrantTestServer) -> None:
    """Both add the same documents to the same new collection: every document is there once, whole."""
    collections: list[DocumentCollection] = []

    def upload() -> None:
        client = QdrantClient(double.url, check_compatibility=False)
        collections.append(DocumentCollection.on_server(client, "docs", HashEmbedder()))
        collections[-1].add(DOCUMENTS, batch_tokens=100)

    threads = [threading.Thread(target=upload) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(collections) == 2 and collections[0].ids() == [one.id for one in DOCUMENTS]
    assert all(collections[0].get(one.id) == one for one in DOCUMENTS)
    vectors = collections[0]._store.retrieve([point_id(one.id) for one in DOCUMENTS], vectors=("doc", "passages"))
    for one in DOCUMENTS:
        stored = vectors[point_id(one.id)].vectors
        np.testing.assert_allclose(stored["doc"], HashEmbedder().vector(one.text), atol=1e-6)
        assert len(stored["passages"]) == len(HashEmbedder().passages(one.text))


# With an event loop


def test_the_loop_goes_on_while_documents_are_added(double: QdrantTestServer) -> None:
    async def main() -> int:
        client = AsyncQdrantClient(double.url, check_compatibility=False)
        opened = await AsyncDocumentCollection.on_server(client, "docs", HashEmbedder(seconds_per_text=0.02))
        ticks = 0
        adding = asyncio.create_task(opened.add(DOCUMENTS, batch_tokens=60))
        while not adding.done():
            await asyncio.sleep(0.005)
            ticks += 1
        assert (await adding).added == await opened.count() == N
        await client.close()
        return ticks

    assert asyncio.run(main()) > 5  # of about 80; a loop that is held up has none


def test_cancelled_it_stops_and_keeps_what_is_done(double: QdrantTestServer) -> None:
    async def main() -> None:
        client = AsyncQdrantClient(double.url, check_compatibility=False)
        embedder = HashEmbedder(seconds_per_text=0.05)
        opened = await AsyncDocumentCollection.on_server(client, "docs", embedder)
        seen = asyncio.Event()
        loop = asyncio.get_running_loop()

        def watch(state: Any) -> None:
            if state.done >= 5:
                loop.call_soon_threadsafe(seen.set)

        adding = asyncio.create_task(opened.add(DOCUMENTS, batch_tokens=60, progress=watch))
        await seen.wait()
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        await asyncio.sleep(0.3)
        kept = await opened.count()
        embedded = len(embedder.embedded)
        await asyncio.sleep(0.3)
        assert 5 <= kept < N and len(embedder.embedded) == embedded, "the thread went on"
        report = await opened.add(DOCUMENTS)
        assert (report.unchanged, report.added) == (kept, N - kept)
        await client.close()

    asyncio.run(main())


def test_calls_at_once(double: QdrantTestServer) -> None:
    async def main() -> None:
        client = AsyncQdrantClient(double.url, check_compatibility=False)
        async with await AsyncDocumentCollection.on_server(client, "docs", HashEmbedder()) as opened:
            reports = await asyncio.gather(*(opened.add(DOCUMENTS[i : i + 5]) for i in range(0, N, 5)))
            assert [report.added for report in reports] == [5] * 4
            found = await asyncio.gather(*(opened.search(f"only{i}", 1, mode="lexical") for i in range(N)))
            assert [hits[0].id for hits in found] == [one.id for one in DOCUMENTS]
        await client.close()

    asyncio.run(main())
