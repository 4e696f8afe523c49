"""A copied paragraph or query is found, a quotation is told, and what everybody writes is neither."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import sentence

from m2rag.evaluation import Task
from m2rag_train.corpus_pairs.overlap import (
    MOST_RUNS,
    WORDS,
    RunIndex,
    check,
    find_overlaps,
    run_hashes,
    training_texts,
)

QUERY = "which of the seven wooden bridges over the quiet river was closed for boats after the flood"


def text(seed: int, words: int = 400) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(f"w{number}" for number in rng.integers(0, 10_000, words))


@pytest.fixture
def task() -> Task:
    return Task("rivers", {"d1": text(1), "d2": text(2)}, {"q1": QUERY}, {"q1": {"d1": 1}})


def words(string: str, start: int, count: int) -> str:
    return " ".join(string.split()[start : start + count])


def test_copies_are_found_and_nothing_else(task: Task) -> None:
    copied = f"{text(10)} {words(task.corpus['d1'], 100, 80)} {text(11)}"
    quoted = f"{text(12)} {words(task.corpus['d2'], 7, WORDS + 4)}. {text(13, 2000)}"
    asked = f"{text(14)} {QUERY.upper()}, they asked"
    others = [("copied", copied), ("quoted", quoted), ("asked", asked), ("free", text(15)), ("short", "a few words")]
    found, counts = find_overlaps(others, RunIndex([task]))
    result = {o.document: (o.test_id, o.is_query, o.runs, o.too_much) for o in found}
    assert result == {
        "copied": ("d1", False, 80 - WORDS + 1, True),
        "quoted": ("d2", False, 5, False),
        "asked": ("q1", True, len(QUERY.split()) - WORDS + 1, True),
    }
    assert 80 - WORDS + 1 > MOST_RUNS
    assert counts["documents"] == 5 and counts["dropped"] == 2
    assert counts["documents with the id of a test document"] == 0


def test_what_three_documents_share_is_boilerplate(task: Task) -> None:
    licence = words(task.corpus["d1"], 0, 100)
    documents = [(str(i), f"{text(20 + i)} {licence}") for i in range(3)]
    index = RunIndex([task])
    assert find_overlaps(documents, index)[0] == []
    assert len(find_overlaps(documents[:2], index)[0]) == 2


def test_ids_are_compared_too(task: Task) -> None:
    _, counts = find_overlaps([("d2", text(30))], RunIndex([task]))
    assert counts["documents with the id of a test document"] == 1


def test_runs_are_of_lower_cased_words_whatever_stands_between() -> None:
    a, b = "One two, three! " * 6, "one TWO three\n" * 6
    assert (run_hashes(a) == run_hashes(b)).all()
    assert len(run_hashes(a)) == 18 - WORDS + 1 and len(np.unique(run_hashes(a))) == 3
    assert len(run_hashes(" ".join(["word"] * (WORDS - 1)))) == 0


def test_the_report_names_what_has_to_go(task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "rivers"
    folder.mkdir()
    rows = [{"_id": i, "text": t} for i, t in task.corpus.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": QUERY}) + "\n", encoding="utf-8")
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n", encoding="utf-8")
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    documents = [{"_id": "a", "text": sentence(50)}, {"_id": "b", "text": text(40)}]
    write_packed(pairs / "x.documents.jsonl.zst", documents)
    # The overlap is in a query of the document.
    write_packed(pairs / "x.pairs.jsonl.zst", [{"query": QUERY, "document_id": "b", "kind": "span"}])
    report = tmp_path / "report.json"
    assert check(pairs, [folder], report) == ["b"]
    content = json.loads(report.read_text(encoding="utf-8"))
    assert content["tasks"] == ["rivers"] and content["found"]["dropped"] == 1
    assert content["overlaps"][0]["test"] == "rivers query q1"


def test_questions_count_and_a_document_that_is_asked_about_counts_once(tmp_path: Path) -> None:
    documents = [{"_id": "a", "text": sentence(50)}, {"_id": "b", "text": text(40)}]
    write_packed(tmp_path / "x.documents.jsonl.zst", documents)
    write_packed(tmp_path / "x.pairs.jsonl.zst", [{"query": "old houses", "document_id": "a", "kind": "span"}])
    write_packed(tmp_path / "x.asked.documents.jsonl.zst", documents[1:])
    write_packed(tmp_path / "x.asked.pairs.jsonl.zst", [{"query": QUERY, "document_id": "b", "kind": "asked"}])
    found = dict(training_texts(tmp_path))
    assert len(list(training_texts(tmp_path))) == 2
    assert found == {"a": f"{sentence(50)}\n\nold houses", "b": f"{text(40)}\n\n{QUERY}"}


def write_packed(path: Path, rows: list[dict[str, str]]) -> None:
    import zstandard

    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(zstandard.ZstdCompressor().compress(content))
