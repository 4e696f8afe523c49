"""Which parts of the documents found a model is given: whole documents, or passages with what stands around them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from m2rag.answers.results import Found, Source
from m2rag.index.parts import parts_of, stripped
from m2rag.stores.lexical import Bm25

Count = Callable[[Sequence[str]], np.ndarray]
"""Tokens of each text, an upper bound: a text never has more than its parts together."""

# Passages to begin with, per document on average.
_SEEDS = 3


@dataclass(frozen=True)
class Part:
    """Characters start..end of a document, and how well they fit the question."""

    start: int
    end: int
    score: float


class _Document:
    """A document found, cut into parts without gaps, and the parts chosen."""

    def __init__(self, found: Found, parts: Sequence[Part], tokens: Sequence[int], header: int) -> None:
        self.found = found
        self.parts = parts
        self.tokens = tokens
        self.header = header
        self.chosen: set[int] = set()

    def price(self, number: int) -> int:
        """Tokens that choosing this part too adds. A part that joins two others saves a header."""
        if number in self.chosen:
            return 0
        neighbours = (number - 1 in self.chosen) + (number + 1 in self.chosen)
        return self.tokens[number] + self.header * (1 - neighbours)

    def price_of_rest(self) -> int:
        """Tokens that choosing all parts adds."""
        runs = sum(number - 1 not in self.chosen for number in self.chosen)
        rest = sum(self.tokens[number] for number in range(len(self.parts)) if number not in self.chosen)
        return rest + self.header * (1 - runs)

    def spans(self) -> Iterator[tuple[int, int]]:
        """Characters of each run of chosen parts, in order, without white space around them."""
        for first in sorted(number for number in self.chosen if number - 1 not in self.chosen):
            last = first
            while last + 1 in self.chosen:
                last += 1
            start, end = stripped(self.found.text, self.parts[first].start, self.parts[last].end)
            if start < end:
                yield start, end


def pack(
    found: Sequence[Found],
    question: str,
    budget: int,
    *,
    count: Count,
    header: Callable[[Found], str],
    whole: bool | None = None,
) -> list[Source]:
    """The parts that fit into `budget` tokens, numbered: documents best first, parts of one in its order.

    With `whole` True, documents are taken whole, best first, as long as they fit; parts only where none fits. With
    False: the best passage of each document, then the best of all, then what stands before and after them, further and
    further, until nothing more fits. With None the best passage of each document comes first, then documents are
    completed, best first, where they fit, and the rest goes to passages.

    Args:
        found: documents, best first.
        question: the passages of documents that have none of their own are chosen by its words.
        budget: tokens, headers included.
        count: counts them.
        header: what stands around a source of this document.
        whole: see above.

    Returns:
        Empty only if nothing was found or there is no room for a word.
    """
    documents = [
        _Document(one, parts, _list(count([one.text[part.start : part.end] for part in parts])), tokens)
        for one, parts, tokens in zip(
            found, _parts(found, question), _list(count([header(one) for one in found])), strict=True
        )
    ]
    left = budget
    if whole is not True:
        left = _take_best(documents, left)
    if whole is not False:
        left = _complete(documents, left)
    if whole is not True or not any(document.chosen for document in documents):
        left = _take_passages(documents, left)
    spans = [(document.found, *span) for document in documents for span in document.spans()]
    if not spans:
        spans = _beginning(documents, budget, count)
    return [
        Source(number, one.hit.id, one.hit.title, start, end, one.text[start:end])
        for number, (one, start, end) in enumerate(spans, start=1)
    ]


def _take_best(documents: Sequence[_Document], left: int) -> int:
    """The best passage of each document; returns what is left."""
    for document in documents:
        best = max(range(len(document.parts)), key=lambda number: document.parts[number].score)
        left = _take(document, best, left)
    return left


def _complete(documents: Sequence[_Document], left: int) -> int:
    """Documents as a whole where they fit, best first."""
    for document in documents:
        price = document.price_of_rest()
        if price <= left:
            document.chosen = set(range(len(document.parts)))
            left -= price
    return left


def _take_passages(documents: Sequence[_Document], left: int) -> int:
    """The best passages of all documents, then their surroundings, one part at a time to either side."""
    every = [(document, number) for document in documents for number in range(len(document.parts))]
    ranked = sorted(every, key=lambda place: -place[0].parts[place[1]].score)
    for document, number in ranked[: _SEEDS * len(documents)]:
        left = _take(document, number, left)
    fronts = [(document, number, step) for document, number in ranked if number in document.chosen for step in (-1, 1)]
    while fronts:
        growing = []
        for document, number, step in fronts:
            number += step
            if not 0 <= number < len(document.parts) or number in document.chosen:
                continue  # what is chosen there has fronts of its own
            left = _take(document, number, left)
            if number in document.chosen:
                growing.append((document, number, step))
        fronts = growing
    return left


def _take(document: _Document, number: int, left: int) -> int:
    price = document.price(number)
    if price > left:
        return left
    document.chosen.add(number)
    return left - price


def _beginning(documents: Sequence[_Document], budget: int, count: Count) -> list[tuple[Found, int, int]]:
    """As much of the first document's best part as fits, up to a word's end; nothing if that is no word."""
    for document in documents:
        part = max(document.parts, key=lambda part: part.score)
        text, start = document.found.text, stripped(document.found.text, part.start, part.end)[0]
        low, high = start, part.end
        while low < high:
            middle = (low + high + 1) // 2
            if int(count([text[start:middle]])[0]) + document.header <= budget:
                low = middle
            else:
                high = middle - 1
        if low < part.end and not text[low].isspace():
            low = max((match.start() for match in re.finditer(r"\s", text[start:low])), default=0) + start
        start, low = stripped(text, start, low)
        if start < low:
            return [(document.found, start, low)]
    return []


def _parts(found: Sequence[Found], question: str) -> list[list[Part]]:
    """The parts of each document: its passages, up to where the next one begins."""
    given = [_by_passages(one) for one in found]
    without = [number for number, parts in enumerate(given) if not parts]
    if without:
        spans = {number: parts_of(found[number].text) for number in without}
        texts = [found[number].text[start:end] for number in without for start, end in spans[number]]
        scores = iter(Bm25().scores(texts, question).tolist())
        for number in without:
            given[number] = [Part(start, end, next(scores)) for start, end in spans[number]]
    return given


def _by_passages(found: Found) -> list[Part]:
    if not all(passage.own_score for passage in found.hit.passages):
        return []
    # Within the document the order of the hit counts, among documents the cosines: the first passage gets the highest.
    scores = sorted((passage.score for passage in found.hit.passages), reverse=True)
    passages = sorted(zip(found.hit.passages, scores, strict=True), key=lambda pair: pair[0].start)
    starts = [0, *(passage.start for passage, _ in passages[1:]), len(found.text)]
    return [
        Part(start, end, score)
        for start, end, (_, score) in zip(starts, starts[1:], passages, strict=False)
        if start < end
    ]


def _list(numbers: np.ndarray) -> list[int]:
    return [int(number) for number in numbers]
