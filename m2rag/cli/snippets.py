"""The part of a passage worth a glance: a few sentences, the words of the question in bold."""

from __future__ import annotations

import re

from rich.text import Text

_COMMON = frozenset(
    "a about after all also an and any are as at be been before but by can did do does else for from had has have how "
    "i if in into is it its may me more my no not of on one or our out should so some such than that the their them "
    "then there these they this to was we were what when where which while who whose why will with without would you "
    "your".split()
)
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[A-Z0-9])")


def snippet(text: str, query: str, width: int) -> Text:
    """About `width` characters of a passage around the sentence nearest to the query by its words."""
    sentences = _SENTENCE.split(" ".join(text.split()))
    stems = {_stem(word) for word in _WORD.findall(query) if word.lower() not in _COMMON}
    first = max(range(len(sentences)), key=lambda i: (len(stems & _stems(sentences[i])), -i))
    last = first
    length = len(sentences[first])
    while last + 1 < len(sentences) and length + len(sentences[last + 1]) < width:
        last += 1
        length += 1 + len(sentences[last])
    while first > 0 and length + len(sentences[first - 1]) < width:
        first -= 1
        length += 1 + len(sentences[first])
    shown = " ".join(sentences[first : last + 1])
    cut = len(shown) > width
    if cut:
        shown = shown[: shown.rfind(" ", 0, width) if " " in shown[:width] else width]
    shown = f"{'… ' if first > 0 else ''}{shown}{' …' if cut or last + 1 < len(sentences) else ''}"
    marked = Text(shown)
    for word in _WORD.finditer(shown):
        if _stem(word[0]) in stems:
            marked.stylize("bold", *word.span())
    return marked


def _stems(text: str) -> set[str]:
    return {_stem(word) for word in _WORD.findall(text)}


def _stem(word: str) -> str:
    """Enough to see that "files" and "file", "embedded" and "embedding" belong together."""
    word = word.lower()
    for ending in ("ings", "ing", "ies", "ed", "es", "s", "y", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word
