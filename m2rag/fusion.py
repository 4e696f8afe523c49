"""Scores of different kinds brought to one range, so that rankings can be joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence

LEAST_SPREAD = 0.2
"""Cosines nearer together than this count as near: among few documents the last is not much worse than the best."""


def scale(scores: Sequence[float], floor: float | None = None, *, least: float = 0.0) -> Callable[[float], float]:
    """Brings scores to a range in which those of different kinds can be added: the best is 1, `floor` and less is 0.

    Args:
        scores: best first.
        floor: default: the last one.
        least: spread of scores, if that from the best to the floor is smaller.
    """
    if not scores:
        return lambda score: 0.0
    best = scores[0]
    spread = max(best - (scores[-1] if floor is None else floor), least)
    if spread <= 0:
        return lambda score: 1.0
    return lambda score: max(0.0, 1 - (best - score) / spread)
