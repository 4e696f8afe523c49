"""What a text is about and which words it has, side by side in one vector.

The mean of hidden states tells subjects apart, and loses the rare word that a query asks for. A sketch keeps it: every
token of the vocabulary has a fixed random sign per channel (random indexing: Kanerva et al., 2000), and the sum of
those codes over a text stands for its bag of words. Inner products of two sums are those of the bags, up to an error
that falls with the square root of the number of channels (random projection: Johnson and Lindenstrauss, 1984).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from m2rag.models.configuration_m2_bert import M2BertConfig


class LexicalSketch(nn.Module):
    """Hidden states (B, L, D) -> token outputs (B, L, D), whose mean over a text is its vector.

    With S = `config.sketch_size`, h hidden states, and n_t the number of times that token t is in the text:

        meaning  = P * (sum over positions i of a[t_i] * h_i)                  first D - S channels, scaled to length 1
        sketch   = sum over different tokens t of sqrt(n_t) * w[t] * code[t]   last S channels, scaled to `balance`

    a, w and the balance are positive and stored as logarithms; a row's scales are those of all its tokens, so the mean
    over a part of the text has other lengths: see `rescaled`.
    """

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.size = config.sketch_size
        self.projection = nn.Linear(config.hidden_size, config.hidden_size - self.size, bias=False)
        self.log_mean_weights = nn.Parameter(torch.empty(config.vocab_size))
        self.log_sketch_weights = nn.Parameter(torch.empty(config.vocab_size))
        self.log_balance = nn.Parameter(torch.empty(1))

    def forward(self, hidden: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Of hidden states (B, L, D), ids and mask (B, L), in fp32; zeros where the mask is false."""
        # Sums over 32,768 tokens: whatever the products before were computed in.
        with torch.autocast(hidden.device.type, enabled=False):
            keep = mask[..., None]
            weights = self.log_mean_weights.float().exp()[ids][..., None]
            weighted = torch.where(keep, hidden.float(), 0.0) * weights
            meaning = F.linear(weighted, self.projection.weight.float())
            counts = torch.zeros(len(ids), len(self.log_sketch_weights), device=ids.device)
            counts = counts.scatter_add(1, ids, mask.float()).gather(1, ids).clamp(min=1)
            weights = self.log_sketch_weights.float().exp()[ids] * counts.rsqrt()
            codes = _codes_on(hidden.device, len(self.log_sketch_weights), self.size)[ids]
            sketch = torch.where(keep, codes * weights[..., None], 0.0)
            tokens = keep.sum(1, keepdim=True)
            return torch.cat([meaning * _scale(meaning, tokens), sketch * _scale(sketch, tokens) * self.balance], -1)

    @property
    def balance(self) -> torch.Tensor:
        """Length of the sketch where that of the meaning is 1."""
        return self.log_balance.float().exp()

    def rescaled(self, means: torch.Tensor) -> torch.Tensor:
        """Means of token outputs over parts of a text (N, D), both parts scaled as in the vector of a whole text."""
        meaning, sketch = means.split([means.shape[-1] - self.size, self.size], -1)
        return torch.cat([F.normalize(meaning, dim=-1), F.normalize(sketch, dim=-1) * self.balance], -1)


def _scale(outputs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """What makes the mean of (B, L, C) over `tokens` (B, 1, 1) one of length 1: (B, 1, 1)."""
    return tokens / outputs.sum(1, keepdim=True).norm(dim=-1, keepdim=True).clamp(min=1e-12)


def codes(vocabulary: int, size: int) -> np.ndarray:
    """The codes of all tokens: (vocabulary, size) int8 of -1 and 1, the same everywhere and always.

    Bit j of token t is one of the 64 of splitmix64 (Steele et al., 2014) at t * ceil(size / 64) + j // 64.
    """
    words = -(-size // 64)
    with np.errstate(over="ignore"):
        z = np.arange(1, vocabulary * words + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    bits = (z[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    return bits.reshape(vocabulary, -1)[:, :size].astype(np.int8) * 2 - 1


@lru_cache(maxsize=4)
def _codes_on(device: torch.device, vocabulary: int, size: int) -> torch.Tensor:
    return torch.from_numpy(codes(vocabulary, size)).to(device)
