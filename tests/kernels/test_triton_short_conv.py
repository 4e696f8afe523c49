"""The short convolution on GPUs against its definition, forward and backward; interpreted where there is no GPU."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_checks import relative_rms

pytest.importorskip("triton")

from m2rag_kernels.short_conv import naive, short_conv  # noqa: E402
from m2rag_kernels.short_conv import triton as kernels  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def inputs(length, batch=2, width=5, dtype=torch.float32, masked=False):
    """x, weight, bias, mask; the mask is random, and pads hold NaN."""
    torch.manual_seed(length)
    x = torch.randn(batch, length, 3 * width).to(dtype)
    mask = None
    if masked:
        mask = torch.rand(batch, length) > 0.3
        mask[:, length // 2] = True
        x = torch.where(mask[..., None], x, math.nan)
    tensors = [x, torch.randn(3 * width, 1, 3), torch.randn(3 * width), mask]
    return [None if t is None else t.to(DEVICE) for t in tensors]


def results(operation, x, weight, bias, mask, d_gated=None, d_gate=None):
    """Both outputs and the gradients of x, weight and bias for given gradients of the outputs, random ones by default;
    those of gated values are NaN at pads."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    gated, gate = operation(*leaves, mask)
    torch.manual_seed(1)
    grads = [
        torch.randn(y.shape).to(DEVICE, y.dtype) if given is None else given.to(y.dtype)
        for y, given in ((gated, d_gated), (gate, d_gate))
    ]
    if mask is not None:
        grads[0] = torch.where(mask[:, None], grads[0], math.nan)
    return [gated.detach(), gate.detach(), *torch.autograd.grad((gated, gate), leaves, grads)]


def definition(x, weight, bias, mask, **grads):
    """The same in double precision, NaN at the pads' gradients replaced by zero as they count for nothing."""

    def operation(x, weight, bias, mask):
        gated, gate = naive.short_conv(x, weight, bias, mask)
        return (gated if mask is None else gated.masked_fill(~mask[:, None], 0.0)), gate

    return results(operation, x.double(), weight.double(), bias.double(), mask, **grads)


def assert_equal_results(found, expected, tolerance):
    for name, result, reference in zip(("gated", "gate", "d_x", "d_weight", "d_bias"), found, expected, strict=True):
        assert relative_rms(result, reference) < tolerance, name


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 97])
def test_is_the_definition(length, dtype, masked):
    tensors = inputs(length, dtype=dtype, masked=masked)
    found = results(kernels.short_conv, *tensors)
    assert [t.dtype for t in found] == [dtype, dtype, dtype, torch.float32, torch.float32]
    assert_equal_results(found, definition(*tensors), TOLERANCE[dtype])


def test_more_channels_than_a_tile():
    tensors = inputs(40, batch=1, width=kernels.FORWARD_TILE["BLOCK_D"] * 2 + 3, masked=True)
    assert_equal_results(results(kernels.short_conv, *tensors), definition(*tensors), 1e-5)


@pytest.mark.parametrize("splits", [1, 2, 5])
def test_programs_of_the_backward_take_several_tiles(splits, monkeypatch):
    monkeypatch.setattr(kernels, "SPLITS", splits)
    tensors = inputs(70, batch=3, masked=True)
    assert_equal_results(results(kernels.short_conv, *tensors), definition(*tensors), 1e-5)


@pytest.mark.parametrize("layout", ["channels first", "part of a wider one", "batch last", "mask of a wider one"])
def test_any_strides(layout):
    x, weight, bias, mask = inputs(33, masked=True)
    if layout == "channels first":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "part of a wider one":
        x = torch.cat([torch.full_like(x, math.nan), x], dim=-1)[..., x.shape[-1] :]
    elif layout == "batch last":
        x = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    else:
        mask = torch.stack([mask, ~mask], dim=-1)[..., 0]
    found, expected = (operation(x, weight, bias, mask) for operation in (kernels.short_conv, naive.short_conv))
    for result, reference in zip(found, expected, strict=True):
        assert result.is_contiguous()
        assert relative_rms(result, reference) < 1e-5
    x.requires_grad_()
    gradients = [
        torch.autograd.grad(operation(x, weight, bias, mask), x, [torch.ones_like(y) for y in found])[0]
        for operation in (kernels.short_conv, naive.short_conv)
    ]
    assert relative_rms(*gradients) < 1e-5


def test_gradients_of_any_strides():
    """A sum sends back one number for all positions, a transposition swapped strides."""
    tensors = inputs(33)
    batch, length, width = 2, 33, 5
    grads = {
        "d_gated": torch.tensor(2.0, device=DEVICE).expand(batch, width, length),
        "d_gate": torch.randn(batch, length, width, device=DEVICE).transpose(1, 2),
    }
    assert_equal_results(results(kernels.short_conv, *tensors, **grads), definition(*tensors, **grads), 1e-5)


def test_one_output_may_go_unused():
    x, weight, bias, _ = inputs(20)
    x.requires_grad_()
    for output in (0, 1):
        found, expected = (
            torch.autograd.grad(operation(x, weight, bias)[output].sum(), x)[0]
            for operation in (kernels.short_conv, naive.short_conv)
        )
        assert relative_rms(found, expected) < 1e-5


def test_gradients_are_the_same_every_time():
    tensors = inputs(80, batch=3)
    first, second = (results(kernels.short_conv, *tensors) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_says_what_it_does_not_take():
    x, weight, bias, _ = inputs(4)
    assert kernels.unsupported(x, weight, bias) is None
    assert "float64" in kernels.unsupported(x.double(), weight, bias)
    assert "(15, 1, 4)" in kernels.unsupported(x, torch.zeros(15, 1, 4), bias)


def test_the_dispatcher_takes_it():
    tensors = inputs(5)
    for result, reference in zip(short_conv(*tensors, kernels="triton"), naive.short_conv(*tensors), strict=True):
        assert relative_rms(result, reference) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("batch", "length", "width"), [(1, 32_768, 768), (3, 4097, 960), (64, 127, 1792)])
def test_real_sizes(batch, length, width, dtype):
    tensors = inputs(length, batch, width, dtype, masked=True)
    assert_equal_results(results(kernels.short_conv, *tensors), definition(*tensors), TOLERANCE[dtype])
