"""Sequence mixing for inference on CPUs: one pass over blocks of channels.

Projecting with the weights on the left gives channel-major rows, which is what convolutions want, and only those of
the channels at hand: nothing of size 3 L D ever exists, and a block goes through all its steps in cache.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from m2rag_kernels.long_conv.cpu import SpectrumSource, block_shape, convolve_padded
from m2rag_kernels.short_conv.cpu import short_conv_rows

CHUNK_TOKENS = 2048


class MixerWeights(NamedTuple):
    """`in_proj` (3D, D) and `out_proj` (D, D) in the compute dtype; the rest in fp32."""

    in_proj: torch.Tensor
    in_bias: torch.Tensor
    short_conv: torch.Tensor
    short_bias: torch.Tensor
    out_proj: torch.Tensor
    out_bias: torch.Tensor


def mixer(
    u: torch.Tensor,
    weights: MixerWeights,
    spectra: SpectrumSource,
    residual_spectra: SpectrumSource | None,
    n_fft: int,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Project, convolve shortly, gate, convolve at length, gate, add the convolved input, project.

    Args:
        u: (B, L, D) in the compute dtype.
        spectra: of the gated convolution.
        residual_spectra: of the convolution of the input itself, or None.
        n_fft: points of the transforms, at least 2L.
        mask: (B, L) bool, False at pads, which may hold anything.

    Returns:
        (B, L, D) in the compute dtype.
    """
    batch, length, width = u.shape
    if mask is not None:
        u = torch.where(mask[..., None], u, 0.0)
    in_proj = weights.in_proj.view(3, width, width)
    in_bias = weights.in_bias.view(3, width, 1)
    short_weight = weights.short_conv.view(3, width, 3)
    short_bias = weights.short_bias.view(3, width)
    channels, rows = block_shape(width, batch, n_fft)
    y = torch.empty(width, batch, length, dtype=u.dtype)
    padded = torch.zeros(channels, rows, n_fft)

    for lo in range(0, width, channels):
        hi = min(lo + channels, width)
        spectrum = spectra(lo, hi)
        residual_spectrum = None if residual_spectra is None else residual_spectra(lo, hi)
        block_weight = in_proj[:, lo:hi].reshape(-1, width)
        for row in range(0, batch, rows):
            some = u[row : row + rows]
            n_rows = some.shape[0]
            some_mask = None if mask is None else mask[row : row + rows]
            p = (block_weight @ some.reshape(-1, width).t()).float().view(3, hi - lo, -1)
            p.add_(in_bias[:, lo:hi])
            p = p.view(3, hi - lo, n_rows, length)
            if some_mask is not None:
                p.mul_(some_mask)
            buffer = padded[: hi - lo, :n_rows]
            gate = short_conv_rows(p, short_weight[:, lo:hi], short_bias[:, lo:hi], some_mask, buffer[..., :length])
            part = gate.mul_(convolve_padded(buffer, spectrum, length))
            if residual_spectrum is not None:
                buffer[..., :length] = some[..., lo:hi].permute(2, 0, 1)
                part += convolve_padded(buffer, residual_spectrum, length)
            y[lo:hi, row : row + rows] = part

    out = torch.empty_like(u, memory_format=torch.contiguous_format)
    pieces = zip(y.view(width, -1).t().split(CHUNK_TOKENS), out.view(-1, width).split(CHUNK_TOKENS), strict=True)
    out_bias = weights.out_bias.to(u.dtype)
    for piece, result in pieces:
        result.copy_(F.linear(piece, weights.out_proj, out_bias))
    return out
