"""The checkpoint that comes with the package, through the front door."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from m2rag import M2Embedder
from m2rag.demo import load_documents
from m2rag.evaluation import load_task
from m2rag.models.checkpoints import BUNDLED

pytestmark = pytest.mark.skipif(
    not (BUNDLED / "m2rag-mini").is_dir(), reason="the checkpoint m2rag-mini is not in this tree"
)


@pytest.fixture(scope="module")
def embedder() -> M2Embedder:
    return M2Embedder()


def test_it_is_what_it_is_said_to_be(embedder: M2Embedder) -> None:
    info = embedder.info()
    assert (embedder.model_name, embedder.dimension, embedder.max_tokens) == ("m2rag-mini", 384, 32768)
    assert (info["padding"], info["pooling"]) == ("masked", "mean")


def test_a_vector_does_not_depend_on_its_batch(embedder: M2Embedder) -> None:
    texts = ["A cat.", "Rain fell on the old stone houses. " * 300, "What is a monad?"]
    together = embedder.embed_documents(texts)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(embedder.embed_documents([text])[0], vector, atol=1e-5)


def test_it_knows_meaning_from_words(embedder: M2Embedder) -> None:
    answers = ["The bakery sells fresh bread and rolls.", "The engine burns fuel to move the car."]
    scores = embedder.embed_documents(answers) @ embedder.embed_query("Where can I buy something to eat?")
    assert scores[0] > scores[1]


def bfloat16_cosines(embedder: M2Embedder, texts: list[str]) -> np.ndarray:
    """Cosine between the vectors in bfloat16 and in float32, per text."""
    half = M2Embedder(dtype="bfloat16")
    vectors = [which.embed_documents(texts, on_too_long="truncate").vectors for which in (half, embedder)]
    return (vectors[0] * vectors[1]).sum(axis=1)


def test_bfloat16_gives_the_same_vectors(embedder: M2Embedder) -> None:
    texts = sorted((document.text for document in load_documents()), key=len)
    assert bfloat16_cosines(embedder, [*texts[:3], texts[20]]).min() > 0.999


@pytest.mark.slow
@pytest.mark.skipif("M2RAG_DATA" not in os.environ, reason="M2RAG_DATA does not name the folder of the real tasks")
def test_bfloat16_gives_the_same_vectors_of_fifty_documents(embedder: M2Embedder) -> None:
    task = load_task(Path(os.environ["M2RAG_DATA"]) / "bench" / "qmsum_question")
    texts = [*(document.text for document in load_documents()), *list(task.corpus.values())[:10]]
    cosines = bfloat16_cosines(embedder, texts)
    assert len(cosines) == 50 and cosines.min() > 0.999
