"""The README's code runs as it stands, but for the addresses in it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database
from support.embedding_server import EmbeddingServer

from langchain_m2rag import M2QdrantVectorStore

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
    assert README.read_text(encoding="utf-8").count("```python") == 5


def test_first_example_and_passages(capsys: pytest.CaptureFixture[str]) -> None:
    store: M2QdrantVectorStore = run(code(""))["store"]
    assert capsys.readouterr().out.strip() == "pep-0305"
    store.close()
    run(code("Passages"))  # the same folder: reads what is there
    lines = capsys.readouterr().out
    assert lines.startswith("pep-0308 ") and len(re.findall(r"^pep-\d+ \d+ ", lines, re.M)) == 2


def test_models_elsewhere(server: EmbeddingServer) -> None:
    scope = run(code("Models elsewhere"), **{"https://host/v1": server.url})
    assert len(scope["vectors"]) == 2 and server.requests[0].headers["authorization"] == "Bearer ..."
    scope["embeddings"].embedder.close()


@pytest.mark.filterwarnings("default")  # of the packages of others
def test_langchain_qdrant(qdrant_url: str, collection: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(code("Plain langchain-qdrant"), **{"http://localhost:6333": qdrant_url, '"papers"': f'"{collection}"'})
    assert capsys.readouterr().out == "A whole long document.\n"


@pytest.mark.filterwarnings("default")
def test_langchain_mongodb(database: Database[Any], mongodb_uri: str) -> None:
    where = {"mongodb+srv://USER:PASSWORD@CLUSTER": mongodb_uri, "library.papers": f"{database.name}.papers"}
    store = run(code("Plain langchain-mongodb"), **where)["store"]
    deadline = time.monotonic() + 60
    while len(found := store.similarity_search("long", k=2)) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [one.page_content for one in found] == ["A whole long document.", "Another one."]
    store.close()
