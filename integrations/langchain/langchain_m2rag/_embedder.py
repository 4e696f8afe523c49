"""Any embeddings of LangChain as an embedder of `LongDocumentIndex`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from langchain_core.embeddings import Embeddings

from langchain_m2rag.embeddings import M2Embeddings
from m2rag.index import Embedder
from m2rag.results import EmbeddingResult


def embedder_of(embeddings: Embeddings, fingerprint: str | None = None) -> Embedder:
    """What makes the vectors of these embeddings.

    Raises:
        ValueError: a fingerprint for `M2Embeddings`, which have their own.
    """
    if not isinstance(embeddings, M2Embeddings):
        return LangChainEmbedder(embeddings, fingerprint)
    if fingerprint is not None:
        raise ValueError("M2Embeddings have a fingerprint of their own: leave it out")
    return embeddings.embedder


class LangChainEmbedder:
    """Embeddings that know of texts and vectors only: no tokens are counted, nothing is windowed, no passages."""

    has_passages = False

    def __init__(self, embeddings: Embeddings, fingerprint: str | None = None) -> None:
        self._embeddings = embeddings
        self._fingerprint = fingerprint

    @cached_property
    def dimension(self) -> int:
        """D, of the vector of a word that is embedded for this purpose."""
        return len(self._embeddings.embed_query("dimension"))

    @cached_property
    def fingerprint(self) -> str:
        """As given, or class, model name and dimension: LangChain's interface tells no more."""
        if self._fingerprint is not None:
            return self._fingerprint
        kind = type(self._embeddings)
        names = (getattr(self._embeddings, name, None) for name in ("model", "model_name"))
        model = next((name for name in names if isinstance(name, str)), "unknown")
        return f"langchain={kind.__module__}.{kind.__qualname__} model={model} dimensions={self.dimension}"

    def embed_documents(
        self,
        texts: Sequence[str],
        *,
        on_too_long: str = "error",
        on_error: str = "raise",
        passages: bool = False,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> EmbeddingResult:
        """Vectors (N, D) of texts; policies are the embeddings' own business."""
        given = self._embeddings.embed_documents(list(texts))
        n = len(texts)
        vectors = np.asarray(given, dtype=np.float32).reshape(len(given), -1)
        if on_batch is not None:
            on_batch(n, 0)
        unknown = np.zeros(n, dtype=np.int64)
        return EmbeddingResult(vectors, unknown, unknown, np.ones(n, dtype=np.int64))

    def embed_query(self, text: str) -> np.ndarray:
        """Vector (D,) of a query."""
        return np.asarray(self._embeddings.embed_query(text), dtype=np.float32)
