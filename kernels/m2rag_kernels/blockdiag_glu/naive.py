"""Definition of the block-diagonal GLU MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def blockdiag_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply by a block-diagonal matrix: x (..., nb * i), weight (nb, o, i) -> (..., nb * o)."""
    if weight.shape[0] == 1:
        return F.linear(x, weight[0])
    blocks = x.unflatten(-1, (weight.shape[0], weight.shape[2]))
    return torch.einsum("...ni,noi->...no", blocks, weight).flatten(-2)


def blockdiag_glu(
    x: torch.Tensor,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    r"""Block-diagonal gated MLP with residual and LayerNorm.

    $$[g, h] = W_{in} x, \quad y = \mathrm{LN}(W_{out}(\mathrm{GELU}(g) \cdot h) + b + x)$$

    The first half of W_in's outputs is the gate: with several blocks it comes from the first half of the channels.

    Args:
        x: (B, L, D).
        w_in: (nb, 2I / nb, D / nb); nb = 1 is a dense MLP.
        w_out: (nb, D / nb, I / nb).
        bias: (D,).
        norm_weight, norm_bias: (D,).
        eps: of the LayerNorm.
        dropout: probability with which the activations are dropped; 0 in inference.

    Returns:
        (B, L, D).
    """
    gate, value = blockdiag_linear(x, w_in).chunk(2, dim=-1)
    hidden = F.gelu(gate) * value
    if dropout > 0:
        hidden = F.dropout(hidden, dropout)
    y = blockdiag_linear(hidden, w_out) + bias + x
    return F.layer_norm(y, (y.shape[-1],), norm_weight, norm_bias, eps)
