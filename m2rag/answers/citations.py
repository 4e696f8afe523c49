"""Which sources an answer cites."""

from __future__ import annotations

import re
from collections.abc import Sequence

from m2rag.answers.results import Citation, Source

# [1], [1, 2], [1-3], [^1], [source 1], 【1】
_NUMBERS = r"\^?\d+(?:\s*(?:,|;|-|–|and|&)\s*\^?\d+)*"
_MARK = re.compile(rf"(?:\[|【)\s*(?:sources?\s+)?({_NUMBERS})\s*(?:\]|】)", re.IGNORECASE)
_ITEM = re.compile(r"(\d+)(?:\s*[-–]\s*\^?(\d+))?")
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
# Nobody cites so many sources in one mark: such a range is something else.
_LONGEST_RANGE = 100
_DIGITS = 9


def read_citations(text: str, sources: Sequence[Source]) -> tuple[tuple[Citation, ...], tuple[int, ...]]:
    """The sources cited, in the order of their first mention, and the numbers that are none's.

    Code between backticks cites nothing.
    """
    places: dict[int, list[tuple[int, int]]] = {}
    # Characters keep their places.
    for mark in _MARK.finditer(_CODE.sub(lambda code: " " * len(code[0]), text)):
        for number in _numbers(mark[1]):
            places.setdefault(number, []).append(mark.span())
    known = {source.number: source for source in sources}
    citations = tuple(
        Citation(**vars(known[number]), at=tuple(dict.fromkeys(at))) for number, at in places.items() if number in known
    )
    return citations, tuple(number for number in places if number not in known)


def _numbers(listed: str) -> list[int]:
    numbers: list[int] = []
    for item in _ITEM.finditer(listed):
        first, last = int(item[1][:_DIGITS]), int((item[2] or item[1])[:_DIGITS])
        if first <= last <= first + _LONGEST_RANGE:
            numbers.extend(range(first, last + 1))
        else:
            numbers.extend((first, last))
    return numbers
