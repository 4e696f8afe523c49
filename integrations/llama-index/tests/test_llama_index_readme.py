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

README = Readme(Path(__file__).parents[1] / "README.md")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_example_has_its_test() -> None:
    assert len(README.examples) == 6


def test_first_example(capsys: pytest.CaptureFixture[str]) -> None:
    README.run(README.example(""))
    assert re.fullmatch(r"pep-0305 0\.\d{3}\n", capsys.readouterr().out)


def test_whole_documents(capsys: pytest.CaptureFixture[str]) -> None:
    README.run(README.example("Whole documents"))
    assert capsys.readouterr().out == "1 384\n"


def test_passages(capsys: pytest.CaptureFixture[str]) -> None:
    README.run(README.example("Passages"))
    said = capsys.readouterr().out
    assert said.startswith("pep-0308 ") and len(re.findall(r"^pep-\d+ \d+ ", said, re.M)) == 2


def test_models_elsewhere(server: EmbeddingServer) -> None:
    scope = README.run(README.example("Models elsewhere"), **{"https://host/v1": server.url})
    assert len(scope["vectors"]) == 2 and server.requests[0].headers["authorization"] == "Bearer ..."


@pytest.mark.filterwarnings("default")  # of the packages of others
def test_qdrant(qdrant_url: str, collection: str, capsys: pytest.CaptureFixture[str]) -> None:
    README.run(
        README.example("Plain QdrantVectorStore"),
        **{"http://localhost:6333": qdrant_url, '"papers"': f'"{collection}"'},
    )
    assert capsys.readouterr().out == "A whole long document.\n"


@pytest.mark.filterwarnings("default")
def test_mongodb(database: Database[Any], mongodb_uri: str) -> None:
    where = {"mongodb+srv://USER:PASSWORD@CLUSTER": mongodb_uri, '"library"': f'"{database.name}"'}
    scope = README.run(README.example("Plain MongoDBAtlasVectorSearch"), **where)
    retriever = scope["index"].as_retriever(similarity_top_k=1)
    deadline = time.monotonic() + 60
    while not (found := retriever.retrieve("long")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found[0].text == "A whole long document." and found[0].node.ref_doc_id == "long"
    scope["client"].close()
