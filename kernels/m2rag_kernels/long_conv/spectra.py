"""Spectra of the implicit filters for the cpu path: made some channels at a time, kept where they fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from m2rag_kernels.cache import Workspace, lasting_empty
from m2rag_kernels.long_conv.cpu import Segment, Spectrum, taps_spectrum

# Channels whose taps are multiplied out together.
PRODUCT_CHANNELS = 128


def exponential_rows(rates: torch.Tensor, length: int, scale: torch.Tensor | None = None) -> torch.Tensor:
    """exp(-rate d) for d = 0..length - 1, times `scale`: (C,) -> (C, length).

    As products of two exponentials, one of every 256th distance: a sixth of the time.
    """
    fine = torch.exp(-rates[:, None] * torch.arange(256))
    if scale is not None:
        fine *= scale[:, None]
    coarse = torch.exp(-rates[:, None] * torch.arange(0, length, 256))
    return (coarse[:, :, None] * fine[:, None]).flatten(1)[:, :length]


class ImplicitTaps:
    """Taps in factored form: k[c, d] = window[c, d] * sum over o of weight[c, o] hidden[d, o].

    Args:
        hidden: (T, O) for the left and, if there is one, the right side; the right one runs from distance T to 1.
        weight: (D, O) for each side.
        window: maps a range of channels and a number of distances to (C, T), distances rising.
        skip: weight of the input itself, (D,).
    """

    def __init__(
        self,
        hidden: Sequence[torch.Tensor],
        weight: Sequence[torch.Tensor],
        window: Callable[[int, int, int], torch.Tensor],
        skip: torch.Tensor,
    ) -> None:
        self._hidden, self._weight, self._window, self._skip = hidden, weight, window, skip
        self._products: list[torch.Tensor] = []
        self._first = self._end = 0

    def spectrum(self, lo: int, hi: int, segment: Segment) -> torch.Tensor:
        """Spectra of channels lo..hi-1 of a segment. The skip term is one more tap at distance 0."""
        length = min(segment.reach, len(self._hidden[0]))
        if not self._first <= lo < hi <= self._end:
            # Products of few rows are slow: those of the next channels are made at once.
            self._first, self._end = lo, max(hi, min(lo + PRODUCT_CHANNELS, segment.hi))
            self._products = [
                weight[lo : self._end] @ (hidden[-length:] if side else hidden[:length]).t()
                for side, (weight, hidden) in enumerate(zip(self._weight, self._hidden, strict=True))
            ]
        window = self._window(lo, hi, length)
        left, *right = (product[lo - self._first : hi - self._first].float() for product in self._products)
        left.mul_(window)
        left[:, 0] += self._skip[lo:hi]
        return taps_spectrum(left, right[0].mul_(window.flip(-1)) if right else None, segment)


def spectra_bytes(cut: Sequence[Segment]) -> int:
    """Size of the spectra of one filter."""
    return sum((segment.hi - segment.lo) * segment.bins for segment in cut) * torch.complex64.itemsize


class SpectrumSource:
    """Spectra of one filter by ranges of channels: cut out of the kept ones, or computed, and kept if they fit.

    Args:
        make_taps: returns the taps of the filter for all distances an input of n_fft / 2 has.
        sources: the tensors they are made from.
        cut: how the channels are cut.
    """

    def __init__(
        self,
        make_taps: Callable[[], ImplicitTaps],
        sources: Sequence[torch.Tensor],
        cut: Sequence[Segment],
        workspace: Workspace,
    ) -> None:
        self.cut = cut
        self._sources, self._workspace = sources, workspace
        self._key = ("spectra", tuple(cut), workspace.compute_dtype)
        self._all = workspace.spectra.find(self._key, sources)
        self._taps = make_taps() if self._all is None else None
        nbytes = spectra_bytes(cut)
        self._keep = self._all is None and workspace.keeps_spectra_of(nbytes)
        if self._keep:
            self._all = lasting_empty((nbytes // torch.complex64.itemsize,), torch.complex64)

    def __call__(self, lo: int, hi: int) -> Spectrum:
        """Those of channels lo..hi-1 of one segment; ranges come in rising order, each once."""
        start = 0
        for segment in self.cut:
            if lo < segment.hi:
                break
            start += (segment.hi - segment.lo) * segment.bins
        place = None
        if self._all is not None:
            first, last = (start + (channel - segment.lo) * segment.bins for channel in (lo, hi))
            place = self._all[first:last].view(hi - lo, segment.bins)
        if self._taps is None:
            assert place is not None
            return Spectrum(place, segment)
        values = self._taps.spectrum(lo, hi, segment)
        if place is not None:
            place.copy_(values)
            if hi == self.cut[-1].hi:
                assert self._all is not None
                self._workspace.spectra.keep(self._key, self._sources, self._all)
        return Spectrum(values, segment)
