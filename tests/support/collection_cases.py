"""What every package's `DocumentCollection` must do, on the fixture `make` that opens the test's collection."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_embedder import HashEmbedder

from m2rag.errors import IndexMismatchError, IndexNotFoundError
from m2rag.index import Document

Make = Callable[..., Any]


def document(i: int, more: str = "") -> Document:
    draw = random.Random(i)
    words = [f"w{draw.randrange(40)}" for _ in range(30 + i)]  # each of another length: BM25 gives no two the same
    sentences = [" ".join(words[start : start + 7]) + "." for start in range(0, len(words), 7)]
    text = f"Document only{i}. " + "\n".join(sentences) + more
    metadata = {"even": i % 2 == 0, "tags": [f"t{i % 3}"], "year": 2000 + i}
    return Document(f"folder/{i:02}.txt", text, f"Number {i}", metadata)


DOCUMENTS = [document(i) for i in range(20)]


def test_none_there(make: Make) -> None:
    with pytest.raises(IndexNotFoundError):
        make(create=False)


@pytest.mark.parametrize("other", [HashEmbedder(fingerprint="other:64"), HashEmbedder(dimension=32)])
def test_a_collection_of_another_model(make: Make, other: HashEmbedder) -> None:
    with make() as opened:
        opened.add(DOCUMENTS[:2])
    with pytest.raises(IndexMismatchError) as caught:
        make(other)
    assert "fake:64 (64 dimensions)" in caught.value.stored and other.fingerprint in caught.value.given
    with make() as opened:
        assert len(opened) == 2


def test_an_embedder_that_changes_its_mind_about_dimensions(make: Make) -> None:
    class Lying(HashEmbedder):
        def vector(self, text: str) -> np.ndarray:
            return np.ones(self.dimension + 1, dtype=np.float32)

        def embed_documents(self, texts: Any, **options: Any) -> Any:
            result = super().embed_documents([], **options)
            return type(result)(np.ones((len(texts), 65)), *(np.ones(len(texts), dtype=int) for _ in range(3)))

    with make(Lying()) as opened:
        with pytest.raises(IndexMismatchError, match="65"):
            opened.add(DOCUMENTS[:2])
        with pytest.raises(IndexMismatchError, match="65"):
            opened.search("w1")
        assert len(opened) == 0


def test_adding_again_changes_what_has_changed(make: Make) -> None:
    embedder = HashEmbedder()
    with make(embedder) as opened:
        assert opened.add(DOCUMENTS).added == 20
        report = opened.add([*DOCUMENTS[1:], document(0, " More.")])
        assert (report.added, report.replaced, report.unchanged) == (0, 1, 19)
        assert len(embedder.embedded) == 21 and len(opened) == 20
        assert opened.get("folder/00.txt").text.endswith("More.")
        assert opened.delete(["folder/00.txt", "nobody"]) == 1
    with make() as opened:
        assert opened.ids() == [document.id for document in DOCUMENTS[1:]] and opened.get("folder/00.txt") is None


def test_duplicate_ids(make: Make) -> None:
    """The same document twice is one; another text under a taken id is refused by name, and the first stays."""
    with make() as opened:
        report = opened.add([DOCUMENTS[0], DOCUMENTS[0], document(0, " Not the same."), DOCUMENTS[1]])
        assert (report.added, report.unchanged, len(report.failed), len(opened)) == (2, 1, 1, 2)
        assert report.failed[0].id == "folder/00.txt" and "taken" in str(report.failed[0].cause)
        assert opened.get("folder/00.txt") == DOCUMENTS[0]


__all__ = [
    "DOCUMENTS",
    "Make",
    "document",
    "test_a_collection_of_another_model",
    "test_adding_again_changes_what_has_changed",
    "test_an_embedder_that_changes_its_mind_about_dimensions",
    "test_duplicate_ids",
    "test_none_there",
]
