"""Where vectors come from: one protocol, one module per backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from m2rag.batching import Piece, Plan
from m2rag.tokenizer import Tokenizer
from m2rag.words import WordVectors

# The checkpoint that comes with the package.
BUNDLED_MODEL = "m2rag-mini"


class BatchTooLargeError(Exception):
    """Memory or a provider did not take a batch: it is tried again in halves. Never leaves the embedder."""


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
        source: what `M2Embedder` loads this model again by (absolute path, bundled name or repository id); None where
            that is not known.
        dimension: D of the raw vectors; None where it is not known before the first one.
        max_tokens: longest piece in tokens, special tokens included.
        matryoshka_dimensions: shorter dimensions the model was trained for.
        tokenizer: counts, and cuts long texts.
        batch_rule: what a batch costs.
        batch_tokens: budget of a batch where the user gives none.
        has_spans: whether `run` fills `PieceOutput.spans`.
        sends_text: the model gets a piece's text, not its ids.
        concurrency: how many calls of `run` are worth having at once.
    """

    model_name: str
    source: str | None
    max_tokens: int
    matryoshka_dimensions: tuple[int, ...]
    batch_tokens: int
    has_spans: bool
    sends_text: bool
    concurrency: int

    @property
    def dimension(self) -> int | None: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def batch_rule(self) -> Plan: ...

    def identity(self) -> dict[str, str]:
        """What vectors must share to be comparable, in words short enough to be stored with a collection."""
        ...

    def words(self) -> WordVectors | None:
        """What the model knows of single words; None where that cannot be seen. Made anew in every call."""
        ...

    def info(self) -> dict[str, Any]:
        """Device, number formats and the like, for people and logs."""
        ...

    def run(self, batch: Sequence[Piece]) -> list[PieceOutput]:
        """One output per piece, in order. Threads may call at once.

        Raises:
            BatchTooLargeError: out of memory, or more than one request may hold.
            RemoteError: the model is elsewhere and did not answer.
        """
        ...

    async def arun(self, batch: Sequence[Piece]) -> list[PieceOutput]:
        """The same without blocking the event loop."""
        ...

    def close(self) -> None:
        """Let go of connections; a later call opens them again."""
        ...

    async def aclose(self) -> None:
        """The same, for those of the running event loop too."""
        ...
