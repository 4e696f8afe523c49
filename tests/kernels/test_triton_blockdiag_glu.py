"""The GLU MLP on GPUs against its definition, forward and backward; interpreted where there is no GPU."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import relative_rms

pytest.importorskip("triton")

from m2rag_kernels.blockdiag_glu import blockdiag_glu, naive, train  # noqa: E402
from m2rag_kernels.blockdiag_glu import triton as kernels  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
EPS = 1e-12
NAMES = ("y", "d_x", "d_w_in", "d_w_out", "d_bias", "d_norm_weight", "d_norm_bias")


def inputs(n_blocks=4, block_width=12, block_hidden=40, tokens=(2, 9), dtype=torch.float32):
    """Arguments of the operation up to eps; all in `dtype`."""
    torch.manual_seed(block_width)
    width = n_blocks * block_width
    tensors = [
        torch.randn(*tokens, width),
        torch.randn(n_blocks, 2 * block_hidden, block_width) / block_width**0.5,
        torch.randn(n_blocks, block_width, block_hidden) / block_hidden**0.5,
        torch.randn(width),
        torch.rand(width) + 0.5,
        torch.randn(width),
    ]
    return [t.to(DEVICE, dtype) for t in tensors]


def results(operation, tensors, *options):
    """Output, and gradients for a random gradient of the output."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = operation(*leaves, EPS, *options)
    torch.manual_seed(1)
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.randn(y.shape).to(DEVICE, y.dtype))]


def definition(tensors):
    return results(naive.blockdiag_glu, [t.double() for t in tensors])


def assert_equal_results(found, expected, tolerance):
    for name, result, reference in zip(NAMES, found, expected, strict=True):
        assert relative_rms(result, reference) < tolerance, name


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tokens", [(1, 1), (1, 33), (2, 3, 5)], ids=str)
def test_is_the_definition(tokens, dtype):
    tensors = inputs(tokens=tokens, dtype=dtype)
    found = results(kernels.blockdiag_glu, tensors)
    assert all(t.dtype == dtype for t in found)
    assert_equal_results(found, definition(tensors), TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("n_blocks", "block_width", "block_hidden"),
    [(2, 16, 32), (6, 6, 18), (2, 33, 65), (2, 96, 48), (2, 192, 33), (2, 240, 17)],
)
def test_widths_that_are_no_powers_of_two(n_blocks, block_width, block_hidden):
    tensors = inputs(n_blocks, block_width, block_hidden, tokens=(1, 5))
    assert_equal_results(results(kernels.blockdiag_glu, tensors), definition(tensors), 1e-5)


@pytest.mark.parametrize("block_width", [6, 96, 192, 240, 384, 448])
def test_tiles_of_half_precision(block_width):
    """Every tile of the table, for as many tokens as do not fill one."""
    tensors = inputs(2, block_width, 80, tokens=(1, 7), dtype=torch.bfloat16)
    assert_equal_results(results(kernels.blockdiag_glu, tensors), definition(tensors), 1e-2)


