"""Passages that hold words related to the query's: found, after those with the words themselves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from fake_embedder import HashEmbedder
from tiny_models import FakeBackend

from m2rag import M2Embedder
from m2rag.index import Document, LongDocumentIndex
from m2rag.index.modes import Mode
from m2rag.index.related import RelatedWords
from m2rag.stores.lexical import Bm25
from m2rag.tokenizer import TextTokenizer
from m2rag.words import WordVectors

BUY, PURCHASE, PAY, FISH, THE = "buy", "purchase", "pay", "fish", "the"
VECTORS = {
    THE: (0, 0, 0, 1),
    BUY: (1, 0, 0, 0),
    PURCHASE: (0.8, 0.6, 0, 0),
    "purchases": (0, 0, 0, 1),  # the same stem as a word before it: not looked at
    PAY: (0.5, 0, np.sqrt(0.75), 0),
    FISH: (-1, 0, 0, 0),
}
WORDS = WordVectors(tuple(VECTORS), np.array(list(VECTORS.values()), dtype=np.float32))
PASSAGES = ["They pay for fish.", "Fish swim.", "The purchases were small.", "Heron!", "They buy."]


@pytest.fixture(scope="module")
def related() -> RelatedWords:
    return RelatedWords(Bm25(), WORDS)


def order(scores: np.ndarray) -> list[int]:
    return np.argsort(-scores, kind="stable").tolist()


def test_the_word_itself_then_the_nearest(related: RelatedWords) -> None:
    scores = related.asked("Where to buy the things?").scores(PASSAGES)
    assert order(scores)[:3] == [4, 2, 0]
    # An opposite is no worse than a word that nothing is known of.
    assert scores[1] == scores[3] == scores.min()


def test_a_word_that_the_model_does_not_have_is_found_itself(related: RelatedWords) -> None:
    assert order(related.asked("herons").scores(PASSAGES))[0] == 3
    assert np.ptp(related.asked("herons").scores(PASSAGES[:3])) == 0


def test_what_few_passages_have_counts_more(related: RelatedWords) -> None:
    texts = ["They buy.", "They buy.", "A heron.", "They buy.", "Nothing."]
    assert order(related.asked("buy heron").scores(texts)) == [2, 0, 1, 3, 4]


@pytest.mark.parametrize(
    ("query", "texts"),
    [("the", PASSAGES), ("", PASSAGES), ("buy", ["", "the", "..."]), ("buy", ["They buy."] * 3), ("buy", [])],
)
def test_nothing_to_go_by(related: RelatedWords, query: str, texts: list[str]) -> None:
    np.testing.assert_array_equal(related.asked(query).scores(texts), np.zeros(len(texts)))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_passages_without_words_have_nothing(related: RelatedWords, place: int) -> None:
    texts = ["They buy.", "They pay."]
    texts.insert(place, "...")
    assert order(related.asked("buy").scores(texts))[2] == place


def test_without_word_vectors_the_same_words_count() -> None:
    scores = RelatedWords(Bm25(), WordVectors((), np.zeros((0, 4), dtype=np.float32))).asked("buy").scores(PASSAGES)
    assert order(scores)[0] == 4 and np.ptp(scores[:4]) == 0


class Knowing(HashEmbedder):
    """All texts have the same vector, so that words alone make a difference."""

    word_vectors = WORDS

    def vector(self, text: str) -> np.ndarray:
        return np.eye(self.dimension, dtype=np.float32)[0]

    def embed_query(self, text: str) -> np.ndarray:
        return self.vector(text)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LongDocumentIndex]:
    with LongDocumentIndex(tmp_path_factory.mktemp("related") / "index", Knowing()) as opened:
        opened.add(Document("shop", "\n".join(PASSAGES)))
        yield opened


@pytest.mark.parametrize(("mode", "first"), [("hybrid", [4, 2, 0]), ("lexical", [4, 0, 1]), ("dense", [0, 1, 2])])
def test_hybrid_search_shows_them(index: LongDocumentIndex, mode: Mode, first: list[int]) -> None:
    [hit] = index.search("buy", mode=mode, n_passages=3)
    assert [passage.text.strip() for passage in hit.passages] == [PASSAGES[i] for i in first]


def test_a_model_has_the_whole_words_of_its_vocabulary() -> None:
    words = M2Embedder().word_vectors
    assert words is not None and words.vectors.shape[0] == len(words.words) == len(set(words.words))
    np.testing.assert_allclose(np.linalg.norm(words.vectors, axis=1), 1, atol=1e-5)
    assert all(word.isalpha() and len(word) > 1 for word in words.words)
    at = {word: i for i, word in enumerate(words.words)}
    assert at["the"] < at["house"] < at["vary"]  # common ones first
    near = words.vectors[[at["buy"], at["purchase"], at["moon"]]]
    assert near[0] @ near[1] > near[0] @ near[2] + 0.2


def test_a_model_that_shows_no_words_has_none() -> None:
    assert M2Embedder(backend=FakeBackend()).word_vectors is None


def test_only_tokens_that_are_words() -> None:
    words = TextTokenizer.bundled().whole_words()
    assert "house" in words and not {"a", "[CLS]", "##ing", "1990", "!"} & set(words)
    assert list(words.values()) == sorted(words.values())
