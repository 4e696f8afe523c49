"""What a model knows of single words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class WordVectors:
    """Words of a model's vocabulary and what its embedding layer holds of them: near each other for related words.

    Attributes:
        words: W, the commonest first.
        vectors: (W, D) float32, less the vocabulary's mean, of length 1.
    """

    words: tuple[str, ...]
    vectors: np.ndarray
