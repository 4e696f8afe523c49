from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TOKENIZER, FakeBackend, sentence

from m2rag import M2Embedder
from m2rag.passages import passage_offsets, plan_passages

TEXTS = st.lists(
    st.sampled_from(
        ["word", "unbelievable", "end.", "\n\n", "\n", " ", "中文", "한국", "é", "\x00", "🙂", "“quoted.”", "x1"]
    ),
    min_size=1,
    max_size=200,
).map("".join)


def cut(text: str, passage_tokens: int) -> list[str]:
    tokens = TOKENIZER.encode(text)
    firsts = plan_passages(text, tokens, 0, len(tokens), passage_tokens, TOKENIZER.is_continuation)
    starts, ends = passage_offsets(text, tokens, firsts, len(tokens))
    return [text[a:b] for a, b in zip(starts, ends, strict=True)]


@settings(deadline=None, max_examples=120)
@given(text=TEXTS, passage_tokens=st.integers(1, 40), max_tokens=st.integers(10, 64))
def test_passages_hold_the_document_in_order(text: str, passage_tokens: int, max_tokens: int) -> None:
    """Nothing but white space is left out, nothing is there twice, and no passage is empty, windows or not."""
    embedder = M2Embedder(backend=FakeBackend(), max_tokens=max_tokens, on_too_long="window")
    if not len(TOKENIZER.encode(text)):
        return
    passages = embedder.embed_passages(text, passage_tokens=passage_tokens)
    position = 0
    for start, end in zip(passages.starts, passages.ends, strict=True):
        assert start >= position and end > start
        assert text[position:start].strip() == ""
        assert text[start:end].strip() == text[start:end]
        position = end
    assert text[position:].strip() == ""
    assert passages.vectors.shape == (len(passages), 8)


def test_passages_are_about_equal() -> None:
    text = sentence(1000)
    lengths = TOKENIZER.count(cut(text, 100)) - 2
    assert len(lengths) == 11
    assert lengths.min() >= 50 and lengths.max() <= 150


def test_sentences_are_kept_whole() -> None:
    passages = cut(sentence(1000), 100)
    assert all(passage.endswith(".") for passage in passages)


def test_a_paragraph_is_preferred_to_a_sentence() -> None:
    """A sentence ends nearer to the middle."""
    first, second = sentence(46), sentence(60, seed=1)
    assert cut(f"{first}\n\n{second}", 64) == [first, second]


def test_words_are_not_divided() -> None:
    """No sentence ends anywhere, every word has several tokens: passages begin with a word."""
    words = ["unbelievableness"] * 100
    for passage in cut(" ".join(words), 10):
        assert set(passage.split()) == {words[0]}


def test_a_short_text_is_one_passage() -> None:
    assert cut("  one short text \n", 256) == ["one short text"]


def test_one_character_of_several_tokens_is_not_divided() -> None:
    """A Korean syllable becomes up to three tokens with the same offsets."""
    passages = cut("한국어" * 20, 2)
    assert "".join(passages) == "한국어" * 20


def test_vectors_are_means_over_the_passages_tokens() -> None:
    backend = FakeBackend()
    embedder = M2Embedder(backend=backend, normalize=False, max_tokens=64)
    text = sentence(50)
    passages = embedder.embed_passages(text, passage_tokens=20)
    assert len(passages) > 2
    for vector, start, end in zip(passages.vectors, passages.starts, passages.ends, strict=True):
        expected = backend.token_vectors(TOKENIZER.encode(text[start:end]).ids).mean(0)
        np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_across_windows_every_token_is_used_once() -> None:
    """The fake vector of a token depends on the token alone: passages in windows are those of the whole text."""
    backend = FakeBackend()
    embedder = M2Embedder(backend=backend, normalize=False, max_tokens=32, on_too_long="window")
    text = sentence(300)
    result = embedder.embed_documents([text], passages=True, passage_tokens=10)
    assert result.n_windows[0] > 5
    assert result.passages is not None
    passages = result.passages[0]
    assert passages is not None
    for vector, start, end in zip(passages.vectors, passages.starts, passages.ends, strict=True):
        expected = backend.token_vectors(TOKENIZER.encode(text[start:end]).ids).mean(0)
        np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_of_a_truncated_document_the_used_part() -> None:
    embedder = M2Embedder(backend=FakeBackend(), max_tokens=32, on_too_long="truncate")
    text = sentence(100)
    passages = embedder.embed_passages(text, passage_tokens=10)
    assert text[: passages.ends[-1]] == " ".join(text.split()[:28])
    assert TOKENIZER.count([text[: passages.ends[-1]]]).tolist() == [32]


def test_the_prompt_belongs_to_no_passage() -> None:
    backend = FakeBackend()
    embedder = M2Embedder(backend=backend, normalize=False, document_prompt="search document: ")
    passages = embedder.embed_passages("cats and dogs")
    assert (passages.starts.tolist(), passages.ends.tolist()) == ([0], [13])
    expected = backend.token_vectors(TOKENIZER.encode("cats and dogs").ids).mean(0)
    np.testing.assert_allclose(passages.vectors[0], expected, atol=1e-6)


def test_passages_are_normalised_as_documents_are() -> None:
    passages = M2Embedder(backend=FakeBackend()).embed_passages(sentence(50), passage_tokens=20)
    np.testing.assert_allclose(np.linalg.norm(passages.vectors, axis=1), 1, atol=1e-6)


def test_a_size_below_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="passage_tokens is 0"):
        M2Embedder(backend=FakeBackend()).embed_passages("text", passage_tokens=0)


def test_a_backend_without_hidden_states_is_refused() -> None:
    with pytest.raises(ValueError, match="gives one vector per input and no passages"):
        M2Embedder(backend=FakeBackend(has_spans=False)).embed_passages("text")
