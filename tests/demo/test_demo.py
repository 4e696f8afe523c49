"""The demo's documents are real, whole and free, and its questions are answered by exactly one of them each."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from m2rag.demo import QUESTIONS, load_documents

DATA = os.environ.get("M2RAG_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="M2RAG_DATA does not name the folder of the real tasks")

# Words of each answer that no other document of the demo holds.
ANSWERS = {
    "pep-0495": r"fold=1",
    "pep-3333": r"wsgi\.file_wrapper",
    "pep-0374": r"tortoise",
    "pep-0545": r"your translation for the\s+PSF's use under the CC0 license",
    "pep-0458": r"Revoke the \*timestamp\*",
    "pep-0703": r"[Bb]iased reference counting",
    "pep-0557": r"default_factory",
}
STOP = set("a an and for in of on the to with what how can is all do does did i my it or from this that its".split())


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {document.id: document.text for document in load_documents()}


def words(text: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"[a-z]+", text.lower())} - STOP


def test_documents_have_ids_titles_and_numbers() -> None:
    documents = load_documents()
    assert len(documents) == 40
    assert [d.id for d in documents] == sorted({d.id for d in documents})
    for document in documents:
        assert document.title and document.title not in document.text[:200]
        assert document.metadata == {"pep": int(document.id.removeprefix("pep-"))}
        assert len(document.text) > 10_000


def test_questions_are_six_or_more_about_different_documents(texts: dict[str, str]) -> None:
    answers = [document for _, document in QUESTIONS]
    assert len(QUESTIONS) >= 6
    assert len(set(answers)) == len(answers)
    assert set(answers) <= set(texts)


def test_no_question_takes_a_word_from_the_title() -> None:
    titles = {document.id: document.title or "" for document in load_documents()}
    for question, document in QUESTIONS:
        assert not words(question) & words(titles[document]), question


@pytest.mark.parametrize("document", [document for _, document in QUESTIONS])
def test_the_answer_stands_in_one_document_only(texts: dict[str, str], document: str) -> None:
    assert [i for i, text in texts.items() if re.search(ANSWERS[document], text)] == [document]


def test_most_answers_stand_beyond_the_opening(texts: dict[str, str]) -> None:
    """A model that reads 512 tokens, some 2,000 characters, should not be enough."""
    first = {document: re.search(pattern, texts[document]).start() for document, pattern in ANSWERS.items()}
    assert sum(position > 2_000 for position in first.values()) >= 6, first


def test_data_is_small() -> None:
    import m2rag.demo

    packed = Path(m2rag.demo.__file__).with_name("peps.jsonl.gz")
    assert packed.stat().st_size < 1_500_000


@needs_data
def test_texts_are_those_of_the_source(texts: dict[str, str]) -> None:
    from m2rag.evaluation import load_task

    task = load_task(Path(DATA or "") / "bench" / "peps_title")
    titles = {next(iter(grades)): task.queries[query] for query, grades in task.qrels.items()}
    for document in load_documents():
        assert document.text == task.corpus[document.id]
        assert document.title == titles[document.id]
