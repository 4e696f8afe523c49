"""How well passages fit a query's words if related words count too: "buy" is found in a passage with "purchase".

A passage has a word of the query as much as the nearest of its own words: 1 for the word itself (its stem), else the
cosine of the two in the model's embedding layer, at least 0. For each word of the query, what the document's passages
have of it is less the mean and divided by the standard deviation, and summed: what one passage has and the others have
not counts most.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from m2rag.stores.lexical import Bm25
from m2rag.words import WordVectors

_LEAST_DEVIATION = 0.05
"""Added to the standard deviation: a word that all passages have about as much of says little."""


class RelatedWords:
    """The stems of a language, each with the vector of the commonest word it is the stem of.

    Takes 0.1 s to make for BERT's vocabulary, and 22 MB at 384 dimensions.

    Args:
        bm25: makes the stems.
        words: their vectors.
    """

    def __init__(self, bm25: Bm25, words: WordVectors) -> None:
        rows: dict[int, int] = {}
        for row, word in enumerate(words.words):
            stems = bm25.stems_of_query(word)
            if len(stems) == 1:
                rows.setdefault(stems[0], row)
        self._bm25 = bm25
        self._stems = np.array(sorted(rows), dtype=np.int64)
        self._vectors = words.vectors[[rows[stem] for stem in self._stems.tolist()]]

    def asked(self, query: str) -> AskedWords:
        """What is needed to compare a query with many documents."""
        asked = np.array(self._bm25.stems_of_query(query), dtype=np.int64)
        places, known = self._places(asked)
        nearness = np.zeros((len(asked), len(self._stems) + 1), dtype=np.float32)
        # A word that is not in the vocabulary is related to itself only.
        nearness[known, :-1] = np.maximum(self._vectors[places[known]] @ self._vectors.T, 0)
        return AskedWords(self, asked, nearness)

    def stems_of(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of all texts (M,): stems, their columns in `nearness`; and where each text's begin (N,)."""
        lists = [self._bm25.stems(text) for text in texts]
        stems = np.fromiter(chain.from_iterable(lists), dtype=np.int64)
        places, known = self._places(stems)
        begins = np.cumsum([0, *map(len, lists)], dtype=np.int64)[:-1]
        return stems, np.where(known, places, len(self._stems)), begins

    def _places(self, stems: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of stems (M,), and whether they are there at all (M,) bool."""
        if not self._stems.size:
            return np.zeros(len(stems), dtype=np.int64), np.zeros(len(stems), dtype=bool)
        places = np.minimum(np.searchsorted(self._stems, stems), len(self._stems) - 1)
        return places, self._stems[places] == stems


class AskedWords:
    """The Q words of a query.

    Args:
        related: made this.
        stems: (Q,).
        nearness: (Q, S + 1), how near each is to the S stems known, 0 to 1; 0 in the last column.
    """

    def __init__(self, related: RelatedWords, stems: np.ndarray, nearness: np.ndarray) -> None:
        self._related = related
        self._stems = stems
        self._nearness = nearness

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) how well each passage of a document fits, among these; zeros if the query or the texts have no words."""
        stems, columns, begins = self._related.stems_of(texts)
        if not self._stems.size or not stems.size:
            return np.zeros(len(texts))
        # One more, so that a text without words at the end has a place to begin at.
        had = np.zeros((len(self._stems), len(stems) + 1))
        had[:, :-1] = self._nearness[:, columns]
        had[:, :-1][self._stems[:, None] == stems] = 1
        best = np.maximum.reduceat(had, begins, axis=1)
        best[:, np.diff([*begins, len(stems)]) == 0] = 0
        deviation = best.std(axis=1, keepdims=True) + _LEAST_DEVIATION
        return ((best - best.mean(axis=1, keepdims=True)) / deviation).sum(axis=0)
