"""Collections of every kind behind one face: by either client, and by URL; the test double, or a real server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_embedder import HashEmbedder
from pymongo import AsyncMongoClient, MongoClient
from pymongo.database import Database
from support.atlas_fixtures import database, front, mongod, mongodb, mongodb_uri
from support.atlas_front import AtlasFront
from support.awaited import Awaited, Loop, loop

from m2rag.stores.retry import Patience
from m2rag_mongodb import AsyncDocumentCollection, CollectionOptions, DocumentCollection

if not os.environ.get("MONGODB_URI"):  # a real cluster is many hosts, found by name
    from support.network import no_network  # noqa: F401

pytest.register_assert_rewrite("support.collection_cases", "support.store_cases")  # asserts that show their values

__all__ = ["database", "front", "mongod", "mongodb", "mongodb_uri", "loop"]

Doc = dict[str, Any]


@pytest.fixture(scope="session")
def async_mongodb(mongodb_uri: str, loop: Loop) -> Iterator[AsyncMongoClient[Doc]]:
    client: AsyncMongoClient[Doc] = AsyncMongoClient(mongodb_uri)
    yield client
    loop.run(client.close())


@pytest.fixture(params=["client", "async client"])
def make(request: pytest.FixtureRequest, database: Database[Doc], loop: Loop) -> Callable[..., Any]:
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
