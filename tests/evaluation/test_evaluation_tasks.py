"""Task folders: what BEIR writes is read, and every odd line is an error that names file, line and fault."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import zstandard

from m2rag.errors import TaskError
from m2rag.evaluation import load_task

CORPUS = [
    {"_id": "d1", "title": "A title", "text": "First text."},
    {"_id": "d2", "title": "", "text": "Second text."},
    {"_id": "d3", "text": "Third text."},
]
QUERIES = [{"_id": "q1", "text": "first?"}, {"_id": "q2", "text": "second?"}, {"_id": "q9", "text": "other split?"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t2\nq2\td3\t0\n"


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


CORPUS_TEXT, QUERIES_TEXT = lines(CORPUS), lines(QUERIES)


def write(folder: Path, *, corpus=CORPUS_TEXT, queries=QUERIES_TEXT, qrels=QRELS) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in (("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels.tsv", qrels)):
        if text is not None:
            (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_reads_a_task(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "small"))
    assert task.name == "small"
    assert task.corpus == {"d1": "A title\n\nFirst text.", "d2": "Second text.", "d3": "Third text."}
    assert task.queries == {"q1": "first?", "q2": "second?"}, "queries without judgments belong to other splits"
    assert task.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2, "d3": 0}}


def test_reads_beir_s_own_layout_and_zst(tmp_path: Path) -> None:
    plain = load_task(write(tmp_path / "plain"))
    packed = tmp_path / "packed"
    (packed / "qrels").mkdir(parents=True)
    two_frames = [zstandard.compress(part.encode()) for part in (lines(CORPUS[:1]), lines(CORPUS[1:]))]
    (packed / "corpus.jsonl.zst").write_bytes(b"".join(two_frames))
    (packed / "queries.jsonl.zst").write_bytes(zstandard.compress(lines(QUERIES).encode()))
    (packed / "qrels" / "test.tsv").write_text(QRELS)
    task = load_task(packed)
    assert (task.corpus, task.queries, task.qrels) == (plain.corpus, plain.queries, plain.qrels)


def test_other_splits(tmp_path: Path) -> None:
    folder = write(tmp_path / "t")
    (folder / "qrels").mkdir()
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq9\td3\t1\n")
    task = load_task(folder, split="dev")
    assert (task.name, task.queries, task.qrels) == ("t/dev", {"q9": "other split?"}, {"q9": {"d3": 1}})
    assert load_task(folder).name == "t" and "q9" not in load_task(folder).queries
    with pytest.raises(TaskError, match=r"t: no qrels/train\.tsv"):
        load_task(folder, split="train")


def test_tolerates_what_differs_between_writers(tmp_path: Path) -> None:
    """Byte-order mark, CRLF, blank lines, a null title, no header, a raw U+2028 inside a string."""
    odd = '\ufeff{"_id": "d1", "title": null, "text": "a\u2028b"}\r\n\r\n{"_id": "d2", "text": "c"}'
    task = load_task(write(tmp_path / "t", corpus=odd, qrels="q1\td1\t1\r\n\r\nq2\td2\t1"))
    assert task.corpus == {"d1": "a\u2028b", "d2": "c"}
    assert task.qrels == {"q1": {"d1": 1}, "q2": {"d2": 1}}


def test_document_of_white_space_is_an_empty_string(tmp_path: Path) -> None:
    """Some of BEIR's own corpora hold blank documents: no error, and rankers can tell them by `not text`."""
    blank = lines([*CORPUS, {"_id": "d4", "title": " ", "text": " \n"}])
    assert load_task(write(tmp_path / "t", corpus=blank)).corpus["d4"] == ""


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"corpus": None}, ["no corpus.jsonl or corpus.jsonl.zst"]),
        ({"queries": None}, ["no queries.jsonl"]),
        ({"qrels": None}, ["no qrels.tsv or qrels/test.tsv"]),
        ({"corpus": "\n"}, ["corpus.jsonl", "no record"]),
        ({"corpus": lines(CORPUS) + "{oops\n"}, ["corpus.jsonl, line 4", "not JSON"]),
        ({"corpus": "[1]\n"}, ["corpus.jsonl, line 1", "list"]),
        ({"corpus": lines(CORPUS) + '{"_id": "d4"}\n'}, ["corpus.jsonl, line 4", "no 'text'"]),
        ({"corpus": '{"id": "d4", "text": "x"}\n'}, ["corpus.jsonl, line 1", "no '_id'", "'id', 'text'"]),
        ({"corpus": '{"_id": 4, "text": "x"}\n'}, ["corpus.jsonl, line 1", "'_id' must be a string", "int"]),
        ({"corpus": '{"_id": "4", "text": null}\n'}, ["corpus.jsonl, line 1", "'text' must be a string"]),
        ({"corpus": '{"_id": "4", "title": 1, "text": "x"}\n'}, ["line 1", "'title' must be a string"]),
        ({"corpus": '{"_id": "", "text": "x"}\n'}, ["corpus.jsonl, line 1", "'_id' is empty"]),
        ({"corpus": lines(CORPUS + CORPUS[:1])}, ["corpus.jsonl, line 4", "'d1' again", "line 1"]),
        ({"corpus": lines(CORPUS).encode() + b'{"_id": "\xff"}\n'}, ["corpus.jsonl, line 4", "not UTF-8"]),
        ({"queries": lines(QUERIES) + '{"_id": "q3", "text": " "}\n'}, ["queries.jsonl, line 4", "'q3' is blank"]),
        ({"qrels": QRELS + "q1 d1 1\n"}, ["qrels.tsv, line 5", "1 tab-separated fields, 3 are expected"]),
        ({"qrels": QRELS + "q1\td2\tyes\n"}, ["qrels.tsv, line 5", "'yes' is not a whole number"]),
        ({"qrels": QRELS + "q7\td2\t1\n"}, ["qrels.tsv, line 5", "query 'q7' is not in the queries file"]),
        ({"qrels": QRELS + "q1\td7\t1\n"}, ["qrels.tsv, line 5", "document 'd7' is not in the corpus file"]),
        ({"qrels": QRELS + "q1\td1\t1\n"}, ["qrels.tsv, line 5", "'q1'", "'d1'", "judged twice"]),
        ({"qrels": "query-id\tcorpus-id\tscore\n"}, ["qrels.tsv", "no query with a relevant document"]),
        ({"qrels": "q1\td1\t0\n"}, ["qrels.tsv", "no query with a relevant document"]),
    ],
)
def test_broken_task_is_named(tmp_path: Path, change: dict, parts: list[str]) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(write(tmp_path / "t", **change))
    for part in parts:
        assert part in str(caught.value)


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="nowhere: not a folder"):
        load_task(tmp_path / "nowhere")


