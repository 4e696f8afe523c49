"""Vectors kept in 8 bits or 1 as well: what is found, and with which scores, beside the exact search."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import qdrant_edge as engine
from fake_embedder import HashEmbedder
from qdrant_client import QdrantClient

from m2rag import M2Embedder
from m2rag.demo import QUESTIONS, load_documents
from m2rag.errors import InvalidInputError
from m2rag.index import Document, LongDocumentIndex, read_info
from m2rag.index.index import new_index
from m2rag.stores import EdgeStore, Point

N = 360
K = 10


@pytest.fixture(scope="module")
def real() -> tuple[M2Embedder, np.ndarray, np.ndarray]:
    """The bundled model, its vectors of paragraphs of the demo's documents (N, D), and of its questions (Q, D)."""
    embedder = M2Embedder(device="cpu")
    texts = [
        part[:300] for document in load_documents() for part in document.text.split("\n\n")[5:45:2] if len(part) > 150
    ]
    vectors = embedder.embed_documents(texts[:N]).vectors
    assert len(vectors) == N
    return embedder, vectors, np.stack([embedder.embed_query(question) for question, _ in QUESTIONS])


@pytest.mark.parametrize(("quantization", "least"), [("scalar", 0.99), ("binary", 0.85)])
def test_recall_on_real_vectors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    real: tuple[M2Embedder, np.ndarray, np.ndarray],
    quantization: str,
    least: float,
) -> None:
    embedder, vectors, questions = real
    monkeypatch.setattr("m2rag.stores.qdrant_edge.EXACT_UP_TO", 0)
    # Segments get their quantized copy when they are indexed, which is from 10 MB on.
    small = engine.EdgeOptimizersConfig(indexing_threshold=1)
    monkeypatch.setattr("m2rag.stores.qdrant_edge.engine.EdgeConfig", partial(engine.EdgeConfig, optimizers=small))
    store = EdgeStore(tmp_path / "index", create=new_index(embedder, None, quantization))  # type: ignore[arg-type]
    store.upsert([Point(UUID(int=i), {"doc": vector}, {"id": str(i)}) for i, vector in enumerate(vectors)])
    store.optimize()
    assert list((tmp_path / "index").rglob("*quantized*")), "there is no such copy: nothing is tested here"
    found_of_true = 0
    for question in questions:
        cosines = vectors @ question
        found = store.query("doc", question, limit=K)
        found_of_true += len({point.id.int for point in found} & set(np.argsort(-cosines)[:K].tolist()))
        # Scored with the vectors themselves.
        assert [point.score for point in found] == pytest.approx([cosines[p.id.int] for p in found], abs=1e-5)
    store.close()
    assert found_of_true / (K * len(questions)) >= least


@pytest.mark.parametrize("quantization", ["scalar", "binary"])
def test_an_index_remembers_it(tmp_path: Path, qdrant: QdrantClient, collection_url: str, quantization: str) -> None:
    hits = []
    for place in (str(tmp_path / "index"), collection_url):
        with LongDocumentIndex(place, HashEmbedder(), quantization=quantization) as index:  # type: ignore[arg-type]
            index.add([Document(f"d{i}", f"Document {i} is about w{i}.") for i in range(9)])
            hits.append([(hit.id, round(hit.score, 3)) for hit in index.search("w4", 5)])
        assert read_info(place)["quantization"] == quantization
        with LongDocumentIndex(place, HashEmbedder()) as index:
            assert index.info()["quantization"] == quantization
    assert hits[0] == hits[1] and hits[0][0][0] == "d4"
    vectors = qdrant.get_collection(collection_url.rpartition("/")[2]).config.params.vectors
    assert getattr(vectors["doc"].quantization_config, quantization) and vectors["passages"].quantization_config is None


def test_choices_that_are_none(tmp_path: Path) -> None:
    for wrong in ({"quantization": "half"}, {"filterable": {"year": "number"}}, {"filterable": {"": "bool"}}):
        with pytest.raises(InvalidInputError, match="quantization must be|is not a metadata field"):
            LongDocumentIndex(tmp_path / "index", HashEmbedder(), **wrong)
    assert not (tmp_path / "index").exists()
