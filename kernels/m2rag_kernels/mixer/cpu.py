"""Sequence mixing for inference on CPUs: one pass over blocks of channels.

Projecting with the weights on the left gives channel-major rows, which is what convolutions want, and only those of
the channels at hand: nothing of size 3 L D ever exists, and a block goes through all its steps in cache.
"""

from __future__ import annotations

import math
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
    float_mask = None if mask is None else mask.float()
    # One set of buffers for all blocks: fresh memory of this size costs more than what is computed in it.
    padded = torch.zeros(channels, rows, n_fft)
    product, projected, convolved = (
        torch.empty(3 * channels * rows * length, dtype=dtype) for dtype in (u.dtype, torch.float32, torch.float32)
    )

    for lo in range(0, width, channels):
        hi = min(lo + channels, width)
        spectrum = spectra(lo, hi)
        residual_spectrum = None if residual_spectra is None else residual_spectra(lo, hi)
        block_weight = in_proj[:, lo:hi].reshape(-1, width)
        for row in range(0, batch, rows):
            some = u[row : row + rows]
            some_mask = None if float_mask is None else float_mask[row : row + rows]
            shape = (3, hi - lo, some.shape[0], length)
            size = math.prod(shape)
            torch.mm(
                block_weight,
                some.reshape(-1, width).t(),
                out=product[:size].view(len(block_weight), -1),
            )
            p = projected[:size].copy_(product[:size]).view(shape)
            p.add_(in_bias[:, lo:hi, :, None])
            if some_mask is not None:
                p.mul_(some_mask)
            buffer = padded[: hi - lo, : some.shape[0]]
            gate = short_conv_rows(
                p,
                short_weight[:, lo:hi],
                short_bias[:, lo:hi],
                some_mask,
                convolved[:size].view(shape),
                buffer[..., :length],
            )
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
