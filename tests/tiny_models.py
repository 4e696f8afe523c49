"""Random models of toy size with the real vocabulary, and a backend without a model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m2rag.backends import PieceOutput
from m2rag.batching import BatchRule, Piece
from m2rag.models import M2BertConfig, M2BertModel
from m2rag.tokenizer import TextTokenizer

TOKENIZER = TextTokenizer.bundled()

WORDS = "the cat sat on a mat while dogs ran far away and rain fell over old stone houses near rivers".split()


def sentence(n_words: int, seed: int = 0) -> str:
    """`n_words` words, one token each, with a full stop behind every tenth."""
    chosen = np.random.default_rng(seed).choice(WORDS, n_words)
    return " ".join(f"{word}." if number % 10 == 9 else word for number, word in enumerate(chosen))


def tiny_model(seed: int = 0, **changes: Any) -> M2BertModel:
    """Masked, mean pooling, no positions, multiscale filters, 256 tokens, width 32, 2 layers, unless changed."""
    settings = {
        "vocab_size": 30522,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "long_conv_l_max": 256,
        "max_position_embeddings": 256,
        "hyena_filter_order": 16,
        "use_positional_encodings": False,
        "filter": "multiscale",
        "padding": "masked",
        "pooling": "mean",
    }
    torch.manual_seed(seed)
    return M2BertModel(M2BertConfig(**{**settings, **changes})).eval()


def saved(folder: Path, **changes: Any) -> Path:
    """A checkpoint folder as `save_pretrained` writes it."""
    tiny_model(**changes).save_pretrained(folder)
    return folder


class FakeBackend:
    """Vectors that are arithmetic of the ids, so that tests can work them out; remembers its batches.

    Args:
        fails: called with each batch, to raise what it likes.
        spoil: called with (piece, vector) before a vector is returned.
    """

    def __init__(
        self,
        *,
        dimension: int = 8,
        max_tokens: int = 64,
        rule: BatchRule | None = None,
        fails: Callable[[Sequence[Piece]], None] | None = None,
        spoil: Callable[[Piece, np.ndarray], np.ndarray] | None = None,
        matryoshka: tuple[int, ...] = (),
        has_spans: bool = True,
    ) -> None:
        self.model_name = "fake"
        self.source = None
        self.dimension = dimension
        self.max_tokens = max_tokens
        self.matryoshka_dimensions = matryoshka
        self.tokenizer = TOKENIZER
        self.batch_rule = rule or BatchRule()
        self.batch_tokens = 256
        self.has_spans = has_spans
        self.sends_text = False
        self.concurrency = 1
        self.batches: list[list[Piece]] = []
        self._fails, self._spoil = fails, spoil
        self._table = np.random.default_rng(0).standard_normal((30522, dimension)).astype(np.float32)
        self._lock = threading.Lock()

    def identity(self) -> dict[str, str]:
        return {"model": "fake"}

    def words(self) -> None:
        """It has no embedding layer."""

    def info(self) -> dict[str, Any]:
        return {"backend": "fake"}

    def token_vectors(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        return self._table[np.asarray(ids)]

    def run(self, batch: Sequence[Piece]) -> list[PieceOutput]:
        with self._lock:
            self.batches.append(list(batch))
        if self._fails is not None:
            self._fails(batch)
        outputs = []
        for piece in batch:
            hidden = self.token_vectors(piece.ids)
            vector = hidden.mean(0)
            if self._spoil is not None:
                vector = self._spoil(piece, vector)
            spans = None if piece.spans is None else np.stack([hidden[a:b].mean(0) for a, b in piece.spans])
            outputs.append(PieceOutput(vector, spans))
        return outputs

    async def arun(self, batch: Sequence[Piece]) -> list[PieceOutput]:
        return await asyncio.to_thread(self.run, batch)

    def close(self) -> None:
        pass

    async def aclose(self) -> None:
        pass
