"""Where the passages of a document begin and end."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np

from m2rag.tokenizer import Tokens

_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")
_SENTENCE_END = frozenset(".!?;:。！？；")
_CLOSING = frozenset("\"')]}»”’」』")
# A passage may be this part of its size shorter or longer, to end where the text does.
_SLACK = 0.25


def plan_passages(
    text: str, tokens: Tokens, begin: int, end: int, passage_tokens: int, is_continuation: np.ndarray
) -> list[int]:
    """First token of each passage of tokens `begin`..`end`: about equal passages of up to `passage_tokens` tokens.

    Near each even cut the best place is taken: a paragraph's end, else a sentence's, else white space, else a word's
    start. A place inside a word is taken only where there is no other.
    """
    count = -(-(end - begin) // passage_tokens)
    size = (end - begin) / count
    slack = int(size * _SLACK)
    firsts = [begin]
    for number in range(1, count):
        even = begin + round(number * size)
        low, high = max(even - slack, firsts[-1] + 1), min(even + slack, end - 1)
        cut = best_cut(text, tokens, low, high, is_continuation)
        if cut is not None:
            firsts.append(cut)
    return firsts


def best_cut(text: str, tokens: Tokens, low: int, high: int, is_continuation: np.ndarray) -> int | None:
    """The token from `low` to `high`, both included and above 0, in front of which the text is best cut, or None.

    Equally good places: the one nearest to the middle.
    """
    middle = (low + high) / 2
    candidates = [
        (_badness(text, tokens, place, is_continuation), abs(place - middle), place)
        for place in range(low, high + 1)
        # Several tokens of one character (a decomposed syllable) cannot be told apart by offsets.
        if tokens.starts[place] >= tokens.ends[place - 1]
    ]
    return min(candidates)[2] if candidates else None


def _badness(text: str, tokens: Tokens, place: int, is_continuation: np.ndarray) -> int:
    """How bad it is to cut in front of token `place`, from 0."""
    before, after = int(tokens.ends[place - 1]), int(tokens.starts[place])
    gap = text[before:after]
    if _PARAGRAPH.search(gap):
        return 0
    if gap and not gap.isspace():
        gap = ""
    last = text[before - 1]
    if last in _CLOSING and before > 1:
        last = text[before - 2]
    if gap and (last in _SENTENCE_END or "\n" in gap and gap.count("\n") > 1):
        return 1
    if gap:
        return 2
    return 4 if is_continuation[tokens.ids[place]] else 3


def passage_offsets(text: str, tokens: Tokens, firsts: list[int], end: int) -> tuple[np.ndarray, np.ndarray]:
    """Character spans (P,), (P,) int64 of the passages that begin at tokens `firsts`; the last ends before `end`.

    Everything but white space belongs to a passage: characters that make no token go to the passage before them, and
    those in front of the first token to the first passage.
    """
    cuts = [0, *(int(tokens.starts[first]) for first in firsts[1:])]
    cuts.append(len(text) if end == len(tokens) else int(tokens.ends[end - 1]))
    starts, ends = [], []
    for left, right in pairwise(cuts):
        part = text[left:right]
        starts.append(left + len(part) - len(part.lstrip()))
        ends.append(left + len(part.rstrip()))
    # Windows of a few tokens may divide a character's tokens: then both sides hold the character.
    for number, first in enumerate(firsts):
        if starts[number] >= ends[number]:
            starts[number], ends[number] = int(tokens.starts[first]), int(tokens.ends[first])
    return np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)
