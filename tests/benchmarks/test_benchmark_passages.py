"""The questions with a known place of their answer, and what the bundled checkpoint makes of them."""

from __future__ import annotations

from pathlib import Path

import passages
import pytest
from fake_embedder import HashEmbedder
from passages import Question, load_questions, measure, place, share

from m2rag import M2Embedder
from m2rag.demo import load_documents
from m2rag.index import Document
from m2rag.models.checkpoints import BUNDLED
from m2rag.tokenizer import TextTokenizer

# Measured with the bundled checkpoint: 10 and 19 of 30 (benchmarks/results/passages.md), less two and one question.
LEAST_FIRST, LEAST_SHOWN = 8, 18

TEXT = "Cats purr softly. Bread is baked slowly. Planets circle stars."
TOY = [Question("toy", "purring cat", "Cats purr"), Question("toy", "circling planets", "Planets circle stars")]


def test_every_answer_stands_once_in_a_document_of_its_own() -> None:
    texts = {document.id: document.text for document in load_documents()}
    questions = load_questions()
    assert len(questions) == len({question.document for question in questions}) == 30
    assert all(texts[question.document].count(question.answer) == 1 for question in questions)


def test_documents_are_long_and_answers_stand_everywhere_in_them() -> None:
    texts = {document.id: document.text for document in load_documents()}
    lengths = TextTokenizer.bundled().count([texts[question.document] for question in load_questions()])
    assert lengths.min() >= 5_000 and lengths.max() <= 30_000
    where = [texts[q.document].index(q.answer) / len(texts[q.document]) for q in load_questions()]
    assert all(sum(third / 3 <= at < (third + 1) / 3 for at in where) >= 9 for third in range(3))


def test_a_passage_is_right_if_it_holds_all_of_the_answer() -> None:
    document = Document("d", TEXT)
    question = Question("d", "?", "Bread is baked")
    end = TEXT.index("slowly")
    assert place(question, document, [(0, 17), (18, end), (end, len(TEXT))]) == 1
    assert place(question, document, [(0, 25), (25, len(TEXT))]) is None  # cut
    assert [share([0, 2, None, 3], n) for n in (1, 3, 4)] == [0.25, 0.5, 0.75]


def test_all_passages_of_the_one_document_are_put_in_order(tmp_path: Path) -> None:
    documents = [Document("toy", TEXT, metadata={"number": 1}), Document("other", "Cats purr. Planets circle stars.")]
    found, seconds = measure(TOY, HashEmbedder(), tmp_path / "index", documents, lambda q, d, spans: spans[::-1])
    assert [entry["passages"] for entry in found] == [3, 3] and len(seconds) == 6
    assert all(entry["places"] == {"hybrid": 0, "dense": 0, "lexical": 0} for entry in found)
    assert [entry["others"] for entry in found] == [[2], [0]]


def test_the_table(tmp_path: Path) -> None:
    entries = [{"document": "d", "passages": 20, "places": dict.fromkeys(passages.SYSTEMS, 0)}]
    system = {"first": 1.0, "first_interval": [0.9, 1.0], "shown": 1.0, "more": 1.0, "mean_reciprocal_rank": 1.0}
    content = {
        "model": "toy",
        "settings": {"shown": 3, "more": 5, "weight_of_words": 0.5},
        "systems": dict.fromkeys(passages.SYSTEMS, system),
        "questions": entries,
    }
    lines = passages.markdown(content).splitlines()
    assert "| MiniLM | 100 (90 to 100) | 100 | 100 | 1.00 |" in lines and "0 answers are cut" in lines[0]
    assert "shown by default (15 % of a document in the median) or 5 (25 %)" in lines[0]


@pytest.mark.skipif(not (BUNDLED / "m2rag-mini").is_dir(), reason="the checkpoint m2rag-mini is not in this tree")
def test_the_bundled_checkpoint_shows_the_passage_that_answers(tmp_path: Path) -> None:
    embedder = M2Embedder(dtype="auto")  # bfloat16 where that is fast: the same vectors to three digits
    found, _ = measure(load_questions(), embedder, tmp_path / "index", load_documents())
    count = {mode: [entry["places"][mode] for entry in found] for mode in ("hybrid", "dense", "lexical")}
    assert round(30 * share(count["hybrid"])) >= LEAST_FIRST
    assert round(30 * share(count["hybrid"], passages.SHOWN)) >= LEAST_SHOWN
    # Both signals together are not worse than either alone.
    assert share(count["hybrid"], passages.SHOWN) >= max(share(count[mode], passages.SHOWN) for mode in count)
