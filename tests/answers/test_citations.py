"""Which sources an answer cites, in whatever form models do it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2rag.answers import Source
from m2rag.answers.citations import read_citations

SOURCES = [Source(number, f"doc{number}", None, 0, 4, "text") for number in range(1, 6)]


@pytest.mark.parametrize(
    ("text", "cited", "unknown"),
    [
        ("Ninety days [1].", [1], []),
        ("Ninety days[2].", [2], []),
        ("So [3][1] and [3].", [3, 1], []),
        ("So [1, 2; 4 and 5].", [1, 2, 4, 5], []),
        ("So [2-4] and [1–2].", [2, 3, 4, 1], []),
        ("So [^1], 【2】, [Source 3], [sources 4, 5].", [1, 2, 3, 4, 5], []),
        ("So [1](http://x).", [1], []),
        ("So [7] and [1] and [0].", [1], [7, 0]),
        ("In [2020] it was [1,9].", [1], [2020, 9]),
        ("So [1-1000000].", [1], [1_000_000]),
        ("So [4-2].", [4, 2], []),
        ("So [" + "9" * 5_000 + "].", [], [999_999_999]),
        ("`a[1]` and\n```\nb[2]\n```\nand [3], ```c[4]", [3], []),
        ("None: [a], [], [1.5], (1), [x1].", [], []),
    ],
)
def test_marks(text: str, cited: list[int], unknown: list[int]) -> None:
    citations, strangers = read_citations(text, SOURCES)
    assert [citation.number for citation in citations] == cited and list(strangers) == unknown
    for citation in citations:
        assert citation.id == f"doc{citation.number}" and citation.text == "text"


def test_places_are_those_in_the_text() -> None:
    text = "`x[1]` Ninety days [1, 2]. Twice [2], [2]."
    first, second = read_citations(text, SOURCES)[0]
    assert [text[start:end] for start, end in first.at] == ["[1, 2]"]
    assert [text[start:end] for start, end in second.at] == ["[1, 2]", "[2]", "[2]"]


@given(st.text(alphabet="[]【】0123456789,;-–^ `\nsource and", max_size=60))
def test_no_text_is_too_odd(text: str) -> None:
    citations, unknown = read_citations(text, SOURCES)
    numbers = [citation.number for citation in citations]
    assert len({*numbers, *unknown}) == len(numbers) + len(unknown)
    for citation in citations:
        assert citation.at and all(text[start] in "[【" and text[end - 1] in "]】" for start, end in citation.at)
