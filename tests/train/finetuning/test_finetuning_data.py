"""Pairs from every layout, and every way in which data can be broken, told by file, line and id."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tiny_finetuning import write_lines

from m2rag.tokenizer import TextTokenizer
from m2rag_train.errors import TrainingDataError
from m2rag_train.finetuning.data import Pairs, load_pairs
from m2rag_train.finetuning.recipe import PairSource
from m2rag_train.finetuning.schedule import token_spans

DOCUMENTS = [
    {"_id": "a", "title": "Cats", "text": "They sleep."},
    {"_id": "b", "text": "Dogs."},
    {"_id": "c", "text": "Birds."},
]
PAIRS = [
    {"query": "what sleeps?", "document_id": "a", "kind": "question"},
    {"query": "what barks?", "document_id": "b", "kind": "question"},
    {"query": "animals", "document_id": "a", "kind": "topic"},
    {"query": "animals", "document_id": "b", "kind": "topic"},
]
SOURCE = PairSource(pairs="pairs.jsonl", documents="documents.jsonl")


def write(folder: Path, pairs: list[dict[str, Any]] = PAIRS, documents: list[dict[str, Any]] = DOCUMENTS) -> Path:
    write_lines(folder / "pairs.jsonl", pairs)
    write_lines(folder / "documents.jsonl", documents)
    return folder


def test_pairs_and_documents(tmp_path: Path) -> None:
    pairs = load_pairs([SOURCE], write(tmp_path))
    assert pairs.documents == ["Cats\n\nThey sleep.", "Dogs.", "Birds."]
    assert pairs.queries == ["what sleeps?", "what barks?", "animals"]
    assert pairs.relevant == [[0], [1], [0, 1]]
    assert pairs.queries_of == [[0, 2], [1, 2], []], "a document without a query can be a negative"


def test_compressed_files(tmp_path: Path) -> None:
    expected = load_pairs([SOURCE], write(tmp_path))
    for name in ("pairs", "documents"):
        data = (tmp_path / f"{name}.jsonl").read_bytes()
        (tmp_path / f"{name}.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(data))
    assert load_pairs([PairSource(pairs="pairs.jsonl.zst", documents="documents.jsonl.zst")], tmp_path) == expected


def test_kinds(tmp_path: Path) -> None:
    source = PairSource(pairs="pairs.jsonl", documents="documents.jsonl", kinds=["topic"])
    assert load_pairs([source], write(tmp_path)).queries == ["animals"]


def test_rows_with_negatives(tmp_path: Path) -> None:
    rows = [
        {"query": "q1", "document": "d1", "negatives": ["d2", "d3"]},
        {"query": "q2", "document": "d2", "negatives": ["d1"]},
        {"query": "q1", "document": "d2"},
    ]
    write_lines(tmp_path / "rows.jsonl", rows)
    pairs = load_pairs([PairSource(rows="rows.jsonl")], tmp_path)
    assert pairs == Pairs(
        queries=["q1", "q2"],
        documents=["d1", "d2", "d3"],
        relevant=[[0, 1], [1]],
        queries_of=[[0], [1, 0], []],
        source_of=[0, 0, 0],
        given=[[2], [0]],  # "d2" is no negative of "q1": another row says that it answers it
    )


def write_task(folder: Path, places: dict[str, list[tuple[str, str, int]]]) -> None:
    write_lines(folder / "corpus.jsonl", DOCUMENTS + [{"_id": "e", "text": " "}])
    write_lines(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"query {i}"} for i in range(3)])
    (folder / "qrels").mkdir(exist_ok=True)
    for place, judged in places.items():
        lines = "".join(f"{query}\t{document}\t{grade}\n" for query, document, grade in judged)
        (folder / place).write_text("query-id\tcorpus-id\tscore\n" + lines, encoding="utf-8")


def test_a_split_of_a_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = [("q0", "a", 1), ("q0", "b", 2), ("q0", "c", 0), ("q1", "c", 1)]
    write_task(tmp_path / "task", {"qrels/train.tsv": train, "qrels/test.tsv": [("q2", "a", 1)]})
    with caplog.at_level(logging.WARNING):
        pairs = load_pairs([PairSource(task="task")], tmp_path)
    assert pairs.queries == ["query 0", "query 1"]
    assert pairs.relevant == [[0, 1], [2]]
    assert "1 empty documents are left out, 'e' first" in caplog.text


def test_a_task_without_splits(tmp_path: Path) -> None:
    write_task(tmp_path / "task", {"qrels.tsv": [("q2", "a", 1)]})
    assert load_pairs([PairSource(task="task", split=None)], tmp_path).queries == ["query 2"]


def test_an_empty_answer_in_a_task(tmp_path: Path) -> None:
    write_task(tmp_path / "task", {"qrels/train.tsv": [("q0", "e", 1)]})
    with pytest.raises(TrainingDataError, match="task: document 'e', which answers query 'q0', is empty"):
        load_pairs([PairSource(task="task")], tmp_path)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_dataset(on_disk: bool, tmp_path: Path) -> None:
    """Columns of any name; a negative column of single texts."""
    datasets = pytest.importorskip("datasets")
    rows = {"anchor": ["q1", "q2"], "positive": ["d1", "d2"], "negative": ["d2", "d3"]}
    if on_disk:
        datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "set"))
    else:
        (tmp_path / "set").mkdir()
        table = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        write_lines(tmp_path / "set" / "train.jsonl", table)
    source = PairSource(dataset="set", query="anchor", document="positive", negative="negative")
    pairs = load_pairs([source], tmp_path)
    assert (pairs.queries, pairs.documents) == (["q1", "q2"], ["d1", "d2", "d3"])
    assert (pairs.relevant, pairs.given) == ([[0], [1]], [[1], [2]])
    with pytest.raises(TrainingDataError, match="dataset 'set': no column 'question'; there are anchor, positive"):
        load_pairs([PairSource(dataset="set", query="question", document="positive")], tmp_path)


def test_several_sources_share_their_texts(tmp_path: Path) -> None:
    write(tmp_path)
    write_lines(tmp_path / "rows.jsonl", [{"query": "animals", "document": "Birds."}])
    pairs = load_pairs([SOURCE, PairSource(rows="rows.jsonl")], tmp_path)
    assert pairs.relevant[pairs.queries.index("animals")] == [0, 1, 2]


def test_repeated_pairs_count_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        pairs = load_pairs([SOURCE], write(tmp_path, pairs=PAIRS + PAIRS[:2]))
    assert pairs.queries_of == [[0, 2], [1, 2], []]
    assert "2 pairs are in the data more than once" in caplog.text


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param(
            {"pairs": [*PAIRS[:2], without(PAIRS[2], "query")]},
            r"pairs\.jsonl, line 3: 'query' is missing",
            id="no query",
        ),
        pytest.param(
            {"pairs": [PAIRS[0] | {"query": " \n"}]}, r"pairs\.jsonl, line 1: 'query' is empty", id="empty query"
        ),
        pytest.param({"pairs": [PAIRS[0] | {"query": 7}]}, r"line 1: 'query' is int, must be text", id="number"),
        pytest.param(
            {"pairs": [PAIRS[0], PAIRS[1] | {"document_id": "zz"}]},
            r"pairs\.jsonl, line 2: document_id 'zz' is not in .*documents\.jsonl",
            id="unknown document",
        ),
        pytest.param(
            {"pairs": [without(PAIRS[0], "document_id")]}, "line 1: 'document_id' is missing", id="no positive"
        ),
        pytest.param({"pairs": []}, r"pairs\.jsonl: no pairs", id="no pairs"),
        pytest.param(
            {"documents": [*DOCUMENTS, {"_id": "b", "text": "again"}]},
            r"documents\.jsonl, line 4: _id 'b' again, first in .*documents\.jsonl, line 2",
            id="id twice",
        ),
        pytest.param(
            {"documents": [DOCUMENTS[0], {"_id": "b", "title": " ", "text": "\n"}]},
            r"documents\.jsonl, line 2: document 'b' is empty",
            id="empty document",
        ),
        pytest.param({"documents": [{"_id": "a"}]}, r"line 1: 'text' is missing; there are '_id'", id="no text"),
        pytest.param({"documents": [{"text": "a"}]}, r"line 1: '_id' is missing", id="no id"),
    ],
)
def test_broken_pairs(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=message):
        load_pairs([SOURCE], write(tmp_path, **changes))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        pytest.param({"query": "q"}, "line 1: 'document' is missing", id="no document"),
        pytest.param({"query": "q", "document": ""}, "line 1: 'document' is empty", id="empty document"),
        pytest.param(
            {"query": "q", "document": "d", "negatives": ["x", ""]},
            "line 1: 'negatives' holds .* an empty one",
            id="negative",
        ),
    ],
)
def test_broken_rows(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [row])
    with pytest.raises(TrainingDataError, match=message):
        load_pairs([PairSource(rows="rows.jsonl")], tmp_path)


def spoiled(change: Callable[[bytes], bytes], folder: Path) -> None:
    path = folder / "pairs.jsonl"
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda data: data + b"{broken\n", r"pairs\.jsonl, line 5: ", id="not JSON"),
        pytest.param(lambda data: data + b'"text"\n', r"pairs\.jsonl, line 5: expected an object", id="not an object"),
        pytest.param(lambda data: data + json.dumps("é").encode("latin-1") + b"\xe9\n", r"line 5: ", id="not UTF-8"),
    ],
)
def test_broken_files(change: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    write(tmp_path)
    spoiled(change, tmp_path)
    with pytest.raises(TrainingDataError, match=message):
        load_pairs([SOURCE], tmp_path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"documents\.jsonl: No such file"):
        load_pairs([SOURCE], tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({}, "nothing given, must be one of pairs, rows, task, dataset", id="nothing"),
        pytest.param({"rows": "a", "task": "b"}, "rows and task given", id="two"),
        pytest.param({"pairs": "a"}, "pairs and documents belong together", id="half"),
    ],
)
def test_a_source_is_one_thing(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairSource(**settings)


def test_passages_are_places_in_the_whole_text(tmp_path: Path) -> None:
    documents = [{"_id": "a", "title": "Sea", "text": "Salt water everywhere."}]
    pairs = [
        {"query": "what is everywhere?", "document_id": "a", "passage": [5, 10]},
        {"query": "no place", "document_id": "a"},
    ]
    source = write(tmp_path, pairs, documents)
    found = load_pairs([SOURCE], source)
    assert set(found.passages) == {0}
    document, start, end = found.passages[0]
    assert found.documents[document][start:end] == "water"
    tokenizer = TextTokenizer.bundled()
    spans = token_spans(found, tokenizer, 100)
    ids = [*tokenizer.prefix, *tokenizer.encode(found.documents[document]).ids]
    number, first, last = spans[0]
    assert number == document and ids[first:last] == tokenizer.encode("water").ids.tolist()
    assert token_spans(found, tokenizer, last) == {}, "no room for the last special token"


@pytest.mark.parametrize("passage", [[5], [5, 5], [-1, 3], [0, 23], ["0", 3], "all", [0, True]])
def test_passages_outside_of_the_text(passage: Any, tmp_path: Path) -> None:
    documents = [{"_id": "a", "title": "Sea", "text": "Salt water everywhere."}]
    source = write(tmp_path, [{"query": "q", "document_id": "a", "passage": passage}], documents)
    with pytest.raises(TrainingDataError, match=r"pairs.jsonl.*1: passage is .*, must be \[start, end\] within 22 "):
        load_pairs([SOURCE], source)
