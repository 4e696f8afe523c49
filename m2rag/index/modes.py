"""What a search may be asked for: how many of what, and by which ranking."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from m2rag.errors import InvalidInputError

Mode = Literal["hybrid", "dense", "lexical"]
"""By words and meaning, by meaning (cosine of whole documents), by words (BM25)."""

WEIGHTS = (0.7, 1.0)
RESCORE = 0.5
"""What hybrid search does unless it is told otherwise; see `m2rag.index.ranking`."""


@dataclass(frozen=True)
class Order:
    """What documents are put in order by.

    Attributes:
        mode: the rankings that count.
        weights: of meaning and words, in hybrid mode.
        rescore: weight of the best passage, 0 to 1.
    """

    mode: Mode
    weights: tuple[float, float] = WEIGHTS
    rescore: float = 0.0


def check_numbers(k: int, n_passages: int) -> None:
    """Check how many documents and passages are wanted.

    Raises:
        InvalidInputError: one is out of range.
    """
    if k < 1:
        raise InvalidInputError(f"k must be at least 1, not {k}")
    if n_passages < 0:
        raise InvalidInputError(f"n_passages must be at least 0, not {n_passages}")


def checked_order(
    mode: Mode | None, weights: tuple[float, float] | None, rescore: float | None, *, no_words: str | None
) -> Order:
    """What a caller asks for, with the best there is for None.

    Args:
        no_words: why documents cannot be found by their words here, None if they can.

    Raises:
        InvalidInputError: there is no such mode, it cannot be had here, or weights or `rescore` are out of range.
    """
    mode = mode or ("dense" if no_words else "hybrid")
    if mode not in get_args(Mode):
        raise InvalidInputError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
    if mode != "dense" and no_words:
        raise InvalidInputError(no_words)
    meaning, words = weights = WEIGHTS if weights is None else _pair(weights)
    if min(weights) < 0 or max(weights) == 0 or not math.isfinite(meaning + words):
        raise InvalidInputError(f"weights must be finite, not negative, nor both 0: {weights}")
    if rescore is None:
        rescore = RESCORE if mode == "hybrid" else 0.0
    if not 0 <= rescore <= 1:
        raise InvalidInputError(f"rescore must be between 0 and 1, not {rescore}")
    return Order(mode, weights, rescore)


def _pair(weights: tuple[float, ...]) -> tuple[float, float]:
    if len(weights) != 2:
        raise InvalidInputError(f"weights must be two, of meaning and words, not {len(weights)}")
    return (weights[0], weights[1])
