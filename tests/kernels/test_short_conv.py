"""Short convolution and first gate against the definition, position by position."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import relative_rms, short_conv_by_sums

from m2rag_kernels.short_conv import short_conv

KERNELS = ["naive", "cpu"]


def inputs(length: int, batch: int = 3, width: int = 4):
    torch.manual_seed(length)
    return torch.randn(batch, length, 3 * width), torch.randn(3 * width, 1, 3), torch.randn(3 * width)


def holes(batch: int, length: int) -> torch.Tensor:
    """Right pads, left pads and a hole in the middle."""
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[0, -(length // 3) :] = False
    mask[1, : length // 3] = False
    mask[2, length // 2] = False
    return mask


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("length", [3, 16, 63, 127])
def test_is_the_sum_of_three_taps(length, masked, kernels):
    x, weight, bias = inputs(length)
    mask = holes(3, length) if masked else None
    expected = short_conv_by_sums(x.double(), weight.double(), bias.double(), mask)
    if mask is not None:
        x = torch.where(mask[..., None], x, float("nan"))
    before = x.clone()
    for result, reference in zip(short_conv(x, weight, bias, mask, kernels=kernels), expected, strict=True):
        assert relative_rms(result, reference) < 1e-6
    assert torch.equal(x.nan_to_num(), before.nan_to_num())


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("length", [1, 2])
def test_shorter_than_its_taps(length, kernels):
    x, weight, bias = inputs(length)
    expected = short_conv_by_sums(x.double(), weight.double(), bias.double())
    for result, reference in zip(short_conv(x, weight, bias, kernels=kernels), expected, strict=True):
        assert relative_rms(result, reference) < 1e-6


@pytest.mark.parametrize("kernels", KERNELS)
def test_keeps_half_precision(kernels):
    x, weight, bias = inputs(50)
    dtype = torch.bfloat16
    half = (x.to(dtype), weight.to(dtype), bias.to(dtype))
    expected = short_conv_by_sums(*(t.double() for t in half))
    for result, reference in zip(short_conv(*half, kernels=kernels), expected, strict=True):
        assert result.dtype == dtype
        assert relative_rms(result, reference) < 1e-2


@pytest.mark.parametrize("kernels", ["naive", "train"])
def test_gradients(kernels):
    x, weight, bias = (t.double().requires_grad_() for t in inputs(7, width=2))
    mask = holes(3, 7)
    assert torch.autograd.gradcheck(lambda *args: short_conv(*args, mask, kernels=kernels), (x, weight, bias))
