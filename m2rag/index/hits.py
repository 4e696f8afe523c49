"""From the points a search found to hits with their passages.

Which passages of a document found are shown goes by what the search goes by: their cosines, their words (BM25 among the
document's passages), or in hybrid mode both, each less its mean and divided by its standard deviation, words with half
the weight of meaning.

The weight was chosen on 46 documents of 5,000 to 30,000 tokens (training text, of 11 collections): with 46 questions
written in other words than the text's, and with 213 headings of sections. How often the passage shown first is the one
with the answer, and the mean reciprocal rank of that passage for the questions, x 100, with the bundled model:

| weight of words | 0 | 0.3 | 0.5 | 1 | words alone |
|---|---|---|---|---|---|
| questions, first | 33 | 35 | 33 | 28 | 17 |
| questions, reciprocal rank | 48.8 | 51.5 | 49.1 | 44.8 | 34.3 |
| headings, first | 43 | 53 | 60 | 64 | 68 |

Another checkpoint and MiniLM's vectors of the same passages change in the same way. Reciprocal ranks, scores brought to
0 to 1, vectors less the document's mean and passages of 128 tokens are no better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from m2rag.index.documents import Hit, Passage
from m2rag.index.ingest import PASSAGES
from m2rag.index.modes import Mode
from m2rag.index.parts import parts_of, stripped
from m2rag.stores import Point, VectorStore
from m2rag.stores.lexical import Bm25

HIT_FIELDS = ("id", "title", "metadata", "n_tokens", "n_used", "n_windows")
"""The payload fields that hits are made of."""

READ_AT_ONCE = 16
"""Hits whose whole texts and passages are in memory together."""

WEIGHT_OF_WORDS = 0.5
"""In the choice of passages in hybrid mode; that of meaning is 1."""


@dataclass(frozen=True)
class Query:
    """What passages are chosen by.

    Attributes:
        text: the query.
        vector: the query's, (D,).
        mode: of the search.
        bm25: of the index's language; None for an index without words.
    """

    text: str
    vector: np.ndarray
    mode: Mode
    bm25: Bm25 | None


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
        for start in range(0, len(points), READ_AT_ONCE):
            cosines = {point.id: point.score for point in points[start : start + READ_AT_ONCE]}
            full = store.retrieve(list(cosines), payload=("text", "starts", "ends"), vectors=(PASSAGES,))
            found.update(
                (id, _best_passages(point, query, n_passages) or _by_words(point, query, n_passages, cosines[id]))
                for id, point in full.items()
            )
    return [_hit(point, scores[point.id], found.get(point.id, [])) for point in points]


def unit(query: np.ndarray) -> np.ndarray:
    """A query's vector (D,) with length 1, as stored vectors have it."""
    return query / max(float(np.linalg.norm(query)), 1e-12)


def _best_passages(point: Point, query: Query, n: int) -> list[Passage]:
    matrix = point.vectors.get(PASSAGES)
    if matrix is None:
        return []
    text, starts, ends = (point.payload[name] for name in ("text", "starts", "ends"))
    cosines = matrix @ unit(query.vector)
    scores = _fitness(cosines, query, [text[start:end] for start, end in zip(starts, ends, strict=True)])
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


def _fitness(cosines: np.ndarray, query: Query, texts: Sequence[str]) -> np.ndarray:
    """(P,) how well each of a document's passages fits the query, comparable within the document."""
    if query.mode == "dense" or query.bm25 is None:
        return cosines
    words = query.bm25.scores(texts, query.text)
    if not words.any():
        return cosines
    if query.mode == "lexical":
        return words + 1e-6 * cosines  # among passages with the same words the nearest
    return _standard(cosines) + WEIGHT_OF_WORDS * _standard(words)


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