@pytest.mark.parametrize("chunk", [8, 13, 64])
def test_the_backward_takes_some_tokens_at_a_time(chunk, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK_TOKENS", chunk)
    tensors = inputs(tokens=(1, 39))
    assert_equal_results(results(kernels.blockdiag_glu, tensors), definition(tensors), 1e-5)


def test_programs_of_the_norm_take_several_rows(monkeypatch):
    monkeypatch.setattr(kernels, "SPLITS", 2)
    tensors = inputs(2, 300, 16, tokens=(1, 37))
    assert_equal_results(results(kernels.blockdiag_glu, tensors), definition(tensors), 1e-5)


def test_without_gradients_nothing_else_changes():
    tensors = inputs()
    before = [t.clone() for t in tensors]
    with torch.no_grad():
        alone = kernels.blockdiag_glu(*tensors, EPS)
    assert torch.equal(alone, results(kernels.blockdiag_glu, tensors)[0])
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_any_strides():
    x, *weights = inputs()
    expected = kernels.blockdiag_glu(x, *weights, EPS)
    strided = x.transpose(0, 2).contiguous().transpose(0, 2)
    weights = [w.transpose(0, -1).contiguous().transpose(0, -1) for w in weights]
    assert torch.equal(kernels.blockdiag_glu(strided, *weights, EPS), expected)


def test_gradient_of_any_strides():
    tensors = [t.requires_grad_() for t in inputs()]
    found, expected = (
        torch.autograd.grad(operation(*tensors, EPS).transpose(0, 1).cumsum(-1).sum(0).sum(), tensors)
        for operation in (kernels.blockdiag_glu, naive.blockdiag_glu)
    )
    for result, reference in zip(found, expected, strict=True):
        assert relative_rms(result, reference) < 1e-5


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_is_that_of_the_training_path(x_dtype):
    """Same dtypes of the result and of every gradient; operands in bf16, residual and norm in fp32."""
    x, *weights = inputs(block_width=24, block_hidden=48)
    tensors = [x.to(x_dtype), *weights]
    with torch.autocast(DEVICE, torch.bfloat16):
        found, expected = results(kernels.blockdiag_glu, tensors), results(train.blockdiag_glu, tensors)
    assert [t.dtype for t in found] == [t.dtype for t in expected]
    assert_equal_results(found, definition(tensors), 1e-2)


def test_gradients_are_the_same_every_time():
    tensors = inputs()
    first, second = (results(kernels.blockdiag_glu, tensors) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def hidden_dropped(probability, tokens=60, n_blocks=2, block_hidden=30):
    """Which hidden units are dropped, (tokens, units): every output is one of them, next to nothing of the rest."""
    width = n_blocks * block_hidden
    x = torch.ones(tokens, width, device=DEVICE)
    w_in = torch.full((n_blocks, 2 * block_hidden, block_hidden), 1.0, device=DEVICE)
    w_out = torch.eye(block_hidden, device=DEVICE).repeat(n_blocks, 1, 1)
    zeros, ones = torch.zeros(width, device=DEVICE), torch.ones(width, device=DEVICE)
    return kernels.blockdiag_glu(x, w_in, w_out, zeros, ones, zeros, EPS, probability) < 0


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_dropout_drops_independently(probability):
    torch.manual_seed(0)
    dropped = hidden_dropped(probability).double()
    n = dropped.numel()
    spread = (probability * (1 - probability)) ** 0.5
    assert abs(float(dropped.mean()) - probability) < 4 * spread / n**0.5
    for axis in (0, 1):
        means = dropped.mean(axis)
        assert abs(float(means.std()) / (spread / dropped.shape[axis] ** 0.5) - 1) < 0.3
    centred = dropped - probability
    neighbours = float((centred[1:, 1:] * centred[:-1, :-1]).mean())
    assert abs(neighbours) < 4 * spread**2 / n**0.5


def test_dropout_follows_the_generator():
    torch.manual_seed(0)
    first, second = hidden_dropped(0.3), hidden_dropped(0.3)
    torch.manual_seed(0)
    assert torch.equal(hidden_dropped(0.3), first)
    assert not torch.equal(first, second)


def test_dropout_is_the_same_in_the_backward(monkeypatch):
    """Each gradient against the slope of the loss along it, with chunks and tiles that differ from the forward's."""
    monkeypatch.setattr(kernels, "CHUNK_TOKENS", 5)
    tensors = inputs(n_blocks=2, tokens=(1, 9))

    def loss(*args):
        torch.manual_seed(3)
        y = kernels.blockdiag_glu(*args, EPS, 0.4)
        torch.manual_seed(4)
        return (y.double() * torch.randn(y.shape, dtype=torch.float64).to(DEVICE)).sum()

    leaves = [t.clone().requires_grad_() for t in tensors]
    for index, gradient in enumerate(torch.autograd.grad(loss(*leaves), leaves)):
        step = 1e-3 * gradient / gradient.norm()
        up, down = (
            loss(*(t + sign * step if i == index else t for i, t in enumerate(tensors))).item() for sign in (1, -1)
        )
        slope = (up - down) / (2 * float(step.norm()))
        assert slope == pytest.approx(float(gradient.norm()), rel=5e-3), NAMES[index + 1]


def test_says_what_it_does_not_take():
    assert kernels.unsupported(*inputs(), EPS, 0.1) is None
    assert "blocks is 3" in kernels.unsupported(*inputs(n_blocks=3), EPS)
    assert "520 channels" in kernels.unsupported(*inputs(2, 520, 16), EPS)
    assert "float64" in kernels.unsupported(*inputs(dtype=torch.float64), EPS)


def test_the_dispatcher_takes_it():
    tensors = inputs()
    result = blockdiag_glu(*tensors, EPS, kernels="triton")
    assert torch.equal(result, kernels.blockdiag_glu(*tensors, EPS))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("block_width", [96, 192, 240, 384, 448])
@pytest.mark.parametrize("tokens", [(1, 1), (3, 4097), (1, 32_768)], ids=str)
def test_real_sizes(tokens, block_width, dtype):
    tensors = inputs(4, block_width, 4 * block_width, tokens, dtype)
    assert_equal_results(results(kernels.blockdiag_glu, tensors), definition(tensors), TOLERANCE[dtype])
