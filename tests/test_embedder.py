"""What the embedder does with its inputs, by a backend whose vectors can be worked out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TOKENIZER, FakeBackend, sentence

from m2rag import EmbeddingResult, M2Embedder
from m2rag.backends import BatchTooLargeError
from m2rag.batching import BatchRule, Piece
from m2rag.errors import (
    InputTooLongError,
    InvalidInputError,
    InvalidInputTypeError,
    NonFiniteError,
    OutOfMemoryError,
)
from m2rag.tokenizer import TokenIds

Embed = Callable[..., EmbeddingResult]


def documents(embedder: M2Embedder, texts: Any, **options: Any) -> EmbeddingResult:
    return embedder.embed_documents(texts, **options)


def adocuments(embedder: M2Embedder, texts: Any, **options: Any) -> EmbeddingResult:
    return asyncio.run(embedder.aembed_documents(texts, **options))


# The same core runs both: every rule is checked through both doors.
both_ways = pytest.mark.parametrize("embed", [documents, adocuments])


def expected(backend: FakeBackend, text: str) -> np.ndarray:
    return backend.token_vectors([101, *TOKENIZER.encode(text).ids, 102]).mean(0)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


# Inputs


@both_ways
@pytest.mark.parametrize("kind", [list, tuple, iter], ids=["list", "tuple", "generator"])
def test_vectors_in_input_order(embed: Embed, kind: Callable) -> None:
    backend = FakeBackend()
    texts = [sentence(n, seed=n) for n in (3, 40, 1, 17, 40, 2)]
    result = embed(M2Embedder(backend=backend), kind(texts))
    assert result.vectors.dtype == np.float32
    for text, vector in zip(texts, result, strict=True):
        np.testing.assert_allclose(vector, unit(expected(backend, text)), atol=1e-6)
    assert result.n_tokens.tolist() == TOKENIZER.count(texts).tolist() == result.n_used.tolist()
    assert result.n_windows.tolist() == [1] * 6
    assert not result.truncated.any() and result.errors == {} and result.passages is None


@both_ways
def test_no_inputs(embed: Embed) -> None:
    result = embed(M2Embedder(backend=FakeBackend()), [], passages=True)
    assert result.vectors.shape == (0, 8) and result.passages == [] and len(result) == 0


@both_ways
@pytest.mark.parametrize("texts", ["one text", b"bytes", None, 7, [["nested"]], ["a", None], ["a", b"b"], [1.5]])
def test_wrong_types_are_named(embed: Embed, texts: Any) -> None:
    with pytest.raises(InvalidInputTypeError) as caught:
        embed(M2Embedder(backend=FakeBackend()), texts)
    if isinstance(texts, list):
        assert f"input {len(texts) - 1} is a {type(texts[-1]).__name__}" in str(caught.value)


def test_a_single_str_is_told_what_to_do() -> None:
    with pytest.raises(InvalidInputTypeError, match=r"wrap it in \[...\]"):
        M2Embedder(backend=FakeBackend()).embed_documents("one text")


@both_ways
@pytest.mark.parametrize("text", ["", " ", "\n\t\u3000", "\x00\x01\u200b"])
def test_nothing_to_embed_is_named(embed: Embed, text: str) -> None:
    with pytest.raises(InvalidInputError, match="input 1 "):
        embed(M2Embedder(backend=FakeBackend()), ["good", text])


@both_ways
def test_skip_reports_every_bad_input_and_embeds_the_rest(embed: Embed) -> None:
    backend = FakeBackend(max_tokens=16)
    texts = ["good", "", None, sentence(50), b"x", "fine"]
    result = embed(M2Embedder(backend=backend), texts, on_error="skip", passages=True)
    kinds = {index: type(error) for index, error in result.errors.items()}
    assert kinds == {1: InvalidInputError, 2: InvalidInputTypeError, 3: InputTooLongError, 4: InvalidInputTypeError}
    assert list(result.errors) == [1, 2, 3, 4]
    np.testing.assert_allclose(result[0], unit(expected(backend, "good")), atol=1e-6)
    np.testing.assert_allclose(result[5], unit(expected(backend, "fine")), atol=1e-6)
    assert not result.vectors[1:5].any()
    assert result.n_windows.tolist() == [1, 0, 0, 0, 0, 1]
    assert result.n_used[3] == 0 and result.n_tokens[3] == 57
    assert result.passages is not None
    assert [passages is None for passages in result.passages] == [False, True, True, True, True, False]


@pytest.mark.parametrize(
    "options",
    [{"on_too_long": "cut"}, {"on_error": "ignore"}],
)
def test_unknown_choices_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        M2Embedder(backend=FakeBackend()).embed_documents(["a"], **options)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(TypeError, match="max_length"):
        M2Embedder(backend=FakeBackend(), max_length=5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 65}, "max_tokens is 65, fake takes at most 64"),
        ({"max_tokens": 0}, "at least 1"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"on_too_long": "cut"}, "on_too_long is 'cut'"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"precision": "int8", "normalize": False}, "needs normalize=True"),
        ({"dimensions": 4}, "not trained for fewer than its 8"),
        ({"model": "m2rag-mini"}, "not both"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        M2Embedder(backend=FakeBackend(), **options)


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match="the prompt and the special tokens take 6 tokens, the limit is 6"):
        M2Embedder(backend=FakeBackend(), max_tokens=6, document_prompt="one two three four").embed_documents(["a"])


# Batches


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 50), max_size=30),
    budget=st.integers(1, 400),
    rule=st.sampled_from([BatchRule(), BatchRule(pad_to=64), BatchRule(equal_lengths=True)]),
)
def test_any_batches_give_the_same_vectors(lengths: list[int], budget: int, rule: BatchRule) -> None:
    backend = FakeBackend(rule=rule)
    texts = [" ".join(["cat"] * n) for n in lengths]
    result = M2Embedder(backend=backend, batch_tokens=budget).embed_documents(texts)
    for text, vector in zip(texts, result, strict=True):
        np.testing.assert_allclose(vector, unit(expected(backend, text)), atol=1e-5)
    for batch in backend.batches:
        assert len(batch) == 1 or rule.cost(max(map(len, batch)), len(batch)) <= budget
    sizes = [max(map(len, batch)) for batch in backend.batches]
    assert sizes == sorted(sizes, reverse=True)


@both_ways
def test_on_batch_is_told_of_every_document_and_token(embed: Embed) -> None:
    told: list[tuple[int, int]] = []
    texts = [sentence(n) for n in (100, 5, 30)]
    embedder = M2Embedder(backend=FakeBackend(), max_tokens=32, on_too_long="window", batch_tokens=32)
    result = embed(embedder, texts, on_batch=lambda docs, tokens: told.append((docs, tokens)))
    assert sum(docs for docs, _ in told) == 3
    assert sum(tokens for _, tokens in told) >= result.n_tokens.sum()
    assert any(docs == 0 for docs, _ in told), "a window is not yet a document"


def out_of_memory_above(limit: int) -> Callable[[Sequence[Piece]], None]:
    def fail(batch: Sequence[Piece]) -> None:
        if max(map(len, batch)) * len(batch) > limit:
            raise BatchTooLargeError("no memory")

    return fail


@both_ways
def test_out_of_memory_halves_the_batch(embed: Embed) -> None:
    backend = FakeBackend(fails=out_of_memory_above(60))
    texts = [sentence(20, seed=n) for n in range(8)]
    result = embed(M2Embedder(backend=backend, batch_tokens=200), texts)
    for text, vector in zip(texts, result, strict=True):
        np.testing.assert_allclose(vector, unit(expected(backend, text)), atol=1e-6)
    # 24 tokens each: 8 do not fit, nor do 4; 2 do.
    assert [len(batch) for batch in backend.batches] == [8, 4, 2, 2, 4, 2, 2]


@both_ways
def test_one_document_that_does_not_fit_is_named(embed: Embed) -> None:
    texts = [sentence(5), sentence(40), sentence(5)]
    embedder = M2Embedder(backend=FakeBackend(fails=out_of_memory_above(30)))
    with pytest.raises(OutOfMemoryError, match="input 1 "):
        embed(embedder, texts)
    result = embed(embedder, texts, on_error="skip")
    assert list(result.errors) == [1] and isinstance(result.errors[1], OutOfMemoryError)
    assert result[0].any() and not result[1].any() and result[2].any()


def test_the_windows_of_a_failed_document_are_not_run() -> None:
    backend = FakeBackend(fails=out_of_memory_above(20))
    embedder = M2Embedder(backend=backend, max_tokens=32, on_too_long="window", batch_tokens=32)
    result = embedder.embed_documents([sentence(200), "short"], on_error="skip")
    assert list(result.errors) == [0] and result[1].any() and result.n_windows.tolist() == [0, 1]
    assert len(backend.batches) == 2


@both_ways
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_never_leave(embed: Embed, value: float) -> None:
    def spoil(piece: Piece, vector: np.ndarray) -> np.ndarray:
        return np.where(np.arange(8) == 3, value, vector) if piece.document in (1, 3) else vector

    embedder = M2Embedder(backend=FakeBackend(spoil=spoil))
    with pytest.raises(NonFiniteError, match="inputs 1, 3"):
        embed(embedder, ["a", "b", "c", "d"])
    result = embed(embedder, ["a", "b", "c", "d"], on_error="skip")
    assert list(result.errors) == [1, 3]
    assert np.isfinite(result.vectors).all() and not result[1].any() and result[2].any()


def test_an_error_of_the_backend_passes_through() -> None:
    def fail(batch: Sequence[Piece]) -> None:
        raise KeyError("from below")

    with pytest.raises(KeyError, match="from below"):
        M2Embedder(backend=FakeBackend(fails=fail)).embed_documents(["a"])


# Too long


@both_ways
def test_error_says_both_numbers(embed: Embed) -> None:
    with pytest.raises(InputTooLongError, match="input 1 has 57 tokens, the limit is 16") as caught:
        embed(M2Embedder(backend=FakeBackend(), max_tokens=16), ["a", sentence(50)])
    assert (caught.value.index, caught.value.n_tokens, caught.value.max_tokens) == (1, 57, 16)


@both_ways
def test_truncate_uses_the_beginning(embed: Embed, caplog: pytest.LogCaptureFixture) -> None:
    backend = FakeBackend()
    text = sentence(50)
    with caplog.at_level(logging.INFO, logger="m2rag"):
        result = embed(M2Embedder(backend=backend, max_tokens=16), ["cat", text, text], on_too_long="truncate")
    ids = TOKENIZER.encode(text).ids[:14]
    np.testing.assert_allclose(result[1], unit(backend.token_vectors([101, *ids, 102]).mean(0)), atol=1e-6)
    assert result.n_tokens.tolist() == [3, 57, 57] and result.n_used.tolist() == [3, 16, 16]
    assert result.truncated.tolist() == [False, True, True]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "2 of 3 inputs were cut to 16 tokens: 82 of their 114 tokens are not in the vectors"


@both_ways
def test_window_uses_all_of_it(embed: Embed, caplog: pytest.LogCaptureFixture) -> None:
    """The vector is the mean of the raw window vectors, weighted by their tokens, then normalised."""
    backend = FakeBackend()
    text = sentence(100)
    ids = TOKENIZER.encode(text).ids
    with caplog.at_level(logging.INFO, logger="m2rag"):
        result = embed(M2Embedder(backend=backend, max_tokens=42), [text, "cat"], on_too_long="window")
    # 110 tokens, 40 to a window, 5 shared.
    windows = [ids[0:40], ids[35:75], ids[70:110]]
    raw = [backend.token_vectors([101, *window, 102]).mean(0) for window in windows]
    np.testing.assert_allclose(result[0], unit(np.average(raw, axis=0, weights=[40, 40, 40])), atol=1e-6)
    assert result.n_windows.tolist() == [3, 1]
    assert result.n_used.tolist() == result.n_tokens.tolist() == [112, 3]
    assert not result.truncated.any()
    (record,) = caplog.records
    assert (
        record.levelno == logging.INFO and "1 of 2 inputs" in record.getMessage() and "3 windows" in record.getMessage()
    )


def test_a_shorter_last_window_weighs_less() -> None:
    backend = FakeBackend()
    text = sentence(50)
    ids = TOKENIZER.encode(text).ids
    result = M2Embedder(backend=backend, max_tokens=42, normalize=False, on_too_long="window").embed_documents([text])
    raw = [backend.token_vectors([101, *window, 102]).mean(0) for window in (ids[0:40], ids[35:55])]
    np.testing.assert_allclose(result[0], np.average(raw, axis=0, weights=[40, 20]), atol=1e-6)


def test_an_input_at_the_limit_is_not_too_long() -> None:
    text = " ".join(["cat"] * 14)
    embedder = M2Embedder(backend=FakeBackend(), max_tokens=16)
    result = embedder.embed_documents([text], on_too_long="window")
    assert result.n_tokens[0] == 16 and result.n_windows[0] == 1
    with pytest.raises(InputTooLongError):
        embedder.embed_documents([text + " cat"])


def test_pieces_carry_their_text() -> None:
    """Backends that send text send what the ids of the piece say."""
    backend = FakeBackend()
    text = "Ünïcode " + sentence(60)
    M2Embedder(backend=backend, max_tokens=20, on_too_long="window").embed_documents([text, "short"])
    for piece in (piece for batch in backend.batches for piece in batch):
        assert TOKENIZER.encode(piece.text).ids.tolist() == piece.ids[1:-1].tolist()


# Prompts, precision, dimensions


def test_prompts_stand_in_front_of_every_window() -> None:
    backend = FakeBackend()
    embedder = M2Embedder(backend=backend, max_tokens=20, on_too_long="window", document_prompt="passage: ")
    result = embedder.embed_documents([sentence(40)])
    assert result.n_windows[0] > 1
    head = [101, *TOKENIZER.encode("passage: ").ids]
    for piece in (piece for batch in backend.batches for piece in batch):
        assert piece.ids[: len(head)].tolist() == head and piece.ids[-1] == 102 and len(piece) <= 20


def test_query_and_document_prompts_differ() -> None:
    backend = FakeBackend()
    embedder = M2Embedder(backend=backend, query_prompt="query: ", document_prompt="document: ")
    np.testing.assert_allclose(embedder.embed_query("cat"), unit(expected(backend, "query: cat")), atol=1e-6)
    np.testing.assert_allclose(
        embedder.embed_documents(["cat"])[0], unit(expected(backend, "document: cat")), atol=1e-6
    )


def test_queries_alone_and_together() -> None:
    embedder = M2Embedder(backend=FakeBackend(), query_prompt="query: ")
    one = embedder.embed_query("cat")
    assert one.shape == (8,) and one.dtype == np.float32
    np.testing.assert_allclose(embedder.embed_queries(["dog", "cat"])[1], one, atol=1e-6)
    np.testing.assert_array_equal(asyncio.run(embedder.aembed_query("cat")), one)
    np.testing.assert_allclose(asyncio.run(embedder.aembed_queries(["dog", "cat"]))[1], one, atol=1e-6)
    with pytest.raises(InvalidInputError):
        embedder.embed_query(" ")
    with pytest.raises(InvalidInputTypeError):
        embedder.embed_query(None)  # type: ignore[arg-type]


def test_passages_alone_and_async() -> None:
    embedder = M2Embedder(backend=FakeBackend(), on_too_long="window")
    text = sentence(100)
    result = embedder.embed_documents([text], passages=True, passage_tokens=20)
    assert result.passages is not None and result.passages[0] is not None
    for passages in (
        embedder.embed_passages(text, passage_tokens=20),
        asyncio.run(embedder.aembed_passages(text, passage_tokens=20)),
    ):
        np.testing.assert_array_equal(passages.vectors, result.passages[0].vectors)
        np.testing.assert_array_equal(passages.starts, result.passages[0].starts)


def test_not_normalised() -> None:
    backend = FakeBackend()
    result = M2Embedder(backend=backend, normalize=False).embed_documents(["cat"])
    np.testing.assert_allclose(result[0], expected(backend, "cat"), atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "dtype", "width"),
    [("float32", np.float32, 12), ("float16", np.float16, 12), ("int8", np.int8, 12), ("binary", np.uint8, 2)],
)
def test_precisions(precision: str, dtype: type, width: int) -> None:
    backend = FakeBackend(dimension=12)
    embedder = M2Embedder(backend=backend, precision=precision)
    result = embedder.embed_documents(["cat", "", "dog"], on_error="skip", passages=True)
    assert result.vectors.shape == result.shape == (3, width)
    assert result.vectors.dtype == result.dtype == dtype
    assert not result.vectors[1].any()
    assert embedder.dimension == 12
    vector = unit(expected(backend, "dog"))
    wanted = {
        "float32": vector,
        "float16": vector.astype(np.float16),
        "int8": np.rint(vector * 127),
        "binary": np.packbits(vector > 0),
    }[precision]
    np.testing.assert_allclose(result[2].astype(float), wanted.astype(float), atol=1e-3 if "float" in precision else 0)
    assert result.passages is not None and result.passages[2] is not None
    assert result.passages[2].vectors.dtype == dtype and result.passages[2].vectors.shape == (1, width)


def test_shorter_vectors_where_trained_for() -> None:
    backend = FakeBackend(dimension=12, matryoshka=(4, 8))
    embedder = M2Embedder(backend=backend, dimensions=4)
    assert embedder.dimension == 4
    result = embedder.embed_documents(["cat"], passages=True)
    np.testing.assert_allclose(result[0], unit(expected(backend, "cat")[:4]), atol=1e-6)
    assert result.passages is not None and result.passages[0] is not None
    assert result.passages[0].vectors.shape == (1, 4)
    assert embedder.embed_documents([]).vectors.shape == (0, 4)
    with pytest.raises(ValueError, match="dimensions is 5, fake was trained for 4, 8, 12"):
        M2Embedder(backend=backend, dimensions=5)


def test_all_dimensions_are_always_allowed() -> None:
    assert M2Embedder(backend=FakeBackend(), dimensions=8).dimension == 8


# Identity


def test_fingerprint_tells_apart_what_cannot_be_compared() -> None:
    backend = FakeBackend(matryoshka=(4,))
    options: list[dict[str, Any]] = [
        {},
        {"normalize": False},
        {"dimensions": 4},
        {"precision": "int8"},
        {"precision": "binary"},
        {"document_prompt": "passage: "},
    ]
    prints = [M2Embedder(backend=backend, **option).fingerprint for option in options]
    assert len(set(prints)) == len(prints)


def test_fingerprint_is_silent_on_what_changes_no_space() -> None:
    backend = FakeBackend()
    plain = M2Embedder(backend=backend).fingerprint
    for option in ({"batch_tokens": 7}, {"max_tokens": 32}, {"on_too_long": "window"}, {"query_prompt": "query: "}):
        assert M2Embedder(backend=backend, **option).fingerprint == plain  # type: ignore[arg-type]


def test_repr_is_short() -> None:
    assert repr(M2Embedder(backend=FakeBackend())) == "M2Embedder('fake', dimension=8, max_tokens=64)"


def test_count_tokens() -> None:
    embedder = M2Embedder(backend=FakeBackend(), document_prompt="passage: ")
    counts = embedder.count_tokens(["", "cat", sentence(200)])
    assert counts.tolist() == [2, 3, 222] and counts.dtype == np.int64
    with pytest.raises(InvalidInputTypeError, match="input 1 is a NoneType"):
        embedder.count_tokens(["a", None])  # type: ignore[list-item]
    with pytest.raises(InvalidInputTypeError, match="single str"):
        embedder.count_tokens("cat")


def test_result_behaves_like_its_array() -> None:
    result = M2Embedder(backend=FakeBackend()).embed_documents(["cat", "dog", "mat"])
    array = np.asarray(result)
    assert array.shape == result.shape == (3, 8) and len(result) == 3
    np.testing.assert_array_equal(np.asarray(result, dtype=np.float64), array.astype(np.float64))
    np.testing.assert_array_equal(np.stack(list(result)), array)
    np.testing.assert_array_equal(result[1:], array[1:])
    np.testing.assert_array_equal(result[[True, False, True]], array[[0, 2]])
    np.testing.assert_allclose(result @ result[0], array @ array[0])
    np.testing.assert_allclose(result @ array.T, array @ array.T)


def test_progress_is_drawn_on_standard_error_only(capsys: pytest.CaptureFixture[str]) -> None:
    M2Embedder(backend=FakeBackend(), show_progress=True).embed_documents(["cat", "dog"])
    captured = capsys.readouterr()
    assert captured.out == "" and "2/2 docs" in captured.err
    M2Embedder(backend=FakeBackend(), show_progress=True).embed_documents(["cat"], show_progress=False)
    assert capsys.readouterr().err == ""


@both_ways
def test_tokens_and_text_give_the_same_vector(embed: Embed) -> None:
    embedder = M2Embedder(backend=FakeBackend(), document_prompt="document: ", on_too_long="window")
    texts = [sentence(7), sentence(200), "short"]
    as_ids = [TokenIds(TOKENIZER.encode(text).ids.tolist()) for text in texts]
    mixed = embed(embedder, [as_ids[0], texts[1], as_ids[1], texts[0], as_ids[2], texts[2]])
    np.testing.assert_array_equal(mixed.vectors[[0, 2, 4]], mixed.vectors[[3, 1, 5]])
    np.testing.assert_array_equal(mixed.n_tokens[[0, 2, 4]], mixed.n_tokens[[3, 1, 5]])
    assert mixed.n_windows[2] > 1


@both_ways
def test_tokens_that_cannot_be_embedded_are_named(embed: Embed) -> None:
    embedder = M2Embedder(backend=FakeBackend())
    result = embed(embedder, [TokenIds([]), TokenIds([5]), TokenIds([101, 102]), "fine"], on_error="skip")
    assert sorted(result.errors) == [0, 1, 2]
    assert "input 1: token id 5 at position 0" in str(result.errors[1])
    with pytest.raises(InvalidInputError, match="no passages"):
        embed(embedder, [TokenIds([2_000])], passages=True)
