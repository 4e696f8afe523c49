"""Several rankings as one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

Id = TypeVar("Id", bound=Hashable)

RRF_K = 60
"""A document of rank r (from 1) in a ranking of weight w counts w / (RRF_K + r)."""


def fuse(rankings: Sequence[Sequence[Id]], weights: Sequence[float]) -> dict[Id, float]:
    """Weighted reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009).

    Args:
        rankings: ids, best first; they need not hold the same ones.
        weights: one for each ranking.

    Returns:
        Score of every id, best first; among equals the first ranking's order holds.

    Raises:
        ValueError: not as many weights as rankings.
    """
    scores: dict[Id, float] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, id in enumerate(ranking, start=1):
            scores[id] = scores.get(id, 0.0) + weight / (RRF_K + rank)
    return dict(sorted(scores.items(), key=lambda item: -item[1]))
