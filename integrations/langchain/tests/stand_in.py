"""Deterministic embeddings of no meaning but words in common, and what was asked of them."""

from __future__ import annotations

import re
import zlib

import numpy as np
from langchain_core.embeddings import Embeddings


class WordEmbeddings(Embeddings):
    """Texts with common words get near vectors. `embedded` lists what was embedded, `poison` texts become NaN."""

    def __init__(self, size: int = 32, model: str = "words", poison: str = "poison") -> None:
        self.size = size
        self.model = model
        self.poison = poison
        self.embedded: list[str] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.embedded += texts
        return [self._vector(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self._vector(text)

    def _vector(self, text: str) -> list[float]:
        counts = np.full(self.size, 0.01)
        for word in re.findall(r"\w+", text.lower()):
            counts[zlib.crc32(word.encode()) % self.size] += 1
        return [float("nan")] * self.size if self.poison in text else (counts / np.linalg.norm(counts)).tolist()
