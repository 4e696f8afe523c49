"""What the tests share: the bundled model loaded once, servers on loopback, no network."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.atlas_fixtures import database, mongod, mongodb, mongodb_uri
from support.embedding_server import EmbeddingServer, serving
from support.qdrant_fixtures import collection, collection_url, double, qdrant, qdrant_url

from llama_index.embeddings.m2rag import M2Embedding

if not os.environ.get("MONGODB_URI"):  # a real cluster is many hosts, found by name
    from support.network import no_network  # noqa: F401

__all__ = [
    "collection",
    "collection_url",
    "database",
    "double",
    "mongod",
    "mongodb",
    "mongodb_uri",
    "qdrant",
    "qdrant_url",
]

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment of who runs the tests says is no matter."""
    for name in ("M2RAG_MODEL", "M2RAG_BASE_URL", "M2RAG_API_KEY", "TOGETHER_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def embedding() -> M2Embedding:
    """The bundled checkpoint, in this process."""
    return M2Embedding()


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    """An OpenAI-style embedding server."""
    with serving() as running:
        yield running
