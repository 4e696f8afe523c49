"""BM25 vectors: words, not letters; the store's part is tested with the stores."""

from __future__ import annotations

import pytest

from m2rag.errors import InvalidInputError
from m2rag.stores.lexical import Bm25


def test_words_are_stemmed_and_stop_words_left_out() -> None:
    bm25 = Bm25()
    document = bm25.document("The runner runs; running RUNS.")
    assert set(bm25.query("run").indices) <= set(document.indices)
    assert bm25.query("the of and").indices.size == 0 and bm25.document("the").indices.size == 0
    assert document.indices.shape == document.values.shape and (document.values > 0).all()


def test_counts_saturate_and_length_counts() -> None:
    bm25 = Bm25()
    one, four, long = (float(bm25.document(text).values.max()) for text in ("cat", "cat " * 4, "cat" + " dog" * 900))
    assert one < four < 2 * one, "four times a word is not four times the weight"
    assert bm25.document("cat" + " dog" * 900).values.min() < one and long > one


def test_languages() -> None:
    german = Bm25("german")
    assert set(german.query("Katzen").indices) == set(german.query("Katze").indices)
    assert german.query("und der").indices.size == 0 < Bm25().query("und der").indices.size
    with pytest.raises(InvalidInputError, match="klingon"):
        Bm25("klingon")


def test_texts_compared_by_the_words_of_a_query() -> None:
    texts = ["cats sleep", "cats purr and cats sleep", "a dog barks", "cats", ""]
    scores = Bm25().scores(texts, "do cats bark")
    # Rare among these texts is worth more than repeated, short more than long.
    assert (-scores).argsort(kind="stable").tolist() == [2, 1, 3, 0, 4] and scores[4] == 0
    assert not Bm25().scores(texts, "is it the").any() and Bm25().scores([], "cats").shape == (0,)
