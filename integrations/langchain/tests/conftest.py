"""What the tests share: the bundled model loaded once, servers on loopback, no network."""

from __future__ import annotations

import os

import pytest
from support.adapter_fixtures import no_settings, server
from support.atlas_fixtures import database, mongod, mongodb, mongodb_uri
from support.qdrant_fixtures import collection, collection_url, double, qdrant, qdrant_url

from langchain_m2rag import M2Embeddings

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
    "no_settings",
    "qdrant",
    "qdrant_url",
    "server",
]


@pytest.fixture(scope="session")
def embeddings() -> M2Embeddings:
    """The bundled checkpoint, in this process."""
    return M2Embeddings()
