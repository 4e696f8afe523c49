"""What a search may be asked for: how many of what, and by which ranking."""

from __future__ import annotations

from typing import Literal, get_args

from m2rag.errors import InvalidInputError

Mode = Literal["hybrid", "dense", "lexical"]
"""By words and meaning, by meaning (cosine of whole documents), by words (BM25)."""


def check_numbers(k: int, n_passages: int, rescore: float) -> None:
    """Check how many documents and passages are wanted, and the weight of passages in the order.

    Raises:
        InvalidInputError: one is out of range.
    """
    if k < 1:
        raise InvalidInputError(f"k must be at least 1, not {k}")
    if n_passages < 0:
        raise InvalidInputError(f"n_passages must be at least 0, not {n_passages}")
    if not 0 <= rescore <= 1:
        raise InvalidInputError(f"rescore must be between 0 and 1, not {rescore}")


def checked_mode(mode: Mode | None, weights: tuple[float, float], rescore: float, *, no_words: str | None) -> Mode:
    """The mode, or the best one there is for None.

    Args:
        weights: of the dense and the lexical ranking in hybrid mode.
        rescore: weight of the passages; dense mode only.
        no_words: why documents cannot be found by their words here, None if they can.

    Raises:
        InvalidInputError: there is no such mode, it cannot be had here, or weights or `rescore` do not go with it.
    """
    mode = mode or ("dense" if no_words else "hybrid")
    if mode not in get_args(Mode):
        raise InvalidInputError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
    if mode != "dense" and no_words:
        raise InvalidInputError(no_words)
    if min(weights) < 0 or max(weights) == 0:
        raise InvalidInputError(f"weights must not be negative, nor both 0: {weights}")
    if rescore and mode != "dense":
        raise InvalidInputError(f"rescore is for mode='dense', this is mode={mode!r}")
    return mode
