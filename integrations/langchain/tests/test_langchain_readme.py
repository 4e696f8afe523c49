"""The README's code runs as it stands, but for the addresses in it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database
from support.embedding_server import EmbeddingServer
from support.readme import Readme

from langchain_m2rag import M2QdrantVectorStore

README = Readme(Path(__file__).parents[1] / "README.md")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_example_has_its_test() -> None:
    assert len(README.examples) == 5


def test_first_example_and_passages(capsys: pytest.CaptureFixture[str]) -> None:
    store: M2QdrantVectorStore = README.run(README.example(""))["store"]
    assert capsys.readouterr().out.strip() == "pep-0305"
    store.close()
    README.run(README.example("Passages"))  # the same folder: reads what is there
    lines = capsys.readouterr().out
    assert lines.startswith("pep-0308 ") and len(re.findall(r"^pep-\d+ \d+ ", lines, re.M)) == 2


def test_models_elsewhere(server: EmbeddingServer) -> None:
    scope = README.run(README.example("Models elsewhere"), **{"https://host/v1": server.url})
    assert len(scope["vectors"]) == 2 and server.requests[0].headers["authorization"] == "Bearer ..."
    scope["embeddings"].embedder.close()


@pytest.mark.filterwarnings("default")  # of the packages of others
def test_langchain_qdrant(qdrant_url: str, collection: str, capsys: pytest.CaptureFixture[str]) -> None:
    README.run(
        README.example("Plain langchain-qdrant"), **{"http://localhost:6333": qdrant_url, '"papers"': f'"{collection}"'}
    )
    assert capsys.readouterr().out == "A whole long document.\n"


@pytest.mark.filterwarnings("default")
def test_langchain_mongodb(database: Database[Any], mongodb_uri: str) -> None:
    where = {"mongodb+srv://USER:PASSWORD@CLUSTER": mongodb_uri, "library.papers": f"{database.name}.papers"}
    store = README.run(README.example("Plain langchain-mongodb"), **where)["store"]
    deadline = time.monotonic() + 60
    while len(found := store.similarity_search("long", k=2)) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [one.page_content for one in found] == ["A whole long document.", "Another one."]
    store.close()
