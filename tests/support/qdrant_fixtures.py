"""Fixtures of tests that need a Qdrant server: the test double, or with QDRANT_URL a real one.

Import them into a conftest.py. QDRANT_URL is http[s]://HOST:PORT, its key in QDRANT_API_KEY; every test makes a
collection of its own there and removes it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from qdrant_client import QdrantClient
from support.qdrant_server import QdrantTestServer


@pytest.fixture(scope="session")
def qdrant_url() -> Iterator[str]:
    """URL of a server that works."""
    real = os.environ.get("QDRANT_URL")
    if real:
        yield real.rstrip("/")
        return
    with QdrantTestServer() as server:
        yield server.url


@pytest.fixture(scope="session")
def qdrant(qdrant_url: str) -> Iterator[QdrantClient]:
    """A client of that server."""
    client = QdrantClient(qdrant_url, api_key=os.environ.get("QDRANT_API_KEY"), timeout=60, check_compatibility=False)
    yield client
    client.close()


@contextmanager
def new_collection(client: QdrantClient) -> Iterator[str]:
    """A name for a collection that is not there yet and is removed afterwards."""
    name = f"m2rag-test-{uuid.uuid4().hex}"
    try:
        yield name
    finally:
        client.delete_collection(name)


@pytest.fixture
def collection(qdrant: QdrantClient) -> Iterator[str]:
    """A name for a collection of the test's own."""
    with new_collection(qdrant) as name:
        yield name


@pytest.fixture
def collection_url(qdrant_url: str, collection: str) -> str:
    """Its URL."""
    return f"{qdrant_url}/{collection}"


@pytest.fixture
def double() -> Iterator[QdrantTestServer]:
    """A test double of the test's own, for what no real server does on order: failing, stopping, being asked for."""
    with QdrantTestServer() as server:
        yield server
