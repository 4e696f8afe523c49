"""The README's code runs as it stands, but for the addresses in it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database
from support.embedding_server import EmbeddingServer

README = Path(__file__).parents[1] / "README.md"


def code(section: str) -> str:
    """The example of a section; "" is what comes before the first."""
    text = README.read_text(encoding="utf-8")
    body = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.M | re.S)).get(section, text.split("\n## ")[0])
    [block] = re.findall(r"```python\n(.*?)```", body, re.S)
    return block


def run(source: str, **replaced: str) -> dict[str, Any]:
    for old, new in replaced.items():
        assert old in source
        source = source.replace(old, new)
    scope: dict[str, Any] = {"__name__": "readme"}
    exec(compile(source, str(README), "exec"), scope)
    return scope


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_example_has_its_test() -> None:
    assert README.read_text(encoding="utf-8").count("```python") == 6


def test_first_example(capsys: pytest.CaptureFixture[str]) -> None:
    run(code(""))
    assert re.fullmatch(r"pep-0305 0\.\d{3}\n", capsys.readouterr().out)


def test_whole_documents(capsys: pytest.CaptureFixture[str]) -> None:
    run(code("Whole documents"))
    assert capsys.readouterr().out == "1 384\n"


def test_passages(capsys: pytest.CaptureFixture[str]) -> None:
    run(code("Passages"))
    said = capsys.readouterr().out
    assert said.startswith("pep-0308 ") and len(re.findall(r"^pep-\d+ \d+ ", said, re.M)) == 2


def test_models_elsewhere(server: EmbeddingServer) -> None:
    scope = run(code("Models elsewhere"), **{"https://host/v1": server.url})
    assert len(scope["vectors"]) == 2 and server.requests[0].headers["authorization"] == "Bearer ..."


@pytest.mark.filterwarnings("default")  # of the packages of others
def test_qdrant(qdrant_url: str, collection: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(code("Plain QdrantVectorStore"), **{"http://localhost:6333": qdrant_url, '"papers"': f'"{collection}"'})
    assert capsys.readouterr().out == "A whole long document.\n"


@pytest.mark.filterwarnings("default")
def test_mongodb(database: Database[Any], mongodb_uri: str) -> None:
    where = {"mongodb+srv://USER:PASSWORD@CLUSTER": mongodb_uri, '"library"': f'"{database.name}"'}
    scope = run(code("Plain MongoDBAtlasVectorSearch"), **where)
    retriever = scope["index"].as_retriever(similarity_top_k=1)
    deadline = time.monotonic() + 60
    while not (found := retriever.retrieve("long")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found[0].text == "A whole long document." and found[0].node.ref_doc_id == "long"
    scope["client"].close()
