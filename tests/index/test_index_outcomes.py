"""What is told of single documents: what became of each, and what is known of it besides its text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_embedder import HashEmbedder

from m2rag.index import Document, LongDocumentIndex, Outcome, Stored


@pytest.fixture
def index(tmp_path: Path) -> Iterator[LongDocumentIndex]:
    with LongDocumentIndex(tmp_path / "index", HashEmbedder(max_tokens=100, poison={"poison": "error"})) as opened:
        yield opened


def test_every_document_is_told_once_with_its_outcome(index: LongDocumentIndex) -> None:
    index.add([Document("same", "one text"), Document("changed", "an old text")])
    seen: list[Outcome] = []
    done: list[tuple[int, int]] = []
    documents = [
        Document("new a", "text a"),
        Document("changed", "a new text"),
        Document("same", "one text"),
        Document("empty", " "),
        Document("new b", "text b"),
        Document("broken", "poison"),
    ]
    index.add(documents, progress=lambda at: (seen.extend(at.finished), done.append((at.done, len(seen)))))
    assert {outcome.id: outcome.state for outcome in seen} == {
        "new a": "added",
        "changed": "replaced",
        "same": "unchanged",
        "empty": "failed",
        "new b": "added",
        "broken": "failed",
    }
    assert len(seen) == len(documents)
    assert {outcome.id for outcome in seen if outcome.cause is not None} == {"empty", "broken"}
    assert all(count == told for count, told in done)


def test_a_document_described(index: LongDocumentIndex) -> None:
    index.add([Document("long", "wörd " * 150, "A title", {"year": 2020}), Document("short", "a few words")])
    index.add(Document("cut", "word " * 150), on_too_long="truncate")
    assert index.describe(["short", "nowhere", "long"]) == [
        Stored("short", None, {}, n_tokens=3, n_characters=11, n_windows=1, truncated=False),
        Stored("long", "A title", {"year": 2020}, n_tokens=150, n_characters=750, n_windows=2, truncated=False),
    ]
    assert index.describe(["cut"])[0].truncated
    assert index.describe([]) == []


def test_more_documents_than_are_read_at_once(index: LongDocumentIndex) -> None:
    ids = [f"d{i}" for i in range(40)]
    index.add([Document(id, f"text {id}") for id in ids])
    assert [stored.id for stored in index.describe(reversed(ids))] == ids[::-1]
