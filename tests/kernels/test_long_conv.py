"""Long convolution: the FFT forms against the sum that defines it, forward and backward."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import LENGTHS, long_conv_by_sums, relative_rms

from m2rag_kernels.long_conv import long_conv
from m2rag_kernels.long_conv.cpu import (
    MIN_FFT,
    Spectrum,
    block_shape,
    convolve_blocks,
    fft_size,
    segments,
    taps_spectrum,
)

KERNELS = ["naive", "cpu"]


def inputs(length: int, batch: int = 2, width: int = 5, bidirectional: bool = True, gated: bool = True):
    torch.manual_seed(length)
    decay = torch.exp(-torch.arange(length) / 20)
    kernel = torch.randn(width, length) * decay
    kernel_rev = torch.randn(width, length) * decay if bidirectional else None
    gate = torch.randn(batch, width, length) if gated else None
    return torch.randn(batch, width, length), kernel, kernel_rev, torch.randn(width), gate


def in_double(tensors):
    return [None if t is None else t.double() for t in tensors]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("bidirectional", [True, False], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("length", LENGTHS)
def test_is_the_sum_over_both_sides(length, bidirectional, kernels):
    tensors = inputs(length, bidirectional=bidirectional)
    with torch.no_grad():
        result = long_conv(*tensors, kernels=kernels)
    assert relative_rms(result, long_conv_by_sums(*in_double(tensors))) < 2e-6


@pytest.mark.parametrize("bidirectional", [True, False], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("length", [1, 2, 63, 128])
def test_gradients_of_the_definition(length, bidirectional):
    """Double precision cannot go through the fp32 transforms, so the sum's own gradients are the reference."""
    tensors = inputs(length, bidirectional=bidirectional)
    leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
    exact = [None if t is None else t.double().requires_grad_() for t in tensors]
    direction = torch.randn_like(tensors[0])
    long_conv(*leaves, kernels="auto").backward(direction)
    long_conv_by_sums(*exact).backward(direction.double())
    for leaf, reference in zip(leaves, exact, strict=True):
        if leaf is None or not reference.grad.any():
            continue
        assert relative_rms(leaf.grad, reference.grad) < 5e-6


def test_several_blocks_of_channels_and_rows(monkeypatch):
    """The result does not depend on how the work is cut up."""
    monkeypatch.setattr("m2rag_kernels.long_conv.cpu.BLOCK_POINTS", 512)
    monkeypatch.setattr("m2rag_kernels.long_conv.cpu.MIN_CHANNELS", 2)
    tensors = inputs(100, batch=3, width=7)
    assert block_shape(7, 3, fft_size(100)) == (2, 1)
    assert relative_rms(long_conv(*tensors, kernels="cpu"), long_conv(*tensors, kernels="naive")) < 2e-6


@pytest.mark.parametrize("kernels", KERNELS)
def test_keeps_the_dtype_and_its_inputs(kernels):
    tensors = inputs(64)
    half = [tensors[0].bfloat16(), *tensors[1:]]
    before = [t.clone() for t in half]
    result = long_conv(*half, kernels=kernels)
    assert result.dtype == torch.bfloat16
    assert relative_rms(result, long_conv_by_sums(*in_double(half))) < 5e-3
    assert all(torch.equal(a, b) for a, b in zip(half, before, strict=True))


def test_without_gate():
    tensors = inputs(65, gated=False)
    for kernels in KERNELS:
        assert relative_rms(long_conv(*tensors, kernels=kernels), long_conv_by_sums(*in_double(tensors))) < 2e-6


def test_non_contiguous_input():
    u, *rest = inputs(40)
    strided = u.transpose(1, 2).contiguous().transpose(1, 2)
    assert relative_rms(long_conv(strided, *rest, kernels="cpu"), long_conv(u, *rest, kernels="naive")) < 2e-6


def test_fft_sizes_never_wrap_and_are_few():
    sizes = [fft_size(length) for length in range(1, 5000)]
    for length, size in enumerate(sizes, start=1):
        assert 2 * length <= size <= max(MIN_FFT, 2.5 * length)
    assert sizes == sorted(sizes)
    assert len(set(sizes)) < 30
    assert fft_size(2048) == 4096 and fft_size(32768) == 65536


@pytest.mark.parametrize("bidirectional", [True, False], ids=["bidirectional", "causal"])
@pytest.mark.parametrize(("length", "reach"), [(300, 1), (513, 34), (1000, 100), (4096, 100)])
def test_short_taps_in_blocks(length, reach, bidirectional):
    """Overlapping blocks give the sums over taps that are zero from `reach` on."""
    u, kernel, kernel_rev, skip, _ = inputs(length, bidirectional=bidirectional)
    kernel[:, reach:] = 0
    left, right = kernel[:, :reach].clone(), None
    if bidirectional:
        kernel_rev[:, reach:] = 0
        right = kernel_rev[:, :reach].flip(-1)
    left[:, 0] += skip
    (segment,) = segments((reach,) * 5, fft_size(length))
    assert not segment.whole and segment.points < length
    rows = u.transpose(0, 1).contiguous()
    result = convolve_blocks(rows, Spectrum(taps_spectrum(left, right, segment), segment))
    expected = long_conv_by_sums(*in_double([u, kernel, kernel_rev, skip]))
    assert relative_rms(result.transpose(0, 1), expected) < 2e-6


def test_segments_follow_the_reach_of_the_taps():
    n_fft = fft_size(32768)
    reach = tuple(int(min(32768, 33 * 1.04**channel)) for channel in range(300))
    cut = segments(reach, n_fft)
    assert [cut[0].lo, *(segment.hi for segment in cut)] == [*(segment.lo for segment in cut), 300]
    for segment in cut:
        assert segment.reach == max(reach[segment.lo : segment.hi])
        assert segment.whole or segment.points > 2 * segment.reach
    assert len(cut) < 16
    assert cut[-1].whole and not cut[0].whole and cut[0].points < 2048
    # Where the first channel reaches furthest, all are taken to reach as far.
    assert segments(reach[::-1], n_fft) == ((0, 300, 32768, n_fft, True),)
