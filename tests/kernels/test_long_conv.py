"""Long convolution: the FFT forms against the sum that defines it, forward and backward."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import LENGTHS, long_conv_by_sums, relative_rms

from m2rag_kernels.long_conv import long_conv
from m2rag_kernels.long_conv.cpu import MIN_FFT, block_shape, fft_size

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
