"""What embedding returns: vectors together with what was done to each input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from m2rag.errors import M2RagError


@dataclass(frozen=True)
class PassageVectors:
    """Contextual vectors of the passages of one document, from the forward pass that made its own vector.

    Attributes:
        vectors: (P, D), scaled and in the number format of the documents' vectors (float32, length 1 by default).
        starts: (P,) int64, first character of each passage in the document's text.
        ends: (P,) int64, one past its last character.
    """

    vectors: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.vectors)


@dataclass(frozen=True)
class EmbeddingResult:
    """Vectors of N inputs, in input order, and what happened to each.

    Behaves like the (N, D) array (`len`, `shape`, iteration, indexing, `@`, `numpy.asarray`).

    Attributes:
        vectors: (N, D) float32 (float16, int8 or packed uint8 by `precision`); a failed input has a row of zeros.
        n_tokens: (N,) int64, length of each input in tokens, special tokens included.
        n_used: (N,) int64, how many of them went into the vector.
        n_windows: (N,) int64, windows the input was embedded in (1 unless it was too long; 0 if it failed).
        errors: the inputs that failed under `on_error="skip"`, by position.
        passages: per input its passages, or None if they were not asked for.
    """

    vectors: np.ndarray
    n_tokens: np.ndarray
    n_used: np.ndarray
    n_windows: np.ndarray
    errors: dict[int, M2RagError] = field(default_factory=dict)
    passages: list[PassageVectors | None] | None = None

    @property
    def truncated(self) -> np.ndarray:
        """(N,) bool: inputs of which some tokens did not go into the vector."""
        return self.n_used < self.n_tokens

    @property
    def shape(self) -> tuple[int, ...]:
        return self.vectors.shape

    @property
    def dtype(self) -> np.dtype:
        return self.vectors.dtype

    def __len__(self) -> int:
        return len(self.vectors)

    def __matmul__(self, other: np.ndarray) -> np.ndarray:
        return self.vectors @ np.asarray(other)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.vectors)

    def __getitem__(self, item: Any) -> np.ndarray:
        return self.vectors[item]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.vectors, dtype=dtype, copy=copy)
