"""Definition of the short convolution and the gate in front of the long one."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def short_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Causal depthwise convolution with 3 taps over the three projections, then the first gate.

    With $c_i = b + w_0 x_{i-2} + w_1 x_{i-1} + w_2 x_i$ split into (x1, x2, v): returns (v x1, x2).

    Args:
        x: the three projections side by side, (B, L, 3D).
        weight: taps, (3D, 1, 3), the last one for the current position.
        bias: (3D,).
        mask: (B, L) bool, False at pads: they are zeroed before the convolution and in the gated result.

    Returns:
        gated input of the long convolution (B, D, L), and the gate of its output (B, D, L).
    """
    length = x.shape[1]
    if mask is not None:
        # `where`, not a product: a pad may hold anything, NaN included.
        x = torch.where(mask[..., None], x, 0.0)
    c = F.conv1d(x.transpose(1, 2), weight, bias, padding=2, groups=weight.shape[0])[..., :length]
    x1, x2, v = c.chunk(3, dim=1)
    v = v * x1
    if mask is not None:
        v = torch.where(mask[:, None, :], v, 0.0)
    return v, x2
