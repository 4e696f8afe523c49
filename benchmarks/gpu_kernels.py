"""The calls that `gpu.py` times for each kernel: the Triton path and the naive one (torch.fft) on the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from common import Row, ratio, significant
from gpu_timing import Meter, traffic

from m2rag_kernels import chosen
from m2rag_kernels.blockdiag_glu import naive as naive_glu
from m2rag_kernels.long_conv import naive as naive_long
from m2rag_kernels.short_conv import naive as naive_short

N_BLOCKS = 4
KEPT = "triton, spectrum kept"  # as inference runs it: the filter's spectrum is computed once
IMPLEMENTATIONS = {
    "long_conv": (KEPT, "triton", "naive"),
    "short_conv": ("triton", "naive"),
    "blockdiag_glu": ("triton", "naive"),
}


@dataclass(frozen=True)
class Shape:
    """Of one call: (B, L, D), and the MLP's inner width."""

    batch: int
    length: int
    width: int
    inner: int


@dataclass(frozen=True)
class Timed:
    """A call, and the bytes that it has to read and write."""

    direction: str
    call: Callable[[], Any]
    n_bytes: int


def stepped_aside(inference: bool) -> str | None:
    """Which operations of a model that ran last with kernels="triton" went another way, or None.

    For inference the model calls some of the kernels itself; then its own choice speaks for them.
    """
    ops = ("m2_bert", "blockdiag_glu") if inference else ("m2_bert", *IMPLEMENTATIONS)
    others = {op: chosen().get(op) for op in ops if chosen().get(op) != "triton"}
    return f"took {others}" if others else None


def time_kernel(op: str, implementation: str, shape: Shape, meter: Meter, copy_rate: float) -> Iterator[Row]:
    """A row per direction. The floor is the time in which the device copies as many bytes.

    Args:
        copy_rate: bytes per second, read and written.
    """
    make = {"long_conv": long_conv, "short_conv": short_conv, "blockdiag_glu": blockdiag_glu}[op]
    for timed in make(implementation, shape, meter.device):
        row, floor = meter.measure(timed.call), timed.n_bytes / copy_rate
        row |= {"floor_seconds": significant(floor), "times_floor": ratio(row["seconds"], floor)}
        yield {"direction": timed.direction, **row}


def _half(*shape: int, device: str) -> torch.Tensor:
    return torch.randn(*shape, device=device).bfloat16()


def _both_ways(function: Callable[..., Any], tensors: list[torch.Tensor]) -> Iterator[Timed]:
    """A function without gradients, then with them: each tensor is read or written once, and so is its gradient."""

    def forward() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            result = function(*tensors)
        return result if isinstance(result, tuple) else (result,)

    outputs = forward()
    n_bytes = traffic(*tensors, *outputs)
    directions = [torch.randn_like(output) for output in outputs]
    del outputs
    yield Timed("forward", forward, n_bytes)
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]

    def forward_and_backward() -> None:
        with torch.autocast(leaves[0].device.type, dtype=torch.bfloat16):
            result = function(*leaves)
        results = result if isinstance(result, tuple) else (result,)
        along = [direction.to(one.dtype) for direction, one in zip(directions, results, strict=True)]
        torch.autograd.grad(results, leaves, along)

    # Forward as above; backward reads inputs and the outputs' gradients, and writes the inputs' gradients.
    yield Timed("forward+backward", forward_and_backward, 2 * n_bytes + traffic(*tensors))


def long_conv(implementation: str, shape: Shape, device: str) -> Iterator[Timed]:
    """With the gate. The filters are fp32, as the implicit MLP makes them."""
    size = (shape.batch, shape.width, shape.length)
    u, gate = (_half(*size, device=device) for _ in range(2))
    decay = torch.exp(-torch.arange(shape.length, device=device) / max(shape.length / 8, 1))
    left, right = (torch.randn(shape.width, shape.length, device=device) * decay for _ in range(2))
    skip = torch.randn(shape.width, device=device)
    if implementation == "naive":
        yield from _both_ways(naive_long.long_conv, [u, left, right, skip, gate])
        return
    from m2rag_kernels.long_conv import triton

    if implementation == "triton":
        yield from _both_ways(triton.long_conv, [u, left, right, skip, gate])
        return
    from m2rag_kernels.long_conv.monarch import plan, spectrum

    chosen = plan(shape.length)
    kept = spectrum(left, right, skip, chosen).bfloat16()

    def with_kept_spectrum() -> torch.Tensor:
        with torch.no_grad():
            return triton.convolve(u, kept, chosen, gate)

    yield Timed("forward", with_kept_spectrum, traffic(u, gate, kept, u))


def short_conv(implementation: str, shape: Shape, device: str) -> Iterator[Timed]:
    x = _half(shape.batch, shape.length, 3 * shape.width, device=device)
    weight, bias = _half(3 * shape.width, 1, 3, device=device), _half(3 * shape.width, device=device)
    function: Callable[..., Any] = naive_short.short_conv
    if implementation == "triton":
        from m2rag_kernels.short_conv.triton import short_conv as function
    yield from _both_ways(function, [x, weight, bias])


def blockdiag_glu(implementation: str, shape: Shape, device: str) -> Iterator[Timed]:
    block_in, block_inner = shape.width // N_BLOCKS, shape.inner // N_BLOCKS
    x = _half(shape.batch, shape.length, shape.width, device=device)
    w_in = _half(N_BLOCKS, 2 * block_inner, block_in, device=device) / block_in**0.5
    w_out = _half(N_BLOCKS, block_in, block_inner, device=device) / block_inner**0.5
    bias, norm_weight, norm_bias = (_half(shape.width, device=device) for _ in range(3))
    function: Callable[..., Any] = naive_glu.blockdiag_glu
    if implementation == "triton":
        from m2rag_kernels.blockdiag_glu.triton import blockdiag_glu as function
    yield from _both_ways(lambda *tensors: function(*tensors, 1e-12), [x, w_in, w_out, bias, norm_weight, norm_bias])
