"""Short convolution and first gate for inference on CPUs: channel-major, so that every tap is one shifted row."""

from __future__ import annotations

import torch


def short_conv_rows(
    p: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None, out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolve the projections of some channels and gate.

    Args:
        p: (3, C, B, L) fp32: x1, x2, v; zero at pads.
        weight: (3, C, 3).
        bias: (3, C).
        mask: (B, L) fp32, 0 at pads, where v x1 becomes zero.
        out: (3, C, B, L) fp32, overwritten; the results lie in it.

    Returns:
        v x1 and x2, (C, B, L) each.
    """
    taps = weight[:, :, None, None, :]
    c = torch.mul(p, taps[..., 2], out=out).add_(bias[:, :, None, None])
    c[..., 1:].addcmul_(p[..., :-1], taps[..., 1])
    c[..., 2:].addcmul_(p[..., :-2], taps[..., 0])
    x1, x2, v = c.unbind(0)
    v.mul_(x1)
    if mask is not None:
        v.mul_(mask)
    return v, x2


def short_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `m2rag_kernels.short_conv.naive.short_conv`; computes in fp32, returns the dtype of `x`."""
    batch, length, width = x.shape
    channels = width // 3
    p = x.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    if mask is not None:
        p = torch.where(mask, p, 0.0)
    p = p.view(3, channels, batch, length)
    gated, gate = short_conv_rows(
        p,
        weight.float().view(3, channels, 3),
        bias.float().view(3, channels),
        None if mask is None else mask.float(),
        torch.empty_like(p),
    )
    return gated.transpose(0, 1).to(x.dtype), gate.transpose(0, 1).to(x.dtype)
