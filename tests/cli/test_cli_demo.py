"""`m2rag demo` with a model that finds nothing in particular: what it says and keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2rag.demo import QUESTIONS
from m2rag.index import Document


@pytest.fixture(autouse=True)
def few_documents(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The beginnings of the documents that answer: the demo itself does not depend on how many there are."""
    from m2rag.demo import load_documents

    expected = {id for _, id in QUESTIONS}
    documents = [
        Document(document.id, document.text[:2000], document.title, document.metadata)
        for document in load_documents()
        if document.id in expected
    ]
    monkeypatch.setattr("m2rag.demo.load_documents", lambda: documents)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))


def test_asks_every_question_and_tells_what_to_do_next(run, data, model: Path, tmp_path: Path) -> None:
    told = run("demo", "-m", model)
    assert told.exit_code == 0
    assert f"Embedded {len(QUESTIONS)} documents" in told.stdout and "tokens/s" in told.stdout
    assert all(question in told.stdout for question, _ in QUESTIONS)
    assert f"of {len(QUESTIONS)} questions" in told.stdout and "ms per question" in told.stdout
    assert "m2rag index FOLDER" in told.stdout
    assert [path.name[:5] for path in (tmp_path / "cache" / "m2rag").iterdir()] == ["demo-"]

    again = run("demo", "-m", model)
    assert "nothing was embedded" in again.stdout

    report = data(run("demo", "-m", model, "--json"))
    assert report["indexing"]["unchanged"] == len(QUESTIONS)
    assert [(asked["question"], asked["expected"]) for asked in report["questions"]] == QUESTIONS
    for asked in report["questions"]:
        assert asked["found_first"] == (asked["hits"][0]["id"] == asked["expected"])
    right = sum(asked["found_first"] for asked in report["questions"])
    assert f"came first for {right} of {len(QUESTIONS)} questions" in told.stdout
    assert told.stdout.count("✓") == sum(
        asked["expected"] in [hit["id"] for hit in asked["hits"]] for asked in report["questions"]
    )


def test_own_question_and_own_folder(run, data, model: Path, tmp_path: Path) -> None:
    told = run("demo", "-m", model, "-i", tmp_path / "mine", "-q", "what about threads?", "--json")
    (asked,) = data(told)["questions"]
    assert asked["expected"] is None and asked["found_first"] is None and len(asked["hits"]) == 3
    assert data(told)["index"] == str(tmp_path / "mine") and not (tmp_path / "cache").exists()
    shown = run("demo", "-i", tmp_path / "mine", "-q", "what about threads?").stdout
    assert "came first" not in shown and "what about threads?" in shown


def test_cache_that_cannot_be_written(run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    told = run("demo", "-m", model, "-q", "threads")
    assert told.exit_code == 0 and "this index is temporary" in told.stderr and "  1  " in told.stdout
