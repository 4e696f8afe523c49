"""Block-diagonal GLU MLP for inference on CPUs: some tokens at a time, so that the wide activations stay in cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F

CHUNK_TOKENS = 1024


def blockdiag_glu(
    x: torch.Tensor,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `m2rag_kernels.blockdiag_glu.naive.blockdiag_glu`; the products run in the dtype of `x`, the rest in fp32.

    The result goes to `out` (contiguous, may be `x`) if it is given.
    """
    w_in, w_out = w_in.to(x.dtype), w_out.to(x.dtype)
    bias, norm_weight, norm_bias = bias.float(), norm_weight.float(), norm_bias.float()
    tokens = x.flatten(0, -2)
    out = torch.empty(x.shape, dtype=x.dtype) if out is None else out
    for part, result in zip(tokens.split(CHUNK_TOKENS), out.view(tokens.shape).split(CHUNK_TOKENS), strict=True):
        y = _project_out(_hidden(part, w_in), w_out).float()
        y.add_(part).add_(bias)
        result.copy_(F.layer_norm(y, y.shape[-1:], norm_weight, norm_bias, eps))
    return out


def _hidden(x: torch.Tensor, w_in: torch.Tensor) -> list[torch.Tensor]:
    """GELU(gate) * value of tokens (N, D), side by side in one or several parts."""
    blocks = x.split(w_in.shape[2], dim=-1)
    wide = [F.linear(block, weight) for block, weight in zip(blocks, w_in, strict=True)]
    if len(wide) % 2:
        # An odd number of blocks: the middle one holds gates and values.
        wide = list(torch.cat(wide, dim=-1).chunk(2, dim=-1))
    half = len(wide) // 2
    return [F.gelu(gate).mul_(value) for gate, value in zip(wide[:half], wide[half:], strict=True)]


def _project_out(hidden: list[torch.Tensor], w_out: torch.Tensor) -> torch.Tensor:
    blocks = [block for part in hidden for block in part.split(w_out.shape[2], dim=-1)]
    return torch.cat([F.linear(block, weight) for block, weight in zip(blocks, w_out, strict=True)], dim=-1)
