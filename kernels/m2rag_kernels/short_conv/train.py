"""The short convolution with a hand-written backward, for training without a GPU.

Same function as `naive.py`. Depthwise `conv1d` has a slow backward on CPUs; three shifted products do the same.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable


class _Conv3(torch.autograd.Function):
    """c_i = b + w0 x_{i-2} + w1 x_{i-1} + w2 x_i over (B, L, C)."""

    @staticmethod
    def forward(ctx, x, taps, bias):
        ctx.save_for_backward(x, taps)
        c = torch.addcmul(bias, x, taps[2])
        c[:, 1:].addcmul_(x[:, :-1], taps[1])
        c[:, 2:].addcmul_(x[:, :-2], taps[0])
        return c

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, taps = ctx.saved_tensors
        d_x = grad * taps[2]
        d_x[:, :-1].addcmul_(grad[:, 1:], taps[1])
        d_x[:, :-2].addcmul_(grad[:, 2:], taps[0])
        d_taps = torch.stack(
            [
                (grad[:, 2:] * x[:, :-2]).sum((0, 1)),
                (grad[:, 1:] * x[:, :-1]).sum((0, 1)),
                (grad * x).sum((0, 1)),
            ]
        )
        return d_x, d_taps, grad.sum((0, 1))


def short_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `naive.short_conv`; computed and returned in fp32 (fp64 if that is given) whatever autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if mask is not None:
            x = torch.where(mask[..., None], x, 0.0)
        x1, x2, v = _Conv3.apply(x, weight.to(x.dtype)[:, 0].t().contiguous(), bias.to(x.dtype)).chunk(3, dim=-1)
        v = v * x1
        if mask is not None:
            v = torch.where(mask[..., None], v, 0.0)
        return v.transpose(1, 2), x2.transpose(1, 2)
