"""Needle and passkey: the right lengths, the fact where it belongs and nowhere else, the same texts everywhere."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from m2rag.demo import load_documents
from m2rag.errors import TaskError
from m2rag.evaluation import BM25Ranker, Task, evaluate, find_tasks, needle_task, passkey_task
from m2rag.evaluation.facts import ASKED, NOT_ASKED
from m2rag.tokenizer import TextTokenizer


def relevant(task: Task) -> list[tuple[str, str]]:
    """(question, text of the document that answers it)"""
    return [(task.queries[query], task.corpus[document]) for query, (document,) in task.qrels.items()]


@pytest.mark.parametrize("make", [needle_task, passkey_task])
@pytest.mark.parametrize("length", [128, 1024, 32768])
def test_lengths_and_sizes(make, length: int) -> None:
    task = make(length)
    assert (task.length, len(task.corpus), len(task.queries)) == (length, 100, 50)
    assert len({document for grades in task.qrels.values() for document in grades}) == 50
    sample = list(task.corpus.values())[:: 1 if length < 2048 else 12]  # tokenising all would take most of the time
    counts = TextTokenizer.bundled().count(sample)
    assert counts.max() <= length, "a model of that length must not have to cut"
    assert counts.min() >= length - 8, "short of it by a word at most"


def test_needles_stand_in_one_document_each_from_beginning_to_end() -> None:
    task = needle_task(2048)
    texts = list(task.corpus.values())
    for fact in [fact for fact, _ in ASKED] + NOT_ASKED:
        assert sum(fact in text for text in texts) == 1
    depths = []
    for (question, text), (fact, asked) in zip(relevant(task), ASKED, strict=True):
        assert question == asked and fact in text
        depths.append(text.index(fact) / len(text))
    # Fifty even depths, up to a paragraph: none of 2,048 tokens is longer than 250.
    assert np.abs(np.sort(depths) - np.linspace(0, 1, 50)).max() < 0.12


def test_needle_filler_is_the_demo_s_text() -> None:
    paragraphs = {part.strip() for document in load_documents() for part in document.text.split("\n\n")}
    facts = {fact for fact, _ in ASKED} | set(NOT_ASKED)
    text = next(iter(needle_task(1024).corpus.values()))
    parts = text.split("\n\n")
    assert sum(part in facts for part in parts) == 1
    # All but the last, which may be cut, is whole; a paragraph may hold blank lines with spaces.
    assert sum(part.strip() not in paragraphs and part not in facts for part in parts) <= 1


def test_passkeys_differ_in_person_and_number_only() -> None:
    task = passkey_task(512)
    persons = [
        question.removeprefix("What is the pass key of ").removesuffix("?") for question in task.queries.values()
    ]
    assert len(set(persons)) == 50
    for person, (_, text) in zip(persons, relevant(task), strict=True):
        assert text.count(f"pass key of {person}") == 2
    words = [set(text.split()) for text in task.corpus.values()]
    assert len(set.union(*words) - set.intersection(*words)) < 3 * 100 + 40, "everything else is in every document"


def test_same_texts_on_every_machine() -> None:
    """Figures of two machines can only be compared if the texts are the same: the digest is of the first one's."""
    for task, digest in ((passkey_task(256), "1e5816674300452b"), (needle_task(256), "b8f0e889a0a9322e")):
        content = json.dumps([task.corpus, task.queries, task.qrels], ensure_ascii=False).encode()
        assert hashlib.sha256(content).hexdigest()[:16] == digest


def test_bm25_finds_every_passkey() -> None:
    (system,) = evaluate(passkey_task(512), [BM25Ranker()]).systems
    assert system.metrics["accuracy@1"] == 1


def test_too_short() -> None:
    with pytest.raises(TaskError, match="needle: 100 tokens .* the shortest length is 128"):
        needle_task(100)


def test_by_name() -> None:
    found = find_tasks(["passkey", "needle"], lengths=[128, 256])
    assert [task.name for task in found] == ["passkey-128", "passkey-256", "needle-128", "needle-256"]
    with pytest.raises(TaskError, match="two tasks are called needle-256"):
        find_tasks(["needle", "needle"], lengths=[256])
    with pytest.raises(TaskError, match="haystack: not a folder.*By name there are loco-v0, loco-v1, needle, passkey"):
        find_tasks(["haystack"])
