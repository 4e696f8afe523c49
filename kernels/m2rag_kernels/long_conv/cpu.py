"""Long convolution for inference on CPUs: some channels at a time, so that the transforms stay in cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F

from m2rag_kernels.cache import Workspace

# Points (channels x rows x FFT size) that are projected together, and channels below which the matrix product gets
# slow.
BLOCK_POINTS = 2**22
MIN_CHANNELS = 64

# Points per thread that go through the other steps of a mixer together, in cache: 2 MB in fp32.
TRANSFORM_POINTS = 2**19

# Channels whose taps are multiplied out together.
PRODUCT_CHANNELS = 128

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
    return max(1, TRANSFORM_POINTS * torch.get_num_threads() // (rows * n_fft))


@lru_cache(maxsize=8)
def twist(n_fft: int) -> tuple[torch.Tensor, torch.Tensor]:
    """exp(-i pi j / n_fft) for j = 0..n_fft / 2 - 1, complex64, and its conjugate."""
    with torch.inference_mode(False):
        angle = torch.arange(n_fft // 2, dtype=torch.float64) * (-math.pi / n_fft)
        factor = torch.polar(torch.ones_like(angle), angle).to(torch.complex64)
        return factor, factor.conj().resolve_conj()


def taps_spectrum(left: torch.Tensor, right_reversed: torch.Tensor | None, n_fft: int) -> torch.Tensor:
    """Spectrum of two-sided taps, (C, n_fft / 2) complex64: see `convolve`.

    Args:
        left: taps for distances 0..T-1, (C, T) fp32.
        right_reversed: taps for distances T..1, (C, T) fp32.
        n_fft: at least 2T.
    """
    missing = n_fft // 2 - left.shape[1]
    left = F.pad(left, (0, missing)) if missing else left
    if right_reversed is None:
        right_reversed = torch.zeros_like(left)
    elif missing:
        right_reversed = F.pad(right_reversed, (missing, 0))
    return torch.fft.fft(torch.complex(left, right_reversed).mul_(twist(n_fft)[0]))


def convolve(rows: torch.Tensor, spectrum: torch.Tensor, work: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    r"""Convolve rows (C, B, L) into `out`, which may be `rows`.

    The convolution of n_fft = 2M >= 2L points that changes the sign of what wraps around is the usual one for inputs
    that are zero from L on. With w = exp(-i pi / n_fft) it is a complex one of M points,
    $$y_j = Re(w^{-j} IFFT(FFT(u_j w^j) FFT((k_j - i k_{j+M}) w^j))),$$
    without the mirrored frequencies, the zeros and the unwanted half of a real transform of n_fft points.

    Args:
        spectrum: (C, M).
        work: (C, B, M) complex64, zero from L on.
    """
    forward, back = twist(2 * work.shape[-1])
    length = rows.shape[-1]
    work[..., :length].copy_(rows).mul_(forward[:length])
    result = torch.fft.ifft(torch.fft.fft(work).mul_(spectrum[:, None]))
    return out.copy_(result[..., :length].mul_(back[:length]).real)


class ImplicitTaps:
    """Taps in factored form: k[c, d] = window[c, d] * sum over o of weight[c, o] hidden[d, o].

    Args:
        hidden: (T, O) for the left and, if there is one, the right side; the right one runs from distance T to 1.
        weight: (D, O) for each side.
        window: maps a range of channels to (C, T), distances rising.
        skip: weight of the input itself, (D,).
    """

    def __init__(
        self,
        hidden: Sequence[torch.Tensor],
        weight: Sequence[torch.Tensor],
        window: Callable[[int, int], torch.Tensor],
        skip: torch.Tensor,
    ) -> None:
        self._hidden, self._weight, self._window, self._skip = hidden, weight, window, skip
        self._products: list[torch.Tensor] = []
        self._first = self._end = 0

    def spectrum(self, lo: int, hi: int, n_fft: int) -> torch.Tensor:
        """Spectrum of channels lo..hi-1. The skip term is one more tap at distance 0."""
        if not self._first <= lo < hi <= self._end:
            # Products of few rows are slow: those of the next channels are made at once.
            self._first, self._end = lo, max(hi, lo + PRODUCT_CHANNELS)
            self._products = [w[lo : self._end] @ h.t() for w, h in zip(self._weight, self._hidden, strict=True)]
        window = self._window(lo, hi)
        left, *right = (product[lo - self._first : hi - self._first].float() for product in self._products)
        left.mul_(window)
        left[:, 0] += self._skip[lo:hi]
        return taps_spectrum(left, right[0].mul_(window.flip(-1)) if right else None, n_fft)


def spectra_bytes(width: int, n_fft: int) -> int:
    """Size of the spectra of one filter."""
    return width * n_fft // 2 * torch.complex64.itemsize


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
        if self._whole is None and workspace.keeps_spectra_of(spectra_bytes(width, n_fft)):
            self._new = torch.empty(width, n_fft // 2, dtype=torch.complex64)

    def __call__(self, lo: int, hi: int) -> torch.Tensor:
        """(C, n_fft / 2) complex64 of channels lo..hi-1; ranges come in rising order, each once."""
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
        left = kernel[block].float().clone()
        left[:, 0] += skip[block]
        right = None if kernel_rev is None else kernel_rev[block].float().flip(-1)
        spectrum = taps_spectrum(left, right, n_fft)
        for row in range(0, batch, rows):
            some = slice(row, row + rows)
            part = u[some, block].float().transpose(0, 1)
            if mask is not None:
                part = torch.where(mask[some], part, 0.0)
            work = torch.zeros(*part.shape[:2], n_fft // 2, dtype=torch.complex64)
            result = convolve(part, spectrum, work, torch.empty_like(part)).transpose(0, 1)
            y[some, block] = result if gate is None else result * gate[some, block].float()
    return y
