"""From the points a search found to hits with their passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

import numpy as np

from m2rag.index.documents import Hit, Passage
from m2rag.index.ingest import PASSAGES
from m2rag.stores import Point, VectorStore

HIT_FIELDS = ("id", "title", "metadata", "n_tokens", "n_used", "n_windows")
"""The payload fields that hits are made of."""

READ_AT_ONCE = 16
"""Hits whose whole texts and passages are in memory together."""


def make_hits(
    store: VectorStore, points: Sequence[Point], scores: Mapping[UUID, float], query: np.ndarray, n_passages: int
) -> list[Hit]:
    """Hits in the order of `points`.

    Args:
        store: where the points are from.
        points: with the payload fields `HIT_FIELDS`, each scored by the cosine of its document.
        scores: what each is ordered by.
        query: (D,).
        n_passages: passages per hit, at most; 0 reads no text.
    """
    found: dict[UUID, list[Passage]] = {}
    if n_passages:
        for start in range(0, len(points), READ_AT_ONCE):
            ids = [point.id for point in points[start : start + READ_AT_ONCE]]
            full = store.retrieve(ids, payload=("text", "starts", "ends"), vectors=(PASSAGES,))
            found.update((id, _best_passages(point, query, n_passages)) for id, point in full.items())
    return [_hit(point, scores[point.id], found.get(point.id, [])) for point in points]


def unit(query: np.ndarray) -> np.ndarray:
    """A query's vector (D,) with length 1, as stored vectors have it."""
    return query / max(float(np.linalg.norm(query)), 1e-12)


def _best_passages(point: Point, query: np.ndarray, n: int) -> list[Passage]:
    matrix = point.vectors.get(PASSAGES)
    if matrix is None:
        return []
    text, starts, ends = (point.payload[name] for name in ("text", "starts", "ends"))
    scores = matrix @ unit(query)
    best: list[Passage] = []
    for i in np.argsort(-scores, kind="stable"):
        start, end = starts[i], ends[i]
        if all(end <= taken.start or start >= taken.end for taken in best):
            best.append(Passage(text[start:end], start, end, float(scores[i])))
            if len(best) == n:
                break
    return best


def _hit(point: Point, score: float, passages: list[Passage]) -> Hit:
    payload = point.payload
    return Hit(
        id=payload["id"],
        score=score,
        document_score=point.score,
        title=payload["title"],
        passages=passages,
        metadata=dict(payload["metadata"]),
        n_tokens=payload["n_tokens"],
        n_windows=payload["n_windows"],
        truncated=payload["n_used"] < payload["n_tokens"],
    )
