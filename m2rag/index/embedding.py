"""What the index needs of an embedder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from m2rag.results import EmbeddingResult


class Embedder(Protocol):
    """Whole texts in, one vector of D numbers each, passages on request. `M2Embedder` is one.

    An embedder that has no passages says so by an attribute `has_passages` that is False: then it is not asked for any.
    One that knows related words has an attribute `word_vectors` (`WordVectors` or None): then they count in the choice
    of the passages that are shown.
    """

    @property
    def dimension(self) -> int:
        """D."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names everything the vectors depend on: two embedders with one fingerprint give the same vectors."""
        ...

    def embed_documents(
        self,
        texts: Sequence[str],
        *,
        on_too_long: Any = ...,
        on_error: Any = ...,
        passages: bool = ...,
        on_batch: Callable[[int, int], None] | None = ...,
    ) -> EmbeddingResult:
        """Vectors (N, D) of texts; with `on_error="skip"` a text that fails is listed in `errors`, not raised.

        `on_batch(documents, tokens)` is called after every batch with the numbers of that batch.
        """
        ...

    def embed_query(self, text: str) -> np.ndarray:
        """Vector (D,) of a query."""
        ...
