"""The query builder with clients nobody wrapped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_embedder import HashEmbedder
from qdrant_client import AsyncQdrantClient, QdrantClient
from test_qdrant_collection import DOCUMENTS

from m2rag.errors import InvalidInputError
from m2rag.index.modes import Mode
from m2rag_qdrant import DocumentCollection, hybrid_query

QUERY = "w7 w11 w3 only3"


@pytest.fixture
def filled(qdrant: QdrantClient, collection: str) -> DocumentCollection:
    made = DocumentCollection.on_server(qdrant, collection, HashEmbedder())
    made.add(DOCUMENTS)
    return made


def fused(*rankings: dict[str, float]) -> dict[str, float]:
    """Scores of each ranking from three deviations below their mean (0) to three above (1), added."""
    total: dict[str, float] = {}
    for scores in rankings:
        mean, deviation = np.mean([*scores.values()]), np.std([*scores.values()], ddof=1)
        for id, score in scores.items():
            total[id] = total.get(id, 0.0) + (score - mean + 3 * deviation) / (6 * deviation)
    return total


def test_it_fuses_what_search_finds(
    filled: DocumentCollection, qdrant: QdrantClient, collection: str, async_qdrant: AsyncQdrantClient, loop: Any
) -> None:
    arguments = hybrid_query(QUERY, HashEmbedder(), limit=8)
    modes: tuple[Mode, ...] = ("dense", "lexical")
    every = fused(*({hit.id: hit.score for hit in filled.search(QUERY, 100, mode=mode)} for mode in modes))
    expected = {id: every[id] for id in sorted(every, key=lambda id: -every[id])[:8]}
    assert len(expected.keys() & {hit.id for hit in filled.search(QUERY, 8, rescore=0)}) >= 6
    for found in (
        qdrant.query_points(collection, **arguments),
        loop.run(async_qdrant.query_points(collection, **arguments)),
    ):
        assert {point.payload["id"]: point.score for point in found.points} == pytest.approx(expected, abs=1e-4)
        assert "text" not in found.points[0].payload and found.points[0].payload["metadata"]


def test_filter_and_payload(filled: DocumentCollection, qdrant: QdrantClient, collection: str) -> None:
    arguments = hybrid_query(QUERY, HashEmbedder(), filter={"tags": "t1"}, with_payload=["id", "text"])
    points = qdrant.query_points(collection, **arguments).points
    assert len(points) == 7 and all(set(point.payload) == {"id", "text"} for point in points)
    assert all(int(point.payload["id"][7:9]) % 3 == 1 for point in points)


def test_rescoring_orders_by_the_best_passage(
    filled: DocumentCollection, qdrant: QdrantClient, collection: str
) -> None:
    embedder = HashEmbedder()
    best = {
        document.id: float((embedder.passages(document.text).vectors @ embedder.embed_query(QUERY)).max())
        for document in DOCUMENTS
    }
    points = qdrant.query_points(collection, **hybrid_query(QUERY, embedder, limit=5, rescore=True)).points
    assert [point.score for point in points] == pytest.approx(sorted(best.values(), reverse=True)[:5], abs=2e-3)


def test_a_query_without_words_is_dense(filled: DocumentCollection, qdrant: QdrantClient, collection: str) -> None:
    points = qdrant.query_points(collection, **hybrid_query("the of", HashEmbedder(), limit=3)).points
    assert len(points) == 3


def test_bad_arguments() -> None:
    for arguments in ({"limit": 0}, {"limit": 10, "depth": 5}, {"language": "klingon"}, {"filter": {"a": []}}):
        with pytest.raises(InvalidInputError):
            hybrid_query("w7", HashEmbedder(), **arguments)
