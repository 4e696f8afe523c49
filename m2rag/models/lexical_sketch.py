"""What a text is about and which words it has, side by side in one vector.

The mean of hidden states tells subjects apart, and loses the rare word that a query asks for. A sketch keeps it: every
token of the vocabulary has a code, and the sum of those codes over a text stands for its bag of words. Random codes
(random indexing: Kanerva et al., 2000) make inner products of two sums those of the bags, up to an error that falls
with the square root of the number of channels; learned ones confuse fewer words that are met together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from m2rag.models.configuration_m2_bert import M2BertConfig

# The first tokens of a text count up to 1 + OPENING times: it says there what it is about.
OPENING = 2.0
OPENING_TOKENS = 256.0

# A token that counts n in a text of L tokens tells n / (n + RARITY + L / LENGTH): BM25's saturation (Robertson and
# Zaragoza, 2009) for texts of all lengths, with k1 = 10, b = 0.75 and a mean length of 8,000.
RARITY = 2.5
LENGTH = 1067.0

# Of the balance, in a passage: all passages of a document share its telling words, so there they tell less.
PASSAGE_SHARE = 0.3


class LexicalSketch(nn.Module):
    """Hidden states (B, L, D) -> token outputs (B, L, D), whose mean over a text is its vector.

    With S = `config.sketch_size`, h hidden states, g_i = 1 + 2 exp(-i / 256) for the position i, and n_t the sum of g
    over the places of token t in a text of L tokens:

        meaning  = P * (sum over positions i of g_i * a[t_i] * h_i)                      D - S channels, length 1
        sketch   = sum over different tokens t of w[t] * code[t] * n_t / (n_t + 2.5 + L / 1067)    S channels, `balance`
        vector   = turn * (meaning, sketch)

    a, w and the balance are positive and stored as logarithms. `turn` is orthogonal: it changes no similarity, and
    brings what tells most to the first channels. A row's scales are those of all its tokens, so the mean over a part of
    the text has other lengths: see `passages`.
    """

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.size = config.sketch_size
        self.projection = nn.Linear(config.hidden_size, config.hidden_size - self.size, bias=False)
        self.codes = nn.Embedding(config.vocab_size, self.size)
        self.turn = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.log_mean_weights = nn.Parameter(torch.empty(config.vocab_size))
        self.log_sketch_weights = nn.Parameter(torch.empty(config.vocab_size))
        self.log_balance = nn.Parameter(torch.empty(1))

    def forward(self, hidden: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Of hidden states (B, L, D), ids and mask (B, L), in fp32; zeros where the mask is false."""
        # Sums over 32,768 tokens: whatever the products before were computed in.
        with torch.autocast(hidden.device.type, enabled=False):
            keep = mask[..., None]
            tokens = keep.sum(1, keepdim=True)
            places = opening(mask.cumsum(1) - 1) * mask
            weights = (self.log_mean_weights.float().exp()[ids] * places)[..., None]
            weighted = torch.where(keep, hidden.float(), 0.0) * weights
            meaning = F.linear(weighted, self.projection.weight.float())
            counts = torch.zeros(len(ids), len(self.log_sketch_weights), device=ids.device)
            counts = counts.scatter_add(1, ids, places).gather(1, ids).clamp(min=1)
            # Each of a token's places has its part of what the token tells.
            weights = self.log_sketch_weights.float().exp()[ids] * places * saturation(counts, tokens[..., 0]) / counts
            sketch = torch.where(keep, self.codes(ids).float() * weights[..., None], 0.0)
            parts = [meaning * _scale(meaning, tokens), sketch * _scale(sketch, tokens) * self.balance]
            return F.linear(torch.cat(parts, -1), self.turn.weight.float())

    @property
    def balance(self) -> torch.Tensor:
        """Length of the sketch where that of the meaning is 1."""
        return self.log_balance.float().exp()

    def parts(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Meaning (N, D - S) and sketch (N, S) of means of token outputs (N, D)."""
        meaning, sketch = (vectors @ self.turn.weight.float()).split([vectors.shape[-1] - self.size, self.size], -1)
        return meaning, sketch

    def passages(self, means: torch.Tensor) -> torch.Tensor:
        """Means of token outputs over passages of a text (N, D) -> their vectors; the sketch is shorter there."""
        meaning, sketch = self.parts(means)
        sketch = F.normalize(sketch, dim=-1) * self.balance * PASSAGE_SHARE
        return F.linear(torch.cat([F.normalize(meaning, dim=-1), sketch], -1), self.turn.weight.float())


def opening(positions: torch.Tensor) -> torch.Tensor:
    """What a token counts at these positions, from 0 on."""
    return 1 + OPENING * torch.exp(-positions / OPENING_TOKENS)


def saturation(counts: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """What a token that counts `counts` in a text of so many `tokens` tells: from 0 to 1."""
    return counts / (counts + RARITY + tokens / LENGTH)


def _scale(outputs: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """What makes the mean of (B, L, C) over `tokens` (B, 1, 1) one of length 1: (B, 1, 1)."""
    return tokens / outputs.sum(1, keepdim=True).norm(dim=-1, keepdim=True).clamp(min=1e-12)
