"""Where vectors come from: one protocol, one module per backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from m2rag.batching import BatchRule, Piece
from m2rag.tokenizer import TextTokenizer

# The checkpoint that comes with the package.
BUNDLED_MODEL = "m2rag-mini"


class BatchTooLargeError(Exception):
    """The device's memory did not take a batch: it is tried again in halves. Never leaves the embedder."""


@dataclass(frozen=True)
class PieceOutput:
    """What the model says about one piece, raw: not normalised.

    Attributes:
        vector: (D,) float32.
        spans: (S, D) float32, one vector per span of the piece, if it has spans.
    """

    vector: np.ndarray
    spans: np.ndarray | None = None


class Backend(Protocol):
    """What the embedder asks of a model, here or elsewhere.

    Attributes:
        model_name: for people; not part of what makes vectors comparable.
        dimension: D of the raw vectors.
        max_tokens: longest piece in tokens, special tokens included.
        matryoshka_dimensions: shorter dimensions the model was trained for.
        tokenizer: counts, and cuts long texts.
        batch_rule: what a batch costs.
        batch_tokens: budget of a batch where the user gives none.
        has_spans: whether `run` fills `PieceOutput.spans`.
    """

    model_name: str
    dimension: int
    max_tokens: int
    matryoshka_dimensions: tuple[int, ...]
    tokenizer: TextTokenizer
    batch_rule: BatchRule
    batch_tokens: int
    has_spans: bool

    def identity(self) -> dict[str, str]:
        """What vectors must share to be comparable, in words short enough to be stored with a collection."""
        ...

    def info(self) -> dict[str, Any]:
        """Device, number formats and the like, for people and logs."""
        ...

    def run(self, batch: Sequence[Piece]) -> list[PieceOutput]:
        """One output per piece, in order. Threads may call at once.

        Raises:
            BatchTooLargeError: out of memory.
        """
        ...

    async def arun(self, batch: Sequence[Piece]) -> list[PieceOutput]:
        """The same without blocking the event loop."""
        ...
