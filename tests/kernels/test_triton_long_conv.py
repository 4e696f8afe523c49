"""The long convolution as Monarch products against its definition, forward and backward; interpreted without a GPU."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from kernel_checks import long_conv_by_sums, relative_rms

pytest.importorskip("triton")

from m2rag_kernels.long_conv import long_conv, naive  # noqa: E402
from m2rag_kernels.long_conv import triton as kernels  # noqa: E402
from m2rag_kernels.long_conv.monarch import MAX_POINTS, Plan, plan, spectrum, tables, transform  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}

# On the chip with several rows at a time, with one, and in phases; odd ones do not fill their transform.
LENGTHS = [1, 2, 63, 256, 257, 1000, 2049, 4097]

# As few outer points as a product takes: the phases on rows that the definition's double sum can still check.
SMALL_PHASES = Plan(16, 16, 16)


def inputs(length, batch=2, width=3, dtype=torch.float32, gated=True, masked=False, bidirectional=True):
    torch.manual_seed(length)
    decay = torch.exp(-torch.arange(length) / 20)
    kernel = torch.randn(width, length) * decay
    kernel_rev = torch.randn(width, length) * decay if bidirectional else None
    u = torch.randn(batch, width, length).to(dtype)
    mask = None
    if masked:
        mask = torch.rand(batch, length) < 0.7
        mask[:, 0] = True
        u.masked_fill_(~mask[:, None], math.nan)
    gate = torch.randn(batch, width, length).to(dtype) if gated else None
    tensors = [u, kernel, kernel_rev, torch.randn(width), gate, mask]
    return [None if t is None else t.to(DEVICE) for t in tensors]


def definition(u, kernel, kernel_rev, skip, gate, mask):
    """In double precision by sums where that is short, else in fp32 by the naive path."""
    if mask is not None:
        u = torch.where(mask[:, None], u, 0.0)
    if u.shape[-1] > 300:
        return naive.long_conv(u.float(), kernel, kernel_rev, skip, None if gate is None else gate.float())
    doubles = [None if t is None else t.double().cpu() for t in (u, kernel, kernel_rev, skip, gate)]
    return long_conv_by_sums(*doubles).to(DEVICE)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_is_the_definition(length, dtype, masked):
    tensors = inputs(length, batch=1 if length > 1000 else 3, width=2, dtype=dtype, masked=masked)
    with torch.no_grad():
        result = long_conv(*tensors, kernels="triton")
    assert result.dtype == dtype
    assert relative_rms(result, definition(*tensors)) < TOLERANCE[dtype]


@pytest.mark.parametrize("bidirectional", [True, False], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_directions_and_gate(bidirectional, gated):
    tensors = inputs(100, gated=gated, bidirectional=bidirectional)
    result = long_conv(*tensors, kernels="triton")
    assert relative_rms(result, definition(*tensors)) < 1e-5


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1, 63, 257, 2000, 4097])
def test_gradients(length, dtype, masked):
    u, kernel, kernel_rev, skip, gate, mask = inputs(length, batch=1 if length > 1000 else 3, width=2, dtype=dtype)
    if masked:
        mask = torch.rand(len(u), length, device=DEVICE) < 0.7
        mask[:, 0] = True
    leaves = [t.clone().requires_grad_() for t in (u, kernel, kernel_rev, skip, gate)]
    references = [t.float().clone().requires_grad_() for t in (u, kernel, kernel_rev, skip, gate)]
    direction = torch.randn_like(u)
    long_conv(*leaves, mask, kernels="triton").backward(direction)
    naive.long_conv(*references, mask).backward(direction.float())
    assert all(leaf.grad.dtype == leaf.dtype for leaf in leaves)
    # A single sum over all positions may nearly vanish, so the taps' and the skip's are compared as one.
    for name, some in (("u", [0]), ("taps", [1, 2, 3]), ("gate", [4])):
        result, expected = (torch.cat([t[i].grad.flatten() for i in some]) for t in (leaves, references))
        error = relative_rms(result, expected)
        assert error < TOLERANCE[dtype], f"gradient of {name}: relative error {error:.1e}"


def test_gradients_where_some_are_not_wanted():
    u, kernel, kernel_rev, skip, gate, _ = inputs(70)
    wanted = u.clone().requires_grad_()
    reference = u.clone().requires_grad_()
    long_conv(wanted, kernel, kernel_rev, skip, gate, kernels="triton").sum().backward()
    naive.long_conv(reference, kernel, kernel_rev, skip, gate).sum().backward()
    assert relative_rms(wanted.grad, reference.grad) < 1e-5


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_phases_are_the_same_function_as_one_pass(masked):
    """A row of 4,096 points on the chip and in three phases: the same convolution from different tables."""
    u, kernel, kernel_rev, skip, gate, mask = inputs(3001, batch=2, width=2, masked=masked)
    results = []
    for chosen in (plan(3001), SMALL_PHASES):
        filters = spectrum(kernel, kernel_rev, skip, chosen)
        results.append(kernels.convolve(u, filters, chosen, gate, mask=mask))
    assert plan(3001).n1 == 1
    assert relative_rms(results[1], results[0]) < 1e-5
    assert relative_rms(results[1], definition(u, kernel, kernel_rev, skip, gate, mask)) < 1e-5


def test_more_rows_than_programs(monkeypatch):
    """Programs take turns: rows, channels and the sum over the batch, in phases."""
    monkeypatch.setattr(kernels, "_programs", lambda tasks, device: 2)
    monkeypatch.setattr(kernels, "plan", lambda length: SMALL_PHASES)
    u, kernel, kernel_rev, skip, gate, _ = inputs(50, batch=3, width=3)
    leaves = [t.clone().requires_grad_() for t in (u, kernel, kernel_rev, skip, gate)]
    references = [t.clone().requires_grad_() for t in (u, kernel, kernel_rev, skip, gate)]
    result, expected = kernels.long_conv(*leaves), naive.long_conv(*references)
    assert relative_rms(result.detach(), expected.detach()) < 1e-5
    direction = torch.randn_like(u)
    result.backward(direction)
    expected.backward(direction)
    for leaf, reference in zip(leaves, references, strict=True):
        assert relative_rms(leaf.grad, reference.grad) < 1e-5


def test_adds_and_keeps_what_was_before_the_gate():
    u, kernel, kernel_rev, skip, gate, _ = inputs(40)
    chosen = plan(40)
    filters, more = spectrum(kernel, kernel_rev, skip, chosen), torch.randn_like(u)
    ungated = torch.empty_like(u)
    result = kernels.convolve(u, filters, chosen, gate, add=more, ungated=ungated)
    plain = definition(u, kernel, kernel_rev, skip, None, None)
    assert relative_rms(ungated, plain) < 1e-5
    assert relative_rms(result, plain * gate + more) < 1e-5


def test_views_need_no_copy_by_the_caller():
    u, kernel, kernel_rev, skip, gate, _ = inputs(33)
    token_major = u.transpose(1, 2).contiguous().transpose(1, 2)
    result = long_conv(token_major, kernel, kernel_rev, skip, gate.repeat(1, 1, 2)[..., ::2], kernels="triton")
    assert relative_rms(result, definition(u, kernel, kernel_rev, skip, gate.repeat(1, 1, 2)[..., ::2], None)) < 1e-5


def test_autocast_leaves_the_filters_in_full_precision():
    tensors = inputs(200)
    with torch.autocast(DEVICE, torch.bfloat16):
        result = long_conv(*tensors, kernels="triton")
    assert result.dtype == torch.float32
    assert relative_rms(result, definition(*tensors)) < 1e-5


@pytest.mark.parametrize("length", [1, 256, 257, 4096, 4097, MAX_POINTS])
def test_plan_holds_the_input(length):
    chosen = plan(length)
    assert length <= chosen.points <= max(256, 2 * length - 1)
    assert all(factor >= 16 for factor in chosen if factor > 1)


def test_plan_refuses_what_is_too_long():
    with pytest.raises(ValueError, match="32769 positions, the longest transform takes 32768"):
        plan(MAX_POINTS + 1)
    assert "32,769 positions, the kernel takes up to 32,768" in kernels.unsupported(torch.empty(1, 1, MAX_POINTS + 1))
    assert "float64" in kernels.unsupported(torch.empty(1, 1, 4, dtype=torch.float64))


@pytest.mark.parametrize("chosen", [plan(256), plan(512), SMALL_PHASES], ids=str)
def test_transform_is_the_twisted_fourier_transform(chosen):
    """Every frequency, in the order the plan says, against the sum that defines it."""
    torch.manual_seed(0)
    z = torch.randn(chosen.points, dtype=torch.complex64)
    n1, p, q = chosen
    k1, kp, kq = torch.meshgrid(torch.arange(n1), torch.arange(p), torch.arange(q), indexing="ij")
    frequency = (k1 + n1 * (kp + p * kq)).flatten().double()
    j = torch.arange(chosen.points).double()
    some = torch.randperm(chosen.points)[:100]
    phase = -2 * math.pi * frequency[some, None] * j / chosen.points + math.pi * j / (2 * chosen.points)
    expected = torch.polar(torch.ones_like(phase), phase) @ z.to(torch.complex128) / math.sqrt(chosen.points)
    result = transform(z, chosen)[some]
    assert relative_rms(torch.view_as_real(result), torch.view_as_real(expected)) < 1e-6


def test_tables_are_unitary():
    for chosen in (plan(256), plan(8192)):
        for matrix in (tables(chosen, torch.device("cpu")).outer, tables(chosen, torch.device("cpu")).first):
            if matrix is not None:
                assert torch.allclose(matrix @ matrix.conj().T, torch.eye(len(matrix)).to(matrix.dtype), atol=1e-6)


def test_no_path_of_it_calls_an_fft(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("torch.fft was called")

    tensors = inputs(300)
    leaf = tensors[0].requires_grad_()
    for name in ("fft", "ifft", "rfft", "irfft"):
        monkeypatch.setattr(torch.fft, name, refuse)
    long_conv(*tensors, kernels="triton").sum().backward()
    assert leaf.grad is not None
    for file in ("triton.py", "monarch.py"):
        assert "torch.fft" not in (Path(kernels.__file__).parent / file).read_text()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [4096, 8191, 16384, 32767, 32768])
def test_real_sizes(length, dtype):
    tensors = inputs(length, batch=2, width=64, dtype=dtype)
    leaves = [t.clone().requires_grad_() for t in tensors[:5]]
    references = [t.float().clone().requires_grad_() for t in tensors[:5]]
    result, expected = long_conv(*leaves, kernels="triton"), naive.long_conv(*references)
    assert relative_rms(result.detach(), expected.detach()) < TOLERANCE[dtype]
    direction = torch.randn_like(tensors[0])
    result.backward(direction)
    expected.backward(direction.float())
    for leaf, reference in zip(leaves, references, strict=True):
        assert relative_rms(leaf.grad, reference.grad) < TOLERANCE[dtype]
