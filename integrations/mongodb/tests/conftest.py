"""Collections of every kind behind one face: by either client, and by URL; the test double, or a real server."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_embedder import HashEmbedder
from pymongo import AsyncMongoClient, MongoClient
from pymongo.database import Database
from support.atlas_fixtures import database, front, mongod, mongodb, mongodb_uri
from support.atlas_front import AtlasFront

from m2rag.stores.retry import Patience
from m2rag_mongodb import AsyncDocumentCollection, CollectionOptions, DocumentCollection

if not os.environ.get("MONGODB_URI"):  # a real cluster is many hosts, found by name
    from support.network import no_network  # noqa: F401

__all__ = ["database", "front", "mongod", "mongodb", "mongodb_uri"]

Doc = dict[str, Any]
Make = Callable[..., Any]


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        """The result of a coroutine."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(300)

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
def async_mongodb(mongodb_uri: str, loop: Loop) -> Iterator[AsyncMongoClient[Doc]]:
    client: AsyncMongoClient[Doc] = AsyncMongoClient(mongodb_uri)
    yield client
    loop.run(client.close())


@pytest.fixture(params=["client", "async client"])
def make(request: pytest.FixtureRequest, database: Database[Doc], loop: Loop) -> Make:
    """Opens the test's collection, the same one whenever it is called: `make(embedder, **options)`."""

    def opened(embedder: Any = None, **options: Any) -> Any:
        embedder = embedder or HashEmbedder()
        if request.param == "client":
            return DocumentCollection.on_server(database["docs"], embedder, **options)
        collection = request.getfixturevalue("async_mongodb")[database.name]["docs"]
        return Awaited(loop.run(AsyncDocumentCollection.on_server(collection, embedder, **options)), loop)

    return opened


@pytest.fixture
def own(front: AtlasFront) -> Iterator[Callable[..., DocumentCollection]]:
    """Opens a collection on the test's own double, in a second's patience."""
    client: MongoClient[Doc] = MongoClient(front.uri, serverSelectionTimeoutMS=500)

    def opened(embedder: Any = None, **options: Any) -> DocumentCollection:
        options = {"patience": quick(), "options": CollectionOptions(lexical=None), **options}
        return DocumentCollection.on_server(client["m2rag_own"]["docs"], embedder or HashEmbedder(), **options)

    yield opened
    client.close()


def quick(seconds: float = 5.0) -> Patience:
    """Pauses of milliseconds."""
    return Patience(seconds=seconds, first_pause=0.005, longest_pause=0.05)
