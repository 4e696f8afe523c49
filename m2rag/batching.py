"""What goes through the model together: windows of long inputs, and batches by token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

# A batch ends where the next input would be padded by more than a third of its own length...
_FILL = 0.75
# ... and padding it, and those after it, costs more than one more call of the model: this many tokens on a CPU.
_CALL_TOKENS = 128


@dataclass(frozen=True)
class Piece:
    """What the model sees of one input at once: all of it, or one window.

    Attributes:
        document: position of the input in the call.
        window: number of the window in its input, from 0.
        ids: (n,) int32, special tokens and prompt included.
        text: the prompt and the characters of the window, for backends that send text.
        weight: share in the input's vector, proportional to the tokens of text in the window.
        spans: (S, 2) int64, begin and end positions in `ids` of the passages wanted, or None.
    """

    document: int
    window: int
    ids: np.ndarray
    text: str
    weight: float = 1.0
    spans: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)


class Plan(Protocol):
    """Which inputs go together, by what they cost together."""

    def total(self, pieces: Sequence[Piece]) -> int:
        """What these cost as one batch, in tokens."""
        ...

    def plan(self, pieces: Sequence[Piece], budget: int) -> list[list[int]]:
        """Positions of `pieces` in batches that cost at most `budget` tokens each, but for single ones that do."""
        ...


@dataclass(frozen=True)
class BatchRule:
    """What a batch costs, in tokens after padding.

    Attributes:
        pad_to: every input costs this many tokens, whatever its length (None: as many as the longest of its batch).
        equal_lengths: only inputs of one length may share a batch, because the model mixes pads like tokens.
        call_tokens: what one more call of the model costs, in tokens.
    """

    pad_to: int | None = None
    equal_lengths: bool = False
    call_tokens: int = _CALL_TOKENS

    def cost(self, longest: int, count: int) -> int:
        return count * (self.pad_to or longest)

    def total(self, pieces: Sequence[Piece]) -> int:
        return self.cost(max(map(len, pieces)), len(pieces))

    def plan(self, pieces: Sequence[Piece], budget: int) -> list[list[int]]:
        return plan_batches([len(piece) for piece in pieces], budget, self)


def plan_batches(lengths: Sequence[int], budget: int, rule: BatchRule | None = None) -> list[list[int]]:
    """Positions of `lengths` in batches, longest first, similar lengths together.

    No batch costs more than `budget` padded tokens, except a single input that alone does.

    Args:
        lengths: tokens of each input.
        budget: padded tokens per batch, at least 1.
        rule: how padding is charged.
    """
    if budget < 1:
        raise ValueError(f"the budget is {budget} tokens, it must be at least 1")
    rule = rule or BatchRule()
    batches: list[list[int]] = []
    longest = padding = 0
    for done, position in enumerate(sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))):
        length = lengths[position]
        joins = bool(batches) and rule.cost(longest, len(batches[-1]) + 1) <= budget
        if joins and rule.equal_lengths:
            joins = length == longest
        elif joins and rule.pad_to is None and length < _FILL * longest:
            would_join = min(len(lengths) - done, budget // longest - len(batches[-1]))
            joins = padding + (longest - length) * would_join <= rule.call_tokens
            padding += longest - length
        if joins:
            batches[-1].append(position)
        else:
            batches.append([position])
            longest, padding = length, 0
    return batches


def plan_windows(n_tokens: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """(start, end) of windows of `size` tokens that cover `n_tokens` tokens; the last one may be shorter.

    Neighbours share `overlap` tokens.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"the overlap ({overlap}) must be at least 0 and below the window's size ({size})")
    windows = [(0, min(size, n_tokens))]
    while windows[-1][1] < n_tokens:
        start = windows[-1][1] - overlap
        windows.append((start, min(start + size, n_tokens)))
    return windows
