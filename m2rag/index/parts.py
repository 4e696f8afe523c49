"""Parts of a text whose embedder knows no passages."""

from __future__ import annotations

import re

_PART_CHARS = 1_200
_BREAKS = tuple(map(re.compile, (r"\n[ \t\r]*\n\s*", r"[.!?]\s+", r"\s+")))


def parts_of(text: str) -> list[tuple[int, int]]:
    """Start and end of parts of about `_PART_CHARS`, without gaps; each ends with a paragraph, a sentence or a word."""
    spans, start = [], 0
    while start < len(text):
        end = start + _PART_CHARS
        if end >= len(text):
            end = len(text)
        else:
            middle = (start + end) // 2
            ends = (max((match.end() for match in mark.finditer(text, middle, end)), default=0) for mark in _BREAKS)
            end = next((found for found in ends if found), end)
        spans.append((start, end))
        start = end
    return spans


def stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its ends."""
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), start + len(part.rstrip())
