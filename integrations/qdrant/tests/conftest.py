"""Collections of every kind behind one face: on a server by either client, and in a folder."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_embedder import HashEmbedder
from qdrant_client import AsyncQdrantClient, QdrantClient
from support.network import no_network
from support.qdrant_fixtures import collection, collection_url, double, qdrant, qdrant_url

from m2rag.stores.retry import Patience
from m2rag_qdrant import AsyncDocumentCollection, DocumentCollection

__all__ = ["collection", "collection_url", "double", "no_network", "qdrant", "qdrant_url"]

Make = Callable[..., Any]


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        """The result of a coroutine."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(120)

    def stop(self) -> None:
        """End the thread."""
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class Awaited:
    """An `AsyncDocumentCollection` with the methods of the other one."""

    def __init__(self, wrapped: AsyncDocumentCollection, loop: Loop) -> None:
        self._wrapped = wrapped
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._wrapped, name)
        return (lambda *args, **more: self._loop.run(method(*args, **more))) if callable(method) else method

    def __len__(self) -> int:
        return self._loop.run(self._wrapped.count())

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def async_qdrant(qdrant_url: str, loop: Loop) -> Iterator[AsyncQdrantClient]:
    key = os.environ.get("QDRANT_API_KEY")
    client = AsyncQdrantClient(qdrant_url, api_key=key, timeout=60, check_compatibility=False)
    yield client
    loop.run(client.close())


@pytest.fixture(params=["client", "async client", "folder"])
def make(request: pytest.FixtureRequest, tmp_path: Path, qdrant: QdrantClient, collection: str, loop: Loop) -> Make:
    """Opens the test's collection, the same one whenever it is called: `make(embedder, **options)`."""

    def opened(embedder: Any = None, **options: Any) -> Any:
        embedder = embedder or HashEmbedder()
        if request.param == "client":
            return DocumentCollection.on_server(qdrant, collection, embedder, **options)
        if request.param == "folder":
            return DocumentCollection.in_folder(tmp_path / "folder", embedder, **options)
        client = request.getfixturevalue("async_qdrant")
        return Awaited(loop.run(AsyncDocumentCollection.on_server(client, collection, embedder, **options)), loop)

    return opened


@pytest.fixture
def patience() -> Patience:
    """Pauses of milliseconds."""
    return Patience(seconds=20, first_pause=0.01, longest_pause=0.05)
