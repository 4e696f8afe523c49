"""Which passages of a document are shown first: by their vectors, their words, or both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_embedder import HashEmbedder

from m2rag.index import Document, LongDocumentIndex
from m2rag.index.modes import Mode

NEAR = "Meaning."
WORDS = "A heron and another heron stood in the reeds."
BOTH = "One heron."
NEITHER = ["Nothing here.", "Nor here.", "Still nothing."]
NEARNESS = {NEAR: 0.9, BOTH: 0.8, WORDS: 0.1}


class Scripted(HashEmbedder):
    """Passages are as near to every query as `NEARNESS` says, others not at all."""

    def vector(self, text: str) -> np.ndarray:
        cosine = NEARNESS.get(text.strip(), 0.0)
        vector = np.zeros(self.dimension, dtype=np.float32)
        vector[:2] = cosine, np.sqrt(1 - cosine**2)
        return vector

    def embed_query(self, text: str) -> np.ndarray:
        return np.eye(self.dimension, dtype=np.float32)[0]


def filled(folder: Path, lexical: str | None) -> LongDocumentIndex:
    index = LongDocumentIndex(folder, Scripted(), lexical=lexical)
    index.add(Document("birds", "\n".join([NEITHER[0], WORDS, NEITHER[1], NEAR, NEITHER[2], BOTH])))
    return index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LongDocumentIndex]:
    with filled(tmp_path_factory.mktemp("passages") / "index", "english") as opened:
        yield opened


def shown(index: LongDocumentIndex, query: str, mode: Mode | None = None) -> list[str]:
    return [passage.text.strip() for passage in index.search(query, mode=mode, n_passages=3)[0].passages]


def test_each_mode_shows_what_it_goes_by(index: LongDocumentIndex) -> None:
    assert shown(index, "herons", "dense") == [NEAR, BOTH, WORDS]
    assert shown(index, "herons", "lexical") == [WORDS, BOTH, NEAR]  # among those without the word: the nearest
    assert shown(index, "herons") == shown(index, "herons", "hybrid") == [BOTH, NEAR, WORDS]


def test_scores_are_cosines_in_every_mode(index: LongDocumentIndex) -> None:
    for mode in index.modes:
        for passage in index.search("herons", mode=mode, n_passages=3)[0].passages:
            assert passage.score == pytest.approx(NEARNESS[passage.text.strip()], abs=1e-2)


@pytest.mark.parametrize("query", ["is it the", "submarines", "..."])
def test_without_words_in_common_the_nearest_are_shown(index: LongDocumentIndex, query: str) -> None:
    assert shown(index, query) == [NEAR, BOTH, WORDS]


def test_an_index_without_words_goes_by_meaning(tmp_path: Path) -> None:
    with filled(tmp_path / "index", None) as index:
        assert shown(index, "herons") == [NEAR, BOTH, WORDS]


def test_one_passage(tmp_path: Path) -> None:
    with LongDocumentIndex(tmp_path / "index", Scripted()) as index:
        index.add(Document("one", WORDS))
        assert shown(index, "herons") == [WORDS]


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_where_the_model_gives_no_passages_words_choose(mode: Mode, tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {number}. " + "Nothing of note happens in it. " * 30 for number in range(6)]
    paragraphs[2] += "A heron waits."
    paragraphs[4] += "A heron meets a heron."
    text = "\n\n".join(paragraphs)
    embedder = HashEmbedder()
    embedder.has_passages = False  # type: ignore[attr-defined]
    with LongDocumentIndex(tmp_path / "words", embedder) as index:
        index.add(Document("birds", text))
        (hit,) = index.search("Where are herons?", mode=mode)
        assert [passage.text[-14:] for passage in hit.passages] == ["meets a heron.", "A heron waits."]
        assert all(text[p.start : p.end] == p.text and len(p.text) < 1200 for p in hit.passages)
        assert {(p.score, p.own_score) for p in hit.passages} == {(hit.document_score, False)}
        assert len(index.search("herons", mode=mode, n_passages=1)[0].passages) == 1
        assert index.search("herons", mode=mode, passages=False)[0].passages == []
    with LongDocumentIndex(tmp_path / "none", embedder, lexical=None) as index:
        index.add(Document("birds", text))
        assert index.search("herons")[0].passages == []
