"""From the points a search found to hits with their passages.

Which passages of a document found are shown goes by what the search goes by: their cosines, their words (BM25 among the
document's passages), or in hybrid mode both, each less its mean and divided by its standard deviation, words with three
quarters of the weight of meaning. There related words count too (`m2rag.index.related`), if the embedder knows of any.

This was chosen on 121 documents of 5,000 to 30,000 tokens (training text, of 11 collections): with 190 questions
written in other words than the text's, and with 391 headings of sections. How often the passage with the answer is
shown first and among three, and its mean reciprocal rank, x 100, with the bundled model:

| words (weight) | none | BM25 (0.5) | BM25 alone | related (0.6) | (0.75) | (0.9) | alone |
|---|---|---|---|---|---|---|---|
| questions, first | 22.1 | 25.3 | 14.2 | 28.4 | 27.4 | 26.8 | 20.0 |
| questions, among three | 43.7 | 45.8 | 34.2 | 53.7 | 54.2 | 53.7 | 36.3 |
| questions, reciprocal rank | 38.3 | 40.9 | 29.4 | 44.5 | 43.8 | 43.3 | 33.4 |
| headings, among three | 62.9 | 78.8 | 88.2 | 78.0 | 79.3 | 81.1 | 82.9 |

Reciprocal ranks, scores brought to 0 to 1, vectors less the document's mean, the best of a passage's halves or
quarters, and words' rarity in other documents are no better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import UUID

import numpy as np

from m2rag.index.documents import Hit, Passage
from m2rag.index.ingest import PASSAGES
from m2rag.index.modes import Mode
from m2rag.index.parts import parts_of, stripped
from m2rag.index.related import RelatedWords
from m2rag.stores import Point, VectorStore
from m2rag.stores.lexical import Bm25

HIT_FIELDS = ("id", "title", "metadata", "n_tokens", "n_used", "n_windows")
"""The payload fields that hits are made of."""

READ_AT_ONCE = 16
"""Hits whose whole texts and passages are in memory together."""

WEIGHT_OF_WORDS = 0.75
"""In the choice of passages in hybrid mode, related words counted in; that of meaning is 1."""

WEIGHT_OF_SAME_WORDS = 0.5
"""The same where only the same words count: the embedder knows of none that are related."""

Fitness = Callable[[np.ndarray, Sequence[str]], np.ndarray]
"""Cosines (P,) and texts of a document's passages -> (P,) how well each fits, comparable within the document."""


@dataclass(frozen=True)
class Query:
    """What passages are chosen by.

    Attributes:
        text: the query.
        vector: the query's, (D,).
        mode: of the search.
        bm25: of the index's language; None for an index without words.
        related: makes related words count in hybrid mode; None where the embedder knows of none.
    """

    text: str
    vector: np.ndarray
    mode: Mode
    bm25: Bm25 | None
    related: RelatedWords | None = None


def make_hits(
    store: VectorStore, points: Sequence[Point], scores: Mapping[UUID, float], query: Query, n_passages: int
) -> list[Hit]:
    """Hits in the order of `points`.

    Args:
        store: where the points are from.
        points: with the payload fields `HIT_FIELDS`, each scored by the cosine of its document.
        scores: what each is ordered by.
        query: chooses the passages.
        n_passages: passages per hit, at most; 0 reads no text.
    """
    found: dict[UUID, list[Passage]] = {}
    if n_passages:
        fitness = _fitness(query)
        for start in range(0, len(points), READ_AT_ONCE):
            cosines = {point.id: point.score for point in points[start : start + READ_AT_ONCE]}
            full = store.retrieve(list(cosines), payload=("text", "starts", "ends"), vectors=(PASSAGES,))
            for id, point in full.items():
                best = _best_passages(point, query, fitness, n_passages)
                found[id] = best or _by_words(point, query, n_passages, cosines[id])
    return [_hit(point, scores[point.id], found.get(point.id, [])) for point in points]


def unit(query: np.ndarray) -> np.ndarray:
    """A query's vector (D,) with length 1, as stored vectors have it."""
    return query / max(float(np.linalg.norm(query)), 1e-12)


def _best_passages(point: Point, query: Query, fitness: Fitness, n: int) -> list[Passage]:
    matrix = point.vectors.get(PASSAGES)
    if matrix is None:
        return []
    text, starts, ends = (point.payload[name] for name in ("text", "starts", "ends"))
    cosines = matrix @ unit(query.vector)
    scores = fitness(cosines, [text[start:end] for start, end in zip(starts, ends, strict=True)])
    best: list[Passage] = []
    for i in np.argsort(-scores, kind="stable"):
        start, end = starts[i], ends[i]
        if all(end <= taken.start or start >= taken.end for taken in best):
            best.append(Passage(text[start:end], start, end, float(cosines[i])))
            if len(best) == n:
                break
    return best


def _by_words(point: Point, query: Query, n: int, score: float) -> list[Passage]:
    """Of a document whose model gives passages no vectors: the parts of its text that hold words of the query."""
    if query.bm25 is None or point.vectors.get(PASSAGES) is not None:
        return []
    text = point.payload["text"]
    spans = [stripped(text, *span) for span in parts_of(text)]
    words = query.bm25.scores([text[start:end] for start, end in spans], query.text)
    best = [spans[i] for i in np.argsort(-words, kind="stable")[:n] if words[i] > 0]
    return [Passage(text[start:end], start, end, score, own_score=False) for start, end in best]


def _fitness(query: Query) -> Fitness:
    """How passages are compared in the query's mode; what is the same for all documents is done here."""
    if query.mode == "dense" or query.bm25 is None:
        return lambda cosines, texts: cosines
    words: Callable[[Sequence[str]], np.ndarray] = partial(query.bm25.scores, query=query.text)
    weight = WEIGHT_OF_SAME_WORDS
    if query.mode == "lexical":
        # Among passages with the same words the nearest.
        return lambda cosines, texts: words(texts) + 1e-6 * cosines
    if query.related is not None:
        words, weight = query.related.asked(query.text).scores, WEIGHT_OF_WORDS
    return lambda cosines, texts: _standard(cosines) + weight * _standard(words(texts))


def _standard(scores: np.ndarray) -> np.ndarray:
    """Less their mean, divided by their standard deviation; zeros where all are the same."""
    spread = scores.std()
    return (scores - scores.mean()) / spread if spread > 1e-9 else np.zeros_like(scores)


def _hit(point: Point, score: float, passages: list[Passage]) -> Hit:
    payload = point.payload
    return Hit(
        id=payload["id"],
        score=score,
        document_score=point.score,
        title=payload["title"],
        passages=passages,
        metadata=dict(payload["metadata"]),
        n_tokens=payload["n_tokens"],
        n_windows=payload["n_windows"],
        truncated=payload["n_used"] < payload["n_tokens"],
    )
