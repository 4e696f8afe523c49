"""Files that a recipe can name: nothing held out or dropped is among them, and the split is the one written down."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
from test_corpus_queries import NAMES, paragraph

from m2rag.evaluation import load_task
from m2rag_train.corpus_pairs.make import (
    CORPORA,
    DEVELOPMENT,
    OVERLAPPING,
    QUESTIONS,
    Corpus,
    choose_development,
    make,
)
from m2rag_train.errors import TrainingDataError
from m2rag_train.finetuning.data import load_pairs
from m2rag_train.finetuning.recipe import PairSource
from m2rag_train.sources import read_jsonl

TINY = [Corpus("manuals", 40_000, 3), Corpus("books", 10_000, 1, books=True)]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def text(number: int, count: int) -> str:
    return "\n\n".join(f"Number {number}: {paragraph(number % len(NAMES), n)}" for n in range(count))


def sectioned(name: str, number: int, count: int) -> dict[str, Any]:
    parts = [{"heading": f"{word} of {name} {number}", "text": text(number, count)} for word in NAMES[:4]]
    return {"id": f"{name}-{number}", "title": f"The {name} of house {number}", "sections": parts, "source": name}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name, documents, count in (("manuals", 12, 40), ("books", 3, 200)):
        write(folder / "corpus" / f"{name}.jsonl", [sectioned(name, i, count) for i in range(documents)])
    for name in ("qmsum_train", "dclaw_train"):
        lines = [f"Speaker: {line}" for line in text(5, 60).split("\n") if line]
        write(folder / "pairs" / f"{name}_docs.jsonl", [{"_id": f"{name}-0", "title": "", "text": "\n".join(lines)}])
        pair = {"query": f"What of {name}?", "document_id": f"{name}-0", "kind": "question"}
        write(folder / "pairs" / f"{name}.jsonl", [pair])
    pack(folder)
    return folder


def pack(folder: Path) -> None:
    import zstandard

    for path in folder.rglob("*.jsonl"):
        path.with_name(path.name + ".zst").write_bytes(zstandard.ZstdCompressor().compress(path.read_bytes()))
        path.unlink()


def ids_in(out: Path) -> set[str]:
    return {row["_id"].partition("#")[0] for path in out.glob("*.documents.*") for row in read_jsonl(path)}


@pytest.fixture
def made(data: Path, tmp_path: Path) -> tuple[Path, dict[str, list[str]]]:
    chosen = choose_development(data, TINY)
    (tmp_path / "ids.json").write_text(json.dumps(chosen), encoding="utf-8")
    out = tmp_path / "out"
    make(data, out, corpora=TINY, dropped=frozenset({"qmsum_train-0"}), ids=tmp_path / "ids.json")
    return out, chosen


def test_what_is_held_out_or_dropped_is_not_trained_on(made: tuple[Path, dict[str, list[str]]]) -> None:
    out, chosen = made
    held_out = {identifier for found in chosen.values() for identifier in found}
    assert [len(found) for found in chosen.values()] == [3, 1]
    assert ids_in(out) and not ids_in(out) & held_out
    assert "qmsum_train-0" not in ids_in(out) and "dclaw_train-0" in ids_in(out)
    for task in ("title", "summary", "heading", "span", "all"):
        found = load_task(out / "development" / task)
        assert {i.partition("#")[0] for i in found.corpus} == held_out
        assert found.queries
    titles = load_task(out / "development" / "title").queries.values()
    assert all("manuals" in title for title in titles), "a piece of a book has no title of its own"


def test_a_recipe_reads_what_was_made(made: tuple[Path, dict[str, list[str]]]) -> None:
    out, _ = made
    source = PairSource(pairs="manuals.pairs.jsonl.zst", documents="manuals.documents.jsonl.zst")
    pairs = load_pairs([source], out)
    assert all(pairs.queries_of) and all(pairs.relevant)


def test_a_dropped_document_changes_no_other_draw(data: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.json"
    ids.write_text("{}", encoding="utf-8")
    corpora = [Corpus("manuals", 20_000)]
    make(data, tmp_path / "all", corpora=corpora, ids=ids)
    before = ids_in(tmp_path / "all")
    gone = min(i for i in before if i.startswith("manuals"))
    make(data, tmp_path / "less", corpora=corpora, ids=ids, dropped=frozenset({gone}))
    assert ids_in(tmp_path / "less") == before - {gone}
    assert len([i for i in before if i.startswith("manuals")]) < 12, "about so many tokens, not all documents"


def asked(folder: Path, out: Path, *, moved: int = 0) -> Path:
    """A question about characters 20 to 60 of the first manual in `out`, `moved` by some."""
    row = next(read_jsonl(out / "manuals.documents.jsonl.zst"))
    found = {
        "source": "manuals",
        "document": row["_id"],
        "start": 20 + moved,
        "end": 60 + moved,
        "crc32": zlib.crc32(row["text"][20:60].encode()),
        "questions": ["what is there?", "another way to ask"],
    }
    gone = {**found, "document": "manuals-gone"}
    write(folder / "questions.jsonl", [found, gone])
    return folder / "questions.jsonl"


def test_questions_come_with_their_passages(
    data: Path, made: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    before, _ = made
    out, ids = tmp_path / "asked", tmp_path / "ids.json"
    make(data, out, corpora=TINY, ids=ids, questions=asked(tmp_path, before))
    names = ("manuals.asked", "manuals")
    sources = [PairSource(pairs=f"{n}.pairs.jsonl.zst", documents=f"{n}.documents.jsonl.zst") for n in names]
    pairs = load_pairs(sources, out)
    assert [pairs.queries[query] for query in pairs.passages] == ["what is there?", "another way to ask"]
    document, start, end = pairs.passages[0]
    assert (start, end) == (20, 60) and pairs.documents[document][20:60] == pairs.documents[0][20:60]
    assert pairs.source_of[0] == 0 and set(pairs.source_of[1:]) == {1}
    assert len(pairs.queries_of[0]) > 2, "the document has its other queries too"
    assert not list(out.glob("books.asked.*")), "nothing was asked about books"


def test_a_text_that_is_not_the_one_asked_about(
    data: Path, made: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    questions = asked(tmp_path, made[0], moved=1)
    with pytest.raises(TrainingDataError, match=r"manuals: document 'manuals-\d+' has another text .* 21 to 61"):
        make(data, tmp_path / "asked", corpora=TINY, ids=tmp_path / "ids.json", questions=questions)


def test_shipped_questions_ask_nothing_that_is_held_out() -> None:
    held_out = {i for found in json.loads(DEVELOPMENT.read_text(encoding="utf-8")).values() for i in found}
    dropped = set(OVERLAPPING.read_text(encoding="utf-8").splitlines())
    rows = list(read_jsonl(QUESTIONS))
    assert len(rows) == 3_018
    for row in rows:
        assert row["document"] not in held_out | dropped and row["document"].rpartition("#")[0] not in held_out
        assert row["start"] < row["end"] and len(row["questions"]) == 2 and all(row["questions"])


def test_the_shipped_lists_are_ids_of_known_sources() -> None:
    chosen = json.loads(DEVELOPMENT.read_text(encoding="utf-8"))
    assert {corpus.name: corpus.development for corpus in CORPORA} == {name: len(ids) for name, ids in chosen.items()}
    assert sum(map(len, chosen.values())) == 150
    dropped = OVERLAPPING.read_text(encoding="utf-8").splitlines()
    assert dropped == sorted(set(dropped)) and all(dropped)


def test_the_split_is_the_one_written_down() -> None:
    data = os.environ.get("M2RAG_DATA")
    if not data:
        pytest.skip("M2RAG_DATA does not name the folder of the training text")
    corpora = [corpus for corpus in CORPORA if corpus.name in ("cockroachdb_docs", "specs_and_manuals")]
    chosen = json.loads(DEVELOPMENT.read_text(encoding="utf-8"))
    found = choose_development(Path(data) / "train", corpora)
    assert found == {corpus.name: chosen[corpus.name] for corpus in corpora}