def test_same_file_twice_is_ambiguous(tmp_path: Path) -> None:
    folder = write(tmp_path / "t")
    (folder / "corpus.jsonl.zst").write_bytes(zstandard.compress(lines(CORPUS).encode()))
    with pytest.raises(TaskError, match=r"both corpus\.jsonl and corpus\.jsonl\.zst"):
        load_task(folder)


@pytest.mark.parametrize("damage", ["cut", "not zst"])
def test_damaged_zst_is_not_a_shorter_corpus(tmp_path: Path, damage: str) -> None:
    folder = write(tmp_path / "t", corpus=None)
    packed = zstandard.compress(lines(CORPUS * 50).encode())
    (folder / "corpus.jsonl.zst").write_bytes(packed[:-5] if damage == "cut" else b"plain text")
    with pytest.raises(TaskError, match=r"corpus\.jsonl\.zst.*(cut off|not a Zstandard)"):
        load_task(folder)


def test_query_without_a_relevant_document_is_left_out_and_told(tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        task = load_task(write(tmp_path / "t", qrels="q1\td1\t1\nq2\td2\t0\n"))
    assert list(task.queries) == list(task.qrels) == ["q1"]
    assert "'q2'" in caplog.text


def test_real_tasks_load() -> None:
    data = os.environ.get("M2RAG_DATA")
    if not data:
        pytest.skip("M2RAG_DATA does not name the folder of the real tasks")
    task = load_task(Path(data) / "bench" / "qmsum_question")
    assert (len(task.corpus), len(task.queries)) == (29, 174)
    assert all(len(grades) == 1 for grades in task.qrels.values())
