"""Fixtures of tests that need MongoDB Atlas: the test double, or with MONGODB_URI a real one.

Import them into a conftest.py. MONGODB_URI is a connection string with user and password; every test makes a database
of its own there and removes it.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient, common
from pymongo.database import Database
from support.atlas_front import AtlasFront, SecantusProcess

Doc = dict[str, Any]

if not os.environ.get("MONGODB_URI"):
    # A driver that has lost its server looks for it no more often than this; half a second makes minutes of the tests.
    common.MIN_HEARTBEAT_INTERVAL = 0.02


@pytest.fixture(scope="session")
def mongod() -> Iterator[int]:
    """Port of a document store without search."""
    if importlib.util.find_spec("secantus") is None:
        pytest.skip("SecantusDB, the document store behind the test double, is not installed: pip install secantusdb")
    process = SecantusProcess()
    yield process.port
    process.stop()


@pytest.fixture(scope="session")
def mongodb_uri(request: pytest.FixtureRequest) -> Iterator[str]:
    """Connection string of a server that works."""
    real = os.environ.get("MONGODB_URI")
    if real:
        yield real
        return
    with AtlasFront(request.getfixturevalue("mongod")) as front:
        yield front.uri


@pytest.fixture(scope="session")
def mongodb(mongodb_uri: str) -> Iterator[MongoClient[Doc]]:
    """A client of that server."""
    client: MongoClient[Doc] = MongoClient(mongodb_uri)
    yield client
    client.close()


@pytest.fixture
def database(mongodb: MongoClient[Doc]) -> Iterator[Database[Doc]]:
    """A database of the test's own."""
    name = f"m2rag_test_{uuid.uuid4().hex[:16]}"
    yield mongodb[name]
    mongodb.drop_database(name)


@pytest.fixture
def front(mongod: int) -> Iterator[AtlasFront]:
    """A test double of the test's own, for what no real server does on order: failing, stopping, being slow."""
    with AtlasFront(mongod) as server:
        yield server
        names = {database for database, _ in server.indexes}
        for name in names:
            server._store.drop_database(name)
