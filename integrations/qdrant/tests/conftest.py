"""Collections of every kind behind one face: on a server by either client, and in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_embedder import HashEmbedder
from qdrant_client import AsyncQdrantClient, QdrantClient
from support.awaited import Awaited, Loop, loop
from support.network import no_network
from support.qdrant_fixtures import collection, collection_url, double, qdrant, qdrant_url

from m2rag.stores.retry import Patience
from m2rag_qdrant import AsyncDocumentCollection, DocumentCollection

pytest.register_assert_rewrite("support.collection_cases")  # asserts that show their values

__all__ = ["collection", "collection_url", "double", "no_network", "qdrant", "qdrant_url", "loop"]


@pytest.fixture(scope="session")
def async_qdrant(qdrant_url: str, loop: Loop) -> Iterator[AsyncQdrantClient]:
    key = os.environ.get("QDRANT_API_KEY")
    client = AsyncQdrantClient(qdrant_url, api_key=key, timeout=60, check_compatibility=False)
    yield client
    loop.run(client.close())


@pytest.fixture(params=["client", "async client", "folder"])
def make(
    request: pytest.FixtureRequest, tmp_path: Path, qdrant: QdrantClient, collection: str, loop: Loop
) -> Callable[..., Any]:
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
