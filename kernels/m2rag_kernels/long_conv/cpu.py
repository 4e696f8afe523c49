"""Long convolution for inference on CPUs: some channels at a time, so that the transforms stay in cache."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F

# Points (channels x rows x FFT size) that are projected together, and channels below which the matrix product gets
# slow.
BLOCK_POINTS = 2**22
MIN_CHANNELS = 64

# Points per thread that go through the other steps of a mixer together, in cache: 2 MB in fp32.
TRANSFORM_POINTS = 2**19

# Shorter inputs share one size: a query of any length then finds its spectra in the cache.
MIN_FFT = 128

# Smallest block of an input whose taps are short.
MIN_BLOCK = 256


def fft_size(length: int) -> int:
    """Points of the transform for inputs of `length`: the next of 4, 5, 6, 7 times a power of two from 2 x length on.

    Any size of at least 2 x length gives the same convolution; few sizes make spectra worth keeping.
    """
    if 2 * length <= MIN_FFT:
        return MIN_FFT
    step = 1 << ((2 * length - 1).bit_length() - 3)
    return -(-2 * length // step) * step


def block_shape(width: int, batch: int, n_fft: int) -> tuple[int, int]:
    """How many of `width` channels and of `batch` rows make a block."""
    channels = min(width, max(MIN_CHANNELS, BLOCK_POINTS // (batch * n_fft)))
    rows = min(batch, max(1, BLOCK_POINTS // (channels * n_fft)))
    return channels, rows


def transform_step(rows: int, n_fft: int) -> int:
    """How many channels of a block of `rows` rows are transformed together."""
    return max(1, TRANSFORM_POINTS * torch.get_num_threads() // (rows * n_fft))


@lru_cache(maxsize=8)
def twist(n_fft: int) -> tuple[torch.Tensor, torch.Tensor]:
    """exp(-i pi j / n_fft) for j = 0..n_fft / 2 - 1, complex64, and its conjugate."""
    with torch.inference_mode(False):
        angle = torch.arange(n_fft // 2, dtype=torch.float64) * (-math.pi / n_fft)
        factor = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
        return factor, factor.conj().resolve_conj()


class Segment(NamedTuple):
    """Neighbouring channels lo..hi-1 whose inputs are transformed in blocks of the same size.

    Their taps reach `reach` positions to either side, zero beyond. Blocks of `points` overlap by twice as many. In a
    segment that is `whole`, one block holds twice the input: see `convolve_whole`.
    """

    lo: int
    hi: int
    reach: int
    points: int
    whole: bool

    @property
    def bins(self) -> int:
        """Frequencies of a spectrum."""
        return self.points // 2 + (not self.whole)


@lru_cache(maxsize=128)
def segments(reach: tuple[int, ...], n_fft: int) -> tuple[Segment, ...]:
    """Cut channels by how far their taps reach.

    Args:
        reach: per channel; channels that reach far should come last.
        n_fft: points that hold an input twice.
    """
    found: list[Segment] = []
    longest = 0
    for channel, distance in enumerate(reach):
        longest = max(longest, distance)
        points = _block_points(longest, n_fft)
        lo = channel
        if found and found[-1].points == points:
            lo = found.pop().lo
        found.append(Segment(lo, channel + 1, longest, points, points == n_fft))
    return tuple(found)


def _block_points(reach: int, n_fft: int) -> int:
    """The size of blocks that transforms an input of n_fft / 2 positions fastest."""
    sizes = {n_fft: n_fft * math.log2(n_fft)}
    points = MIN_BLOCK
    while points < n_fft:
        if points > 2 * reach:
            sizes[points] = -(-n_fft // (2 * (points - 2 * reach))) * points * math.log2(points)
        points *= 2
    return min(sizes, key=lambda size: sizes[size])


class Spectrum(NamedTuple):
    """Values (C, bins) of some channels of a segment."""

    values: torch.Tensor
    segment: Segment


def taps_spectrum(left: torch.Tensor, right_reversed: torch.Tensor | None, segment: Segment) -> torch.Tensor:
    """Spectrum of two-sided taps, (C, bins) complex64.

    Args:
        left: taps for distances 0..T-1, (C, T) fp32.
        right_reversed: taps for distances T..1, (C, T) fp32.
    """
    missing = segment.points // 2 - left.shape[1]
    if right_reversed is None:
        right_reversed = torch.zeros_like(left)
    if missing:
        left, right_reversed = F.pad(left, (0, missing)), F.pad(right_reversed, (missing, 0))
    if not segment.whole:
        return torch.fft.rfft(torch.cat([left, right_reversed], dim=1))
    return torch.fft.fft(torch.complex(left, right_reversed).mul_(twist(segment.points)[0]))


def convolve(rows: torch.Tensor, spectrum: Spectrum, work: torch.Tensor) -> torch.Tensor:
    """Convolve rows (C, B, L), which are overwritten with the result; `work` as in `convolve_whole`."""
    if spectrum.segment.whole:
        return convolve_whole(rows, spectrum.values, work)
    return convolve_blocks(rows, spectrum)


def convolve_whole(rows: torch.Tensor, values: torch.Tensor, work: torch.Tensor) -> torch.Tensor:
    r"""Convolve rows with taps as long as they.

    The convolution of n_fft = 2M >= 2L points that changes the sign of what wraps around is the usual one for inputs
    that are zero from L on. With w = exp(-i pi / n_fft) it is a complex one of M points,
    $$y_j = Re(w^{-j} IFFT(FFT(u_j w^j) FFT((k_j - i k_{j+M}) w^j))),$$
    without the mirrored frequencies, the zeros and the unwanted half of a real transform of n_fft points.

    Args:
        work: (C, B, M) complex64, zero from L on.
    """
    forward, back = twist(2 * work.shape[-1])
    length = rows.shape[-1]
    work[..., :length].copy_(rows).mul_(forward[:length])
    result = torch.fft.ifft(torch.fft.fft(work).mul_(values[:, None]))
    return rows.copy_(result[..., :length].mul_(back[:length]).real)


def convolve_blocks(rows: torch.Tensor, spectrum: Spectrum) -> torch.Tensor:
    """Convolve rows with taps that are much shorter: in blocks that overlap, whose margins are dropped."""
    (_, _, reach, points, _), length = spectrum.segment, rows.shape[-1]
    step = points - 2 * reach
    padded = F.pad(rows, (reach, reach + -length % step))
    product = torch.fft.rfft(padded.unfold(-1, points, step)).mul_(spectrum.values[:, None, None])
    result = torch.fft.irfft(product, n=points)[..., reach : reach + step]
    return rows.copy_(result.flatten(-2)[..., :length])


def long_conv(
    u: torch.Tensor,
    kernel: torch.Tensor,
    kernel_rev: torch.Tensor | None,
    skip: torch.Tensor,
    gate: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `m2rag_kernels.long_conv.naive.long_conv`."""
    batch, width, length = u.shape
    n_fft = fft_size(length)
    channels, rows = block_shape(width, batch, n_fft)
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    channels = min(channels, transform_step(rows, n_fft))
    segment = Segment(0, width, length, n_fft, True)
    for lo in range(0, width, channels):
        block = slice(lo, lo + channels)
        left = kernel[block].float().clone()
        left[:, 0] += skip[block]
        right = None if kernel_rev is None else kernel_rev[block].float().flip(-1)
        values = taps_spectrum(left, right, segment)
        for row in range(0, batch, rows):
            some = slice(row, row + rows)
            part = u[some, block].transpose(0, 1).to(torch.float32, copy=True)
            if mask is not None:
                part = torch.where(mask[some], part, 0.0)
            work = torch.zeros(*part.shape[:2], n_fft // 2, dtype=torch.complex64)
            result = convolve_whole(part, values, work).transpose(0, 1)
            y[some, block] = result if gate is None else result * gate[some, block].float()
    return y
