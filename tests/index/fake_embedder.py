"""A deterministic stand-in for the model: hashed bags of words, one passage per sentence."""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from m2rag.errors import InputTooLongError, InvalidInputError, M2RagError
from m2rag.results import EmbeddingResult, PassageVectors


class HashEmbedder:
    """Texts with common words get near vectors, and the same text always the same vector, whatever its batch.

    `embedded` lists every text embedded, in order; `seconds_per_text` slows it down; `poison` maps a word to what
    becomes of a text that holds it: "nan", "error", "crash" or "interrupt".
    """

    def __init__(
        self,
        dimension: int = 64,
        fingerprint: str = "fake:64",
        max_tokens: int = 1000,
        seconds_per_text: float = 0.0,
        poison: dict[str, str] | None = None,
    ) -> None:
        self.dimension = dimension
        self.fingerprint = fingerprint
        self.max_tokens = max_tokens
        self.seconds_per_text = seconds_per_text
        self.poison = poison or {}
        self.embedded: list[str] = []
        self.groups: list[int] = []

    def vector(self, text: str) -> np.ndarray:
        counts = np.zeros(self.dimension, dtype=np.float32)
        for word in re.findall(r"\w+", text.lower()):
            counts[zlib.crc32(word.encode()) % self.dimension] += 1
        return counts / max(float(np.linalg.norm(counts)), 1e-9)

    def passages(self, text: str) -> PassageVectors:
        spans = [match.span() for match in re.finditer(r"[^.\n]+[.\n]?", text) if match[0].strip()]
        vectors = np.stack([self.vector(text[start:end]) for start, end in spans])
        return PassageVectors(vectors, np.array([s for s, _ in spans]), np.array([e for _, e in spans]))

    def embed_documents(
        self,
        texts: Sequence[str],
        *,
        on_too_long: str = "error",
        on_error: str = "raise",
        passages: bool = False,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> EmbeddingResult:
        self.groups.append(len(texts))
        n = len(texts)
        vectors = np.zeros((n, self.dimension), dtype=np.float32)
        n_tokens, n_used, n_windows = (np.zeros(n, dtype=np.int64) for _ in range(3))
        errors: dict[int, M2RagError] = {}
        found: list[PassageVectors | None] = [None] * n
        for i, text in enumerate(texts):
            time.sleep(self.seconds_per_text)
            self.embedded.append(text)
            n_tokens[i] = len(text.split())
            fate = next((fate for word, fate in self.poison.items() if word in text), None)
            if fate == "crash":
                raise RuntimeError("the model fell over")
            if fate == "interrupt":
                raise KeyboardInterrupt
            if fate == "error":
                errors[i] = InvalidInputError(f"input {i} cannot be embedded")
            elif n_tokens[i] > self.max_tokens and on_too_long == "error":
                errors[i] = InputTooLongError(i, int(n_tokens[i]), self.max_tokens)
            else:
                n_used[i] = min(n_tokens[i], self.max_tokens) if on_too_long == "truncate" else n_tokens[i]
                n_windows[i] = max(1, -(-int(n_used[i]) // self.max_tokens))
                vectors[i] = self.vector(" ".join(text.split()[: n_used[i]]))
                if fate == "nan":
                    vectors[i, 0] = np.nan
                if passages:
                    found[i] = self.passages(text)
            if on_batch is not None:
                on_batch(1, int(n_tokens[i] + 10 * max(0, n_windows[i] - 1)))  # windows overlap by 10
            if i in errors and on_error == "raise":
                raise errors[i]
        return EmbeddingResult(vectors, n_tokens, n_used, n_windows, errors, found if passages else None)

    def embed_query(self, text: str) -> np.ndarray:
        if not text.strip():
            raise InvalidInputError("the query is empty")
        return self.vector(text)
