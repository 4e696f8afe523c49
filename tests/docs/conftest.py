"""Servers that pages address, on loopback, and the folder they index."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.embedding_server import serving as serving_embeddings
from support.qdrant_fixtures import double
from support.serving import bundled_server

if importlib.util.find_spec("pymongo") and importlib.util.find_spec("m2rag_mongodb"):
    from support.atlas_fixtures import front, mongod
else:

    @pytest.fixture
    def front() -> None:
        pytest.skip("m2rag-mongodb is not installed")


__all__ = ["bundled_server", "double", "front", "mongod"]

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def foreign_server() -> Iterator[str]:
    """An API of embeddings: its base URL."""
    with serving_embeddings() as server:
        yield server.url


@pytest.fixture
def addresses(request: pytest.FixtureRequest) -> Callable[[str], dict[str, str]]:
    """Addresses in a text -> those of servers started for it."""
    servers: dict[str, Callable[[], str]] = {
        "http://localhost:6333": lambda: request.getfixturevalue("double").url,
        "mongodb://localhost:27017": lambda: request.getfixturevalue("front").uri,
        "http://127.0.0.1:8000/v1": lambda: request.getfixturevalue("bundled_server"),
        "https://host/v1": lambda: request.getfixturevalue("foreign_server"),
    }
    return lambda text: {address: start() for address, start in servers.items() if address in text}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own to work in, with the folder papers/."""
    monkeypatch.chdir(tmp_path)
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "delivery.txt").write_text(
        "Terms of delivery\n\nThe carrier is liable for every loss that follows from late delivery of the goods.\n" * 9
    )
    (papers / "lease.md").write_text("# Leases\n\nA lease may run for ninety days, and may be renewed once.\n" * 9)
    (papers / "bread.txt").write_text("Baking bread\n\nMix flour, water, salt and yeast; let the dough rise.\n" * 9)
    return tmp_path
