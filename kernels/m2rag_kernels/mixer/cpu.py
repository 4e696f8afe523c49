"""Sequence mixing for inference on CPUs: one pass over blocks of channels.

Projecting with the weights on the left gives channel-major rows, which is what convolutions want, and only those of
the channels at hand: nothing of size 3 L D ever exists, and a block goes through all its steps in cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F

from m2rag_kernels.cache import Scratch
from m2rag_kernels.long_conv.cpu import Spectrum, block_shape, convolve, transform_step
from m2rag_kernels.long_conv.spectra import SpectrumSource
from m2rag_kernels.short_conv.cpu import short_conv_rows

CHUNK_TOKENS = 2048

# Channels that are transposed together.
TRANSPOSED = 64


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
    scratch: Scratch | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Project, convolve shortly, gate, convolve at length, gate, add the convolved input, project.

    Args:
        u: (B, L, D) in the compute dtype.
        spectra: of the gated convolution.
        residual_spectra: of the convolution of the input itself, or None.
        n_fft: points of the transforms, at least 2L.
        mask: (B, L) bool, False at pads, which may hold anything.
        scratch: buffers to compute in; default: new ones.
        out: where the result goes, contiguous; it may be `u`. Default: a new tensor.

    Returns:
        (B, L, D) in the compute dtype.
    """
    scratch = Scratch() if scratch is None else scratch
    out = torch.empty_like(u, memory_format=torch.contiguous_format) if out is None else out
    batch, length, width = u.shape
    if mask is not None:
        u = torch.where(mask[..., None], u, 0.0)
    in_proj = weights.in_proj.view(3, width, width)
    in_bias = weights.in_bias.view(3, width, 1)
    short_weight = weights.short_conv.view(3, width, 3)
    short_bias = weights.short_bias.view(3, width)
    float_mask = None if mask is None else mask.float()
    channels, rows = block_shape(width, batch, n_fft)
    step = transform_step(rows, n_fft)
    sources = [spectra] if residual_spectra is None else [spectra, residual_spectra]
    edges = sorted({0, *(segment.hi for source in sources for segment in source.cut)})
    y = scratch.take("y", (width, batch, length), u.dtype)
    work = scratch.take("work", (min(step, channels), rows, n_fft // 2), torch.complex64)
    work[..., length:] = 0

    for lo in range(0, width, channels):
        hi = min(lo + channels, width)
        block_weight = in_proj[:, lo:hi].reshape(-1, width)
        known: dict[int, list[Spectrum]] = {}
        for row in range(0, batch, rows):
            some = u[row : row + rows]
            n_rows = some.shape[0]
            some_mask = None if float_mask is None else float_mask[row : row + rows]
            tokens = some.reshape(-1, width)
            product = scratch.take("product", (len(block_weight), len(tokens)), u.dtype)
            product = torch.mm(block_weight, tokens.t(), out=product).view(3, hi - lo, n_rows, length)
            if residual_spectra is not None:
                rows_of_u = scratch.take("rows", (hi - lo, len(tokens)), u.dtype)
                _transpose(tokens[:, lo:hi], rows_of_u)
                rows_of_u = rows_of_u.view(hi - lo, n_rows, length)
            for first, last in _ranges(lo, hi, step, edges):
                if first not in known:
                    known[first] = [source(first, last) for source in sources]
                # Kept only for further rows: memory freed at once is used again while it is in cache.
                spectrum, *residual = known.pop(first) if rows >= batch else known[first]
                shape = (3, last - first, n_rows, length)
                p = scratch.take("projected", shape, torch.float32).copy_(product[:, first - lo : last - lo])
                p.add_(in_bias[:, first:last, :, None])
                if some_mask is not None:
                    p.mul_(some_mask)
                v, gate = short_conv_rows(
                    p,
                    short_weight[:, first:last],
                    short_bias[:, first:last],
                    some_mask,
                    scratch.take("convolved", shape, torch.float32),
                )
                buffer = work[: last - first, :n_rows]
                gate.mul_(convolve(v, spectrum, buffer))
                if residual:
                    v.copy_(rows_of_u[first - lo : last - lo])
                    gate.add_(convolve(v, residual[0], buffer))
                y[first:last, row : row + rows] = gate

    pieces = zip(y.view(width, -1).t().split(CHUNK_TOKENS), out.view(-1, width).split(CHUNK_TOKENS), strict=True)
    out_bias = weights.out_bias.to(u.dtype)
    for piece, result in pieces:
        result.copy_(F.linear(piece, weights.out_proj, out_bias))
    return out


def _transpose(tokens: torch.Tensor, out: torch.Tensor) -> None:
    """(N, C) -> (C, N). A product with the identity is exact, and three times as fast as a strided copy."""
    for some, result in zip(tokens.split(TRANSPOSED, dim=1), out.split(TRANSPOSED), strict=True):
        torch.mm(torch.eye(len(result), dtype=out.dtype), some.t(), out=result)


def _ranges(lo: int, hi: int, step: int, edges: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of at most `step` channels that no edge lies in."""
    cuts = [lo, *(edge for edge in edges if lo < edge < hi), hi]
    for start, end in pairwise(cuts):
        for first in range(start, end, step):
            yield first, min(first + step, end)
