"""The benchmark of shorter and smaller vectors: they are what the embedder gives, and compared as such."""

from __future__ import annotations

import numpy as np
import vector_sizes
from tiny_models import FakeBackend

from m2rag import M2Embedder
from m2rag.evaluation import Task

TEXTS = {"cats": "the cat sat on a mat", "rain": "rain fell over old stone houses", "dogs": "dogs ran far away"}
TASK = Task("toy", TEXTS, {"q": "rain over houses"}, {"q": {"rain": 1}})


def test_sizes_are_those_of_the_embedder() -> None:
    full = M2Embedder(backend=FakeBackend(matryoshka=(4,))).embed_documents(list(TEXTS.values())).vectors
    for as_int8 in (False, True):
        options = {"dimensions": 4, "precision": "int8" if as_int8 else "float32"}
        own = M2Embedder(backend=FakeBackend(matryoshka=(4,)), **options).embed_documents(list(TEXTS.values())).vectors
        np.testing.assert_allclose(vector_sizes.resized(full, 4, as_int8), own, atol=1e-6)


def test_each_size_ranks_with_its_own_vectors_and_embeds_nothing_anew() -> None:
    backend = FakeBackend(matryoshka=(4,))
    ranker = vector_sizes.SizedRanker(M2Embedder(backend=backend))
    scores = {}
    for size in ((8, False), (8, True), (4, False)):
        ranker.sizes = size
        scores[size] = ranker.rank(TASK.corpus, TASK.queries, 3)["q"]
        assert scores[size].keys() == TEXTS.keys()
    assert scores[8, False] != scores[4, False]
    assert max(scores[8, True].values()) > 1, "the products of whole numbers"
    documents = [batch for batch in backend.batches if len(batch) == len(TEXTS)]
    assert len(documents) == 1


def test_the_table() -> None:
    figures = {"8": 0.8, "4": 0.6}
    content = {"model": "toy", "sizes": ["8", "4"], "tasks": {"a": figures, "qmsum_val_x": figures}, "mean": figures}
    lines = vector_sizes.table(content).splitlines()
    assert "| a | 80.0 | 60.0 |" in lines
    assert "| **mean of 1** | **80.0** | **60.0** |" in lines
    assert "| of the full vector's | 100.0 % | 75.0 % |" in lines
