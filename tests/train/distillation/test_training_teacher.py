"""Teachers: each vector against the plainest way to get it, which teacher reads what, and nothing is dropped."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from teachers import character_teacher, naive_encode
from tiny_training import WIDTH, words
from transformers import BertModel

from m2rag.tokenizer import TextTokenizer
from m2rag_train.distillation.teacher import Piece, TextTeacher, WordPieceTeacher, load_teacher
from m2rag_train.errors import RecipeError


def pieces(tokenizer: TextTokenizer, *texts: str) -> list[Piece]:
    return [Piece(tokenizer.encode(text).ids, text) for text in texts]


@pytest.mark.parametrize("batch_tokens", [1, 20, 8192])
def test_encode_equals_one_text_at_a_time(
    teacher: WordPieceTeacher, tokenizer: TextTokenizer, batch_tokens: int
) -> None:
    lengths = [5, 3, 5, 1, 9, 3, 5, 30]
    given = pieces(tokenizer, *(words(n, seed) for seed, n in enumerate(lengths)))
    assert [len(piece.ids) for piece in given] == lengths
    vectors = teacher.encode(given, batch_tokens=batch_tokens)
    assert vectors.dtype == np.float16 and vectors.shape == (8, WIDTH)
    expected = np.stack([naive_encode(teacher, piece.ids) for piece in given])
    # Halves below 1 are 5e-4 apart at most.
    np.testing.assert_allclose(vectors.astype(np.float32), expected, atol=5e-4)
    similarity = expected @ expected.T - 2 * np.eye(8)
    assert similarity.max() < 0.99, "texts too alike to see a wrong order"


def test_half_precision_is_close(teacher_folder: Path, teacher: WordPieceTeacher, tokenizer: TextTokenizer) -> None:
    given = pieces(tokenizer, *(words(n, n) for n in (3, 10, 25)))
    half = WordPieceTeacher(BertModel.from_pretrained(teacher_folder), tokenizer).encode(given).astype(np.float32)
    assert (half * teacher.encode(given)).sum(1) == pytest.approx(1, abs=5e-3)


def test_a_teacher_with_the_students_vocabulary_reads_ids(
    teacher_folder: Path, teacher: WordPieceTeacher, tokenizer: TextTokenizer
) -> None:
    loaded = load_teacher(str(teacher_folder), tokenizer)
    assert isinstance(loaded, WordPieceTeacher)
    assert (loaded.max_tokens, loaded.dimension) == (30, WIDTH)
    np.testing.assert_array_equal(loaded.word_embeddings, teacher.word_embeddings)
    # For another student it is one that reads text, with the same vectors.
    as_text = load_teacher(str(teacher_folder), TextTokenizer.bundled())
    assert isinstance(as_text, TextTeacher) and as_text.word_embeddings is None
    given = pieces(tokenizer, *(words(n, n) for n in (3, 10, 25)))
    np.testing.assert_allclose(as_text.encode(given), teacher.encode(given), atol=1e-3)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tokenizer: TextTokenizer) -> TextTeacher:
    """Reads letters, up to 60 of them with special tokens and prompt; 24 dimensions."""
    folder = character_teacher(tmp_path_factory.mktemp("other"), 24)
    loaded = load_teacher(str(folder), tokenizer)
    assert isinstance(loaded, TextTeacher)
    return loaded


def test_any_other_teacher_reads_text(other: TextTeacher, tokenizer: TextTokenizer) -> None:
    texts = ["alpha beta", "gamma", "delta epsilon zeta eta"]
    expected = other.model.encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(other.encode(pieces(tokenizer, *texts)), expected, atol=1e-3)
    assert (expected @ expected.T - 2 * np.eye(3)).max() < 0.99, "texts too alike to see a wrong order"
    assert other.dimension == 24
    assert other.max_tokens == 60 - 3, "two special tokens and a prompt of one letter"


def test_queries_have_their_prompt(other: TextTeacher, tokenizer: TextTokenizer) -> None:
    given = pieces(tokenizer, "alpha beta")
    expected = other.model.encode(["q alpha beta"], normalize_embeddings=True)
    np.testing.assert_allclose(other.encode(given, queries=True), expected, atol=1e-3)
    assert np.abs(other.encode(given) - expected).max() > 0.01


def test_a_stretch_longer_than_it_reads_is_read_in_parts(
    other: TextTeacher, tokenizer: TextTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "m2rag_train")
    left, right = "a" * 50, "z" * 50
    vector = other.encode(pieces(tokenizer, left + right, "short"))[0].astype(np.float32)
    both = other.encode(pieces(tokenizer, left, right)).astype(np.float32)
    mean = both.mean(0) / np.linalg.norm(both.mean(0))
    np.testing.assert_allclose(vector, mean, atol=2e-3)
    cut = other.model.encode([left + right], normalize_embeddings=True)[0]
    assert np.abs(vector - cut).max() > 0.01, "the model alone would drop the end"
    assert "1 of 2 stretches are longer than the teacher reads" in caplog.text


def test_a_teacher_without_a_limit(other: TextTeacher, tokenizer: TextTokenizer) -> None:
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    static = StaticEmbedding(tokenizers_of(other), embedding_dim=8)
    teacher = TextTeacher(SentenceTransformer(modules=[static], device="cpu"), tokenizer)
    assert (teacher.max_tokens, teacher.dimension) == (None, 8)
    assert np.isfinite(teacher.encode(pieces(tokenizer, words(200, 0)))).all()


def tokenizers_of(teacher: TextTeacher) -> object:
    return teacher.model.tokenizer.backend_tokenizer


def test_vectors_of_words(teacher: WordPieceTeacher, other: TextTeacher, tokenizer: TextTokenizer) -> None:
    assert teacher.word_embeddings is not None and teacher.word_embeddings.shape == (25, WIDTH)
    vectors = other.vectors_of_words()
    assert vectors.shape == (25, 24) and vectors.dtype == np.float32
    word, number = "epsilon", tokenizer.vocabulary["epsilon"]
    np.testing.assert_allclose(vectors[number], other.model.encode([word], normalize_embeddings=True)[0], atol=1e-3)


def test_encode_of_nothing(teacher: WordPieceTeacher, other: TextTeacher) -> None:
    assert teacher.encode([]).shape == (0, WIDTH)
    assert other.encode([]).shape == (0, 24)


def test_no_such_teacher(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    with pytest.raises(RecipeError, match="teacher.model is '.*absent': no such folder, and from the hub it is not"):
        load_teacher(str(tmp_path / "absent"), tokenizer)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RecipeError, match="its folder is not loaded"):
        load_teacher(str(tmp_path), tokenizer)
