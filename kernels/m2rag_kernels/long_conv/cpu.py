"""Long convolution for inference on CPUs: some channels at a time, so that the transforms stay in cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from m2rag_kernels.cache import Workspace

# Points (channels x rows x FFT size) that go through the steps of a mixer together, and channels below which its
# matrix products get slow.
BLOCK_POINTS = 2**21
MIN_CHANNELS = 32

# Points that are transformed together: 8 MB in fp32. Fewer make the set-up of a transform felt, more leave the cache.
TRANSFORM_POINTS = 2**21

# Shorter inputs share one size: a query of any length then finds its spectra in the cache.
MIN_FFT = 128


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
    return max(1, TRANSFORM_POINTS // (rows * n_fft))


def taps_spectrum(
    left: torch.Tensor, right_reversed: torch.Tensor | None, skip: torch.Tensor, n_fft: int
) -> torch.Tensor:
    """Spectrum of the two-sided taps, (C, n_fft / 2 + 1) complex64. The skip term is one more tap at distance 0.

    Args:
        left: taps for distances 0..T-1, (C, T).
        right_reversed: taps for distances T..1, (C, T).
        skip: (C,).
        n_fft: at least 2T.
    """
    taps = left.new_zeros(left.shape[0], n_fft, dtype=torch.float32)
    taps[:, : left.shape[1]] = left
    if right_reversed is not None:
        taps[:, n_fft - right_reversed.shape[1] :] = right_reversed
    taps[:, 0] += skip
    return torch.fft.rfft(taps)


def convolve_padded(padded: torch.Tensor, spectrum: torch.Tensor, length: int) -> torch.Tensor:
    """Convolve rows (C, B, n_fft) that are zero from `length` on: (C, B, length)."""
    product = torch.fft.rfft(padded).mul_(spectrum[:, None])
    return torch.fft.irfft(product, n=padded.shape[-1])[..., :length]


@dataclass(frozen=True)
class ImplicitTaps:
    """Taps in factored form: k[c, d] = window[c, d] * sum over o of weight[c, o] hidden[o, d].

    Attributes:
        hidden: (O, T) for the left and, if there is one, the right side; the right one runs from distance T to 1.
        weight: (D, O) for each side.
        window: maps a range of channels to (C, T), distances rising.
        skip: weight of the input itself, (D,).
    """

    hidden: Sequence[torch.Tensor]
    weight: Sequence[torch.Tensor]
    window: Callable[[int, int], torch.Tensor]
    skip: torch.Tensor

    def spectrum(self, lo: int, hi: int, n_fft: int) -> torch.Tensor:
        """Spectrum of channels lo..hi-1."""
        window = self.window(lo, hi)
        sides = [(weight[lo:hi] @ hidden).float() for weight, hidden in zip(self.weight, self.hidden, strict=True)]
        sides[0] *= window
        if len(sides) == 2:
            sides[1] *= window.flip(-1)
        return taps_spectrum(sides[0], sides[1] if len(sides) == 2 else None, self.skip[lo:hi], n_fft)


class SpectrumSource:
    """Spectra of one filter by ranges of channels: cut out of the kept one, or computed, and kept if they fit.

    Args:
        make_taps: returns the taps of the filter for all distances an input of n_fft / 2 has.
        sources: the tensors they are made from.
        width: D.
    """

    def __init__(
        self,
        make_taps: Callable[[], ImplicitTaps],
        sources: Sequence[torch.Tensor],
        width: int,
        n_fft: int,
        workspace: Workspace,
    ) -> None:
        self._sources, self._n_fft, self._workspace = sources, n_fft, workspace
        self._key = ("spectrum", n_fft, workspace.compute_dtype)
        self._width = width
        self._whole = workspace.spectra.find(self._key, sources)
        self._taps = make_taps() if self._whole is None else None
        self._new: torch.Tensor | None = None
        bins = n_fft // 2 + 1
        if self._whole is None and workspace.keeps_spectra_of(width * bins * 8):
            self._new = torch.empty(width, bins, dtype=torch.complex64)

    def __call__(self, lo: int, hi: int) -> torch.Tensor:
        """(C, n_fft / 2 + 1) complex64 of channels lo..hi-1; ranges come in rising order, each once."""
        if self._taps is None:
            assert self._whole is not None
            return self._whole[lo:hi]
        spectrum = self._taps.spectrum(lo, hi, self._n_fft)
        if self._new is not None:
            self._new[lo:hi] = spectrum
            if hi == self._width:
                self._workspace.spectra.keep(self._key, self._sources, self._new)
        return spectrum


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
    for lo in range(0, width, channels):
        block = slice(lo, lo + channels)
        right = None if kernel_rev is None else kernel_rev[block].float().flip(-1)
        spectrum = taps_spectrum(kernel[block].float(), right, skip[block].float(), n_fft)
        for row in range(0, batch, rows):
            some = slice(row, row + rows)
            part = u[some, block].float().transpose(0, 1)
            if mask is not None:
                part = torch.where(mask[some], part, 0.0)
            padded = part.new_zeros(*part.shape[:2], n_fft)
            padded[..., :length] = part
            result = convolve_padded(padded, spectrum, length).transpose(0, 1)
            y[some, block] = result if gate is None else result * gate[some, block].float()
    return y
