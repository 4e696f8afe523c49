"""Words of a text as a sparse vector: BM25, with the weighing by rarity left to the store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import qdrant_edge as engine

from m2rag.errors import InvalidInputError
from m2rag.stores.base import SparseVector


class Bm25:
    """BM25's part of a document and of a query: stemmed words without stop words, hashed to 32 bits.

    The numbers of a document saturate with a word's count and shrink with the document's length, as BM25 has it with
    k1 = 1.2, b = 0.75 and the engine's default average length of 256 words. The factor for a word's rarity is the
    store's: it knows the collection (`Schema.sparse`).

    Args:
        language: of stemmer and stop words, in English ("english", "german", ...).

    Raises:
        InvalidInputError: a language that is not known.
    """

    def __init__(self, language: str = "english") -> None:
        try:
            self._bm25 = engine.Bm25(engine.Bm25Config(language=language))
        except ValueError as error:
            raise InvalidInputError(f"no BM25 for this language: {error}") from error
        self.language = language

    def document(self, text: str) -> SparseVector:
        """Of a document's text."""
        return _vector(self._bm25.embed_document(text))

    def query(self, text: str) -> SparseVector:
        """Of a query; empty if it has no words but stop words."""
        return _vector(self._bm25.embed_query(text))

    def stems(self, text: str) -> list[int]:
        """Of a text's words, hashed, each once."""
        return self._bm25.embed_document(text).indices

    def stems_of_query(self, text: str) -> list[int]:
        """Of a query's words, as `stems`."""
        return self._bm25.embed_query(text).indices

    def scores(self, texts: Sequence[str], query: str) -> np.ndarray:
        """(N,) float64: BM25 of each text for the query, with words' rarity counted among these texts; 0 for none."""
        columns = {int(index): column for column, index in enumerate(self.query(query).indices)}
        weights = np.zeros((len(texts), len(columns)))
        for row, text in zip(weights, texts, strict=True):
            # Without `document`: the way through arrays takes as long as the engine.
            vector = self._bm25.embed_document(text)
            for index, value in zip(vector.indices, vector.values, strict=True):
                if index in columns:
                    row[columns[index]] = value
        having = (weights > 0).sum(axis=0)
        rarity = np.log1p((len(texts) - having + 0.5) / (having + 0.5))
        return weights @ rarity


def _vector(vector: engine.SparseVector) -> SparseVector:
    return SparseVector(np.asarray(vector.indices, dtype=np.int64), np.asarray(vector.values, dtype=np.float32))
