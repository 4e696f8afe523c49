"""BM25 finds by words, the dense ranker by exact cosine with each text embedded once, fusion by ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from m2rag.errors import NonFiniteError
from m2rag.evaluation import BM25Ranker, DenseRanker, FusionRanker
from m2rag.results import EmbeddingResult

CORPUS = {
    "birds": "Swallows migrate over the mountains in autumn, a swallow alone does not.",
    "bread": "Flour, water, salt and yeast; the dough rests before baking.",
    "blank": "",
    "boats": "The boats were anchored near the harbour during the storm.",
}


class FakeEmbedder:
    """Vectors from a table, with a record of what was asked for."""

    def __init__(self, vectors: dict[str, Sequence[float]]) -> None:
        self.vectors = vectors
        self.calls: list[list[str]] = []

    def embed_documents(self, texts, *, on_too_long=None, show_progress=None) -> EmbeddingResult:
        assert on_too_long == "window", "a document cut off is not the whole document"
        self.calls.append(list(texts))
        return self._result(texts)

    def embed_queries(self, texts, *, on_too_long=None) -> EmbeddingResult:
        assert on_too_long == "window", "one long query must not end the whole run"
        return self._result(texts)

    def _result(self, texts) -> EmbeddingResult:
        ones = np.ones(len(texts), np.int64)
        return EmbeddingResult(np.array([self.vectors[text] for text in texts], np.float32), ones, ones, ones)


def test_bm25_stems_and_drops_stop_words() -> None:
    found = BM25Ranker().rank(CORPUS, {"q": "how does a swallowing bird migrated", "s": "the and of"}, 10)
    assert list(found["q"]) == ["birds"], "'swallowing' and 'migrated' share stems with the document alone"
    assert found["s"] == {}, "a query of stop words finds nothing"


def test_bm25_with_unknown_words_only() -> None:
    assert BM25Ranker().rank(CORPUS, {"q": "zeppelin"}, 10) == {"q": {}}


@pytest.mark.parametrize("corpus", [{}, {"a": ""}, {"a": "the of and", "b": "is"}])
def test_bm25_with_nothing_to_index(corpus: dict[str, str]) -> None:
    assert BM25Ranker().rank(corpus, {"q": "storm"}, 10) == {"q": {}}


def test_bm25_by_hand() -> None:
    """Lucene's BM25: idf = ln(1 + (N - n + 0.5) / (n + 0.5)), tf / (tf + k1 (1 - b + b length / mean length))."""
    corpus = {"a": "storm storm harbour", "b": "bread dough flour yeast salt"}
    scores = BM25Ranker(k1=1.5, b=0.75).rank(corpus, {"q": "storm"}, 10)["q"]
    expected = np.log(1 + 1.5 / 1.5) * 2 / (2 + 1.5 * (0.25 + 0.75 * 3 / 4))
    assert scores == {"a": pytest.approx(expected, rel=1e-5)}


def test_bm25_equal_scores_are_cut_by_id() -> None:
    corpus = {name: "storm" for name in "dbca"} | {"e": "calm"}
    assert list(BM25Ranker().rank(corpus, {"q": "storm"}, 2)["q"]) == ["a", "b"]


def test_dense_is_the_exact_cosine() -> None:
    rng = np.random.default_rng(0)
    texts = {f"d{i}": f"text {i}" for i in range(40)}
    asked = {f"q{i}": f"query {i}" for i in range(5)}
    table = {text: rng.normal(size=8) * rng.uniform(0.1, 9) for text in [*texts.values(), *asked.values()]}
    found = DenseRanker(FakeEmbedder(table)).rank(texts, asked, 7)
    for query, text in asked.items():
        cosines = {
            i: float(table[text] @ table[d] / np.linalg.norm(table[text]) / np.linalg.norm(table[d]))
            for i, d in texts.items()
        }
        best = sorted(cosines, key=cosines.__getitem__, reverse=True)[:7]
        assert list(found[query]) == best
        assert list(found[query].values()) == pytest.approx([cosines[i] for i in best], abs=1e-5)


def test_each_text_is_embedded_once() -> None:
    embedder = FakeEmbedder({"x": (1, 0), "y": (0, 1), "z": (1, 1), "q": (1, 0.1)})
    ranker = DenseRanker(embedder)
    first = ranker.rank({"a": "x", "b": "y", "c": "x"}, {"q": "q"}, 10)
    again = ranker.rank({"c": "x", "b": "y", "a": "x"}, {"q": "q"}, 10)
    ranker.rank({"a": "z", "b": "y"}, {"q": "q"}, 10)
    assert embedder.calls == [["x", "y"], ["z"]]
    assert first == again
    assert list(first["q"]) == ["a", "c", "b"]


def test_blank_document_is_never_embedded_nor_found() -> None:
    embedder = FakeEmbedder({"x": (-1, 0), "q": (1, 0)})
    assert list(DenseRanker(embedder).rank({"a": "", "b": "x"}, {"q": "q"}, 10)["q"]) == ["b"]
    assert DenseRanker(embedder).rank({"a": ""}, {"q": "q"}, 10) == {"q": {}}


def test_not_a_number_is_told_with_the_document() -> None:
    embedder = FakeEmbedder({"x": (1, 0), "y": (np.nan, 1), "q": (1, 0)})
    with pytest.raises(NonFiniteError, match="document 'b'"):
        DenseRanker(embedder).rank({"a": "x", "b": "y"}, {"q": "q"}, 10)


class FixedRanker:
    def __init__(self, name: str, scores: dict[str, dict[str, float]]) -> None:
        self.name = name
        self.scores = scores

    def rank(self, corpus, queries, k):
        return self.scores


def test_fusion_adds_scores_brought_to_one_range() -> None:
    words = FixedRanker("words", {"q": {"a": 900.0, "b": 450.0}, "r": {}})
    meaning = FixedRanker("meaning", {"q": {"c": 0.8, "b": 0.7, "a": 0.3}})
    fused = FusionRanker(words, meaning, weights=(1, 1))
    found = fused.rank({}, {"q": "?", "r": "?"}, 2)
    assert fused.name == "words + meaning"
    # b: half of the best by words, which are few, so that 0 counts 0; 0.4 of 0.5 above the last by meaning.
    assert found == {"q": {"b": pytest.approx((0.5 + 0.8) / 2), "a": pytest.approx(0.5)}, "r": {}}
