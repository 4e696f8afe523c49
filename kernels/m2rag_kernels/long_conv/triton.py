"""The long convolution on GPUs: transforms as products with small matrices on tensor cores, in one launch.

`monarch.py` has the mathematics. Up to 4,096 positions a row is transformed, multiplied with the filter's spectrum and
transformed back on the chip. Longer rows take an outer stage: one program works on one row in three phases (columns,
rows, columns) with a scratch buffer between them that is small enough to stay in the second-level cache.

Operands of the products are what the input is (bf16, fp16; fp32 without tensor cores' rounding), sums are fp32.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from m2rag_kernels.launch import OPTIONS, on_device_of, unsupported_dtype
from m2rag_kernels.long_conv.monarch import MAX_POINTS, Plan, plan, spectrum, tables
from m2rag_kernels.tensor_core import dot, rounded

# Complex values that a program holds at a time, at least: 32 registers of each of 128 threads.
TILE = 2048

# While one row waits at the end of a phase another one can compute.
PROGRAMS_PER_MULTIPROCESSOR = 2


@triton.jit
def _complex_dot(xr, xi, fr, fi, CONJUGATE: tl.constexpr):
    """(xr + i xi) @ (fr + i fi), or with the matrix conjugated; rows are fp32, or operands already."""
    # Signs change in fp32: Triton's interpreter knows no arithmetic in bf16.
    if CONJUGATE:
        minus = rounded(-xr.to(tl.float32), fr.dtype)
    else:
        minus = rounded(-xi.to(tl.float32), fr.dtype)
    xr = rounded(xr.to(tl.float32), fr.dtype)
    xi = rounded(xi.to(tl.float32), fr.dtype)
    if CONJUGATE:
        return dot(xi, fi, dot(xr, fr)), dot(minus, fi, dot(xi, fr))
    else:
        return dot(minus, fi, dot(xr, fr)), dot(xr, fi, dot(xi, fr))


@triton.jit
def _multiply(xr, xi, wr, wi, CONJUGATE: tl.constexpr):
    """(xr + i xi) (wr + i wi), elementwise in fp32."""
    wr = wr.to(tl.float32)
    wi = wi.to(tl.float32)
    if CONJUGATE:
        wi = -wi
    return xr * wr - xi * wi, xr * wi + xi * wr


@triton.jit
def _matrix(table, N: tl.constexpr):
    """Real and imaginary part of an (N, N) matrix."""
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    return tl.load(table + at), tl.load(table + N * N + at)


@triton.jit
def _matrix_transposed(table, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] + tl.arange(0, N)[None, :] * N
    return tl.load(table + at), tl.load(table + N * N + at)


@triton.jit
def _to_frequencies(xr, xi, twiddle, last, G: tl.constexpr, P: tl.constexpr, Q: tl.constexpr):
    """After the first matrix: twiddle factors, last matrix. (G q, kp) -> (G kp, kq)."""
    at = tl.arange(0, Q)[:, None] * P + tl.arange(0, P)[None, :]
    wr = tl.load(twiddle + at)[None]
    wi = tl.load(twiddle + P * Q + at)[None]
    xr, xi = _multiply(tl.reshape(xr, (G, Q, P)), tl.reshape(xi, (G, Q, P)), wr, wi, False)
    fr, fi = _matrix(last, Q)
    xr = tl.reshape(tl.permute(rounded(xr, fr.dtype), (0, 2, 1)), (G * P, Q))
    xi = tl.reshape(tl.permute(rounded(xi, fr.dtype), (0, 2, 1)), (G * P, Q))
    return _complex_dot(xr, xi, fr, fi, False)


@triton.jit
def _from_frequencies(xr, xi, twiddle, last, G: tl.constexpr, P: tl.constexpr, Q: tl.constexpr):
    """Inverse of `_to_frequencies`. (G kp, kq) -> (G q, kp)."""
    fr, fi = _matrix(last, Q)
    xr, xi = _complex_dot(xr, xi, fr, fi, True)
    at = tl.arange(0, P)[:, None] + tl.arange(0, Q)[None, :] * P
    wr = tl.load(twiddle + at)[None]
    wi = tl.load(twiddle + P * Q + at)[None]
    xr, xi = _multiply(tl.reshape(xr, (G, P, Q)), tl.reshape(xi, (G, P, Q)), wr, wi, True)
    xr = tl.reshape(tl.permute(rounded(xr, fr.dtype), (0, 2, 1)), (G * Q, P))
    xi = tl.reshape(tl.permute(rounded(xi, fr.dtype), (0, 2, 1)), (G * Q, P))
    return xr, xi


@triton.jit
def _forward_on_chip(x, first, twiddle, last, G: tl.constexpr, P: tl.constexpr, Q: tl.constexpr):
    """Transform real rows (G, q, p) -> (G kp, kq)."""
    fr, fi = _matrix(first, P)
    x = rounded(tl.reshape(x, (G * Q, P)).to(tl.float32), fr.dtype)
    xr = dot(x, fr)
    xi = dot(x, fi)
    return _to_frequencies(xr, xi, twiddle, last, G, P, Q)


@triton.jit
def _inverse_on_chip(xr, xi, first, twiddle, last, G: tl.constexpr, P: tl.constexpr, Q: tl.constexpr):
    """Transform (G kp, kq) back to real rows (G, q, p)."""
    xr, xi = _from_frequencies(xr, xi, twiddle, last, G, P, Q)
    fr, fi = _matrix_transposed(first, P)
    y = dot(xr, fr)
    y = dot(xi, fi, y)
    return tl.reshape(y, (G, Q, P))


@triton.jit
def _load_input(u, factor, mask, at, at_mask, inside):
    """Input values times a factor; zero outside and at pads, whatever memory holds there."""
    if mask is not None:
        inside = inside & (tl.load(mask + at_mask, mask=inside, other=0) != 0)
    x = tl.load(u + at, mask=inside, other=0.0)
    if factor is not None:
        x = x.to(tl.float32) * tl.load(factor + at, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit
def _store_output(y, out, ungated, gate, add, mask, at, at_mask, inside):
    """Gate, add and store; with a mask, pads become zero."""
    if ungated is not None:
        tl.store(ungated + at, rounded(y, ungated.dtype.element_ty), mask=inside)
    if gate is not None:
        y *= tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    if add is not None:
        y += tl.load(add + at, mask=inside, other=0.0).to(tl.float32)
    if mask is not None:
        y = tl.where(tl.load(mask + at_mask, mask=inside, other=0) != 0, y, 0.0)
    tl.store(out + at, rounded(y, out.dtype.element_ty), mask=inside)


# --- up to 4,096 positions: G rows per program, all on the chip


@triton.jit
def _row_tile(row, n_rows, batch, width, length, Q: tl.constexpr, P: tl.constexpr):
    """Where rows (channel-major: the batch shares a spectrum) lie in (B, D, L) and (B, L), for tiles (G, q, p)."""
    channel = row // batch
    b = row % batch
    position = tl.arange(0, Q)[None, :, None] + tl.arange(0, P)[None, None, :] * Q
    at = ((b * width + channel).to(tl.int64) * length)[:, None, None] + position
    at_mask = (b.to(tl.int64) * length)[:, None, None] + position
    inside = (row < n_rows)[:, None, None] & (position < length)
    return channel, at, at_mask, inside


@triton.jit
def _convolve_on_chip(
    u, mask, spectrum, out, ungated, gate, add, first, twiddle, last,
    n_rows, batch, width, length,
    G: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * G + tl.arange(0, G)
    channel, at, at_mask, inside = _row_tile(row, n_rows, batch, width, length, Q, P)
    x = _load_input(u, None, mask, at, at_mask, inside)
    xr, xi = _forward_on_chip(x, first, twiddle, last, G, P, Q)
    at_spectrum = tl.reshape((channel.to(tl.int64) * (2 * P * Q))[:, None] + tl.arange(0, P * Q)[None, :], (G * P, Q))
    known = tl.reshape(tl.broadcast_to((row < n_rows)[:, None], (G, P * Q)), (G * P, Q))
    kr = tl.load(spectrum + at_spectrum, mask=known, other=0.0)
    ki = tl.load(spectrum + at_spectrum + P * Q, mask=known, other=0.0)
    xr, xi = _multiply(xr, xi, kr, ki, False)
    y = _inverse_on_chip(xr, xi, first, twiddle, last, G, P, Q)
    _store_output(y, out, ungated, gate, add, None, at, at_mask, inside)


@triton.jit
def _gradients_on_chip(
    u, mask, d_out, gate, spectrum, d_u, d_spectrum, first, twiddle, last,
    batch, width, length,
    P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """One channel per program: its spectrum's gradient is a sum over the batch."""
    channel = tl.program_id(0)
    at_spectrum = channel.to(tl.int64) * (2 * P * Q) + tl.arange(0, P)[:, None] * Q + tl.arange(0, Q)[None, :]
    kr = tl.load(spectrum + at_spectrum)
    ki = tl.load(spectrum + at_spectrum + P * Q)
    dr = tl.zeros((P, Q), tl.float32)
    di = tl.zeros((P, Q), tl.float32)
    for b in range(batch):
        row = channel * batch + b + tl.arange(0, 1)
        _, at, at_mask, inside = _row_tile(row, width * batch, batch, width, length, Q, P)
        x = _load_input(u, None, mask, at, at_mask, inside)
        xr, xi = _forward_on_chip(x, first, twiddle, last, 1, P, Q)
        g = _load_input(d_out, gate, None, at, at_mask, inside)
        gr, gi = _forward_on_chip(g, first, twiddle, last, 1, P, Q)
        pr, pi = _multiply(gr, gi, xr, xi, True)
        dr += pr
        di += pi
        gr, gi = _multiply(gr, gi, kr, ki, True)
        d_x = _inverse_on_chip(gr, gi, first, twiddle, last, 1, P, Q)
        _store_output(d_x, d_u, None, None, None, mask, at, at_mask, inside)
    tl.store(d_spectrum + at_spectrum, dr)
    tl.store(d_spectrum + at_spectrum + P * Q, di)


# --- longer rows: one row per program, in three phases through a scratch buffer (2, N) of its own, laid out (k1, m)


@triton.jit
def _columns_in(
    u, factor, mask, row_at, row_at_mask, length, outer, outer_twiddle, scratch,
    N1: tl.constexpr, M: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """First phase: transforms of n1 points along the columns of a real row seen as (n1, m)."""
    fr, fi = _matrix(outer, N1)
    for start in range(0, M, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[:, None]
        n1 = tl.arange(0, N1)[None, :]
        position = n1 * M + column
        x = _load_input(u, factor, mask, row_at + position, row_at_mask + position, position < length)
        x = rounded(x.to(tl.float32), fr.dtype)
        xr = dot(x, fr)
        xi = dot(x, fi)
        wr = tl.load(outer_twiddle + column * N1 + n1)
        wi = tl.load(outer_twiddle + N1 * M + column * N1 + n1)
        xr, xi = _multiply(xr, xi, wr, wi, False)
        tl.store(scratch + position, rounded(xr, scratch.dtype.element_ty))
        tl.store(scratch + N1 * M + position, rounded(xi, scratch.dtype.element_ty))


@triton.jit
def _columns_out(
    scratch, out, ungated, gate, add, mask, row_at, row_at_mask, length, outer, outer_twiddle,
    N1: tl.constexpr, M: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Last phase: the inverse of the first, real part only."""
    fr, fi = _matrix_transposed(outer, N1)
    for start in range(0, M, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[:, None]
        n1 = tl.arange(0, N1)[None, :]
        position = n1 * M + column
        xr = tl.load(scratch + position).to(tl.float32)
        xi = tl.load(scratch + N1 * M + position).to(tl.float32)
        wr = tl.load(outer_twiddle + column * N1 + n1)
        wi = tl.load(outer_twiddle + N1 * M + column * N1 + n1)
        xr, xi = _multiply(xr, xi, wr, wi, True)
        y = dot(rounded(xr, fr.dtype), fr)
        y = dot(rounded(xi, fr.dtype), fi, y)
        _store_output(y, out, ungated, gate, add, mask, row_at + position, row_at_mask + position, position < length)


@triton.jit
def _rows_in(
    scratch, k1, first, twiddle, last,
    N1: tl.constexpr, G: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Second phase, first half: rows k1.. of the scratch buffer to frequencies (G kp, kq)."""
    at = _rows_at(k1, G, P, Q)
    xr = tl.reshape(tl.load(scratch + at), (G * Q, P))
    xi = tl.reshape(tl.load(scratch + N1 * P * Q + at), (G * Q, P))
    fr, fi = _matrix(first, P)
    xr, xi = _complex_dot(xr, xi, fr, fi, False)
    return _to_frequencies(xr, xi, twiddle, last, G, P, Q)


@triton.jit
def _rows_out(
    xr, xi, scratch, k1, first, twiddle, last,
    N1: tl.constexpr, G: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Second phase, second half: back to where `_rows_in` read."""
    xr, xi = _from_frequencies(xr, xi, twiddle, last, G, P, Q)
    fr, fi = _matrix(first, P)
    xr, xi = _complex_dot(xr, xi, fr, fi, True)
    at = _rows_at(k1, G, P, Q)
    dtype = scratch.dtype.element_ty
    tl.store(scratch + at, rounded(tl.reshape(xr, (G, Q, P)), dtype))
    tl.store(scratch + N1 * P * Q + at, rounded(tl.reshape(xi, (G, Q, P)), dtype))


@triton.jit
def _rows_at(k1, G: tl.constexpr, P: tl.constexpr, Q: tl.constexpr):
    row = k1 + tl.arange(0, G)[:, None, None]
    return row * (P * Q) + tl.arange(0, P)[None, None, :] * Q + tl.arange(0, Q)[None, :, None]


@triton.jit
def _frequencies_at(k1, G: tl.constexpr, P: tl.constexpr, Q: tl.constexpr):
    return k1 * (P * Q) + tl.arange(0, G * P)[:, None] * Q + tl.arange(0, Q)[None, :]


@triton.jit
def _convolve_in_phases(
    u, mask, spectrum, out, ungated, gate, add,
    outer, outer_twiddle, first, twiddle, last, scratch,
    n_rows, batch, width, length,
    N1: tl.constexpr, G: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    M: tl.constexpr = P * Q
    stride = tl.full((), length, tl.int64)
    scratch += tl.program_id(0).to(tl.int64) * (2 * N1 * M)
    for row in range(tl.program_id(0), n_rows, tl.num_programs(0)):
        channel = row // batch
        b = row % batch
        row_at = (b * width + channel) * stride
        row_at_mask = b * stride
        _columns_in(
            u, None, mask, row_at, row_at_mask, length, outer, outer_twiddle, scratch,
            N1, M, COLUMNS,
        )  # fmt: skip
        tl.debug_barrier()
        filter_ = spectrum + channel.to(tl.int64) * (2 * N1 * M)
        for k1 in range(0, N1, G):
            xr, xi = _rows_in(scratch, k1, first, twiddle, last, N1, G, P, Q)
            at = _frequencies_at(k1, G, P, Q)
            xr, xi = _multiply(xr, xi, tl.load(filter_ + at), tl.load(filter_ + N1 * M + at), False)
            _rows_out(xr, xi, scratch, k1, first, twiddle, last, N1, G, P, Q)
        tl.debug_barrier()
        _columns_out(
            scratch, out, ungated, gate, add, None, row_at, row_at_mask, length, outer, outer_twiddle,
            N1, M, COLUMNS,
        )  # fmt: skip
        tl.debug_barrier()


@triton.jit
def _gradients_in_phases(
    u, mask, d_out, gate, spectrum, d_u, d_spectrum,
    outer, outer_twiddle, first, twiddle, last, scratch,
    batch, width, length,
    N1: tl.constexpr, G: tl.constexpr, P: tl.constexpr, Q: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """As `_gradients_on_chip`; the sum over the batch grows in `d_spectrum`, which only this program touches."""
    M: tl.constexpr = P * Q
    stride = tl.full((), length, tl.int64)
    scratch_u = scratch + tl.program_id(0).to(tl.int64) * (4 * N1 * M)
    scratch_g = scratch_u + 2 * N1 * M
    for channel in range(tl.program_id(0), width, tl.num_programs(0)):
        filter_at = channel * tl.full((), 2 * N1 * M, tl.int64)
        for b in range(batch):
            row_at = (b * width + channel) * stride
            row_at_mask = b * stride
            _columns_in(
                u, None, mask, row_at, row_at_mask, length, outer, outer_twiddle, scratch_u,
                N1, M, COLUMNS,
            )  # fmt: skip
            _columns_in(
                d_out, gate, None, row_at, row_at_mask, length, outer, outer_twiddle, scratch_g,
                N1, M, COLUMNS,
            )  # fmt: skip
            tl.debug_barrier()
            for k1 in range(0, N1, G):
                xr, xi = _rows_in(scratch_u, k1, first, twiddle, last, N1, G, P, Q)
                gr, gi = _rows_in(scratch_g, k1, first, twiddle, last, N1, G, P, Q)
                at = filter_at + _frequencies_at(k1, G, P, Q)
                pr, pi = _multiply(gr, gi, xr, xi, True)
                if b > 0:
                    pr += tl.load(d_spectrum + at)
                    pi += tl.load(d_spectrum + N1 * M + at)
                tl.store(d_spectrum + at, pr)
                tl.store(d_spectrum + N1 * M + at, pi)
                gr, gi = _multiply(gr, gi, tl.load(spectrum + at), tl.load(spectrum + N1 * M + at), True)
                _rows_out(gr, gi, scratch_g, k1, first, twiddle, last, N1, G, P, Q)
            tl.debug_barrier()
            _columns_out(
                scratch_g, d_u, None, None, None, mask, row_at, row_at_mask, length, outer, outer_twiddle,
                N1, M, COLUMNS,
            )  # fmt: skip
            tl.debug_barrier()


# --- launches


class _Constants(NamedTuple):
    """A plan's tables as the kernels read them: (2, ...) real and imaginary, matrices in the operands' dtype."""

    outer: torch.Tensor | None
    outer_twiddle: torch.Tensor | None
    first: torch.Tensor
    twiddle: torch.Tensor
    last: torch.Tensor


@lru_cache(maxsize=32)
def _constants(plan: Plan, device: torch.device, dtype: torch.dtype) -> _Constants:
    made = tables(plan, device)
    # Factors are at most 1 and only ever multiplied in fp32: fp16 keeps three more bits of them than bf16.
    factors = torch.float32 if dtype == torch.float32 else torch.float16
    return _Constants(
        None if made.outer is None else _planes(made.outer, dtype),
        None if made.outer_twiddle is None else _planes(made.outer_twiddle, factors),
        _planes(made.first, dtype),
        _planes(made.first_twiddle, factors),
        _planes(made.last, dtype),
    )


def _planes(table: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.stack([table.real, table.imag]).to(dtype)


def _programs(tasks: int, device: torch.device) -> int:
    if device.type != "cuda":
        return min(tasks, 2)
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return min(tasks, PROGRAMS_PER_MULTIPROCESSOR * multiprocessors)


def _group(plan: Plan) -> int:
    """Rows that go through the chip together."""
    rows = max(TILE // (plan.p * plan.q), 1)
    return rows if plan.n1 == 1 else min(rows, plan.n1)


def _warps(plan: Plan) -> int:
    return max(TILE, plan.p * plan.q) // 512


def unsupported(u: torch.Tensor) -> str | None:
    """Why this path cannot convolve (B, D, L), or None if it can."""
    if u.shape[-1] > MAX_POINTS:
        return f"the input has {u.shape[-1]:,} positions, the kernel takes up to {MAX_POINTS:,}"
    return unsupported_dtype(u.dtype)


def convolve(
    u: torch.Tensor,
    spectrum: torch.Tensor,
    plan: Plan,
    gate: torch.Tensor | None = None,
    add: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    ungated: torch.Tensor | None = None,
) -> torch.Tensor:
    """Convolve (B, D, L) with filters given by their spectra, without gradients.

    Args:
        u: input; products take its dtype (bf16, fp16, fp32).
        spectrum: (D, 2, N) of `monarch.spectrum` in any floating dtype.
        gate: factor of the result, (B, D, L).
        add: summand of the gated result, (B, D, L).
        mask: (B, L) bool, False at pads, which count as zero whatever they hold.
        ungated: (B, D, L), overwritten with the result before the gate.

    Returns:
        (B, D, L) in u's dtype.
    """
    batch, width, length = u.shape
    u, spectrum = u.contiguous(), spectrum.contiguous()
    gate = None if gate is None else gate.contiguous()
    add = None if add is None else add.contiguous()
    mask = None if mask is None else mask.contiguous()
    out = torch.empty_like(u)
    n_rows = batch * width
    constants = _constants(plan, u.device, u.dtype)
    group = _group(plan)
    with on_device_of(u):
        if plan.n1 == 1:
            _convolve_on_chip[(triton.cdiv(n_rows, group),)](
                u, mask, spectrum, out, ungated, gate, add, constants.first, constants.twiddle, constants.last,
                n_rows, batch, width, length,
                G=group, P=plan.p, Q=plan.q, num_warps=_warps(plan), **OPTIONS,
            )  # fmt: skip
        else:
            programs = _programs(n_rows, u.device)
            scratch = torch.empty(programs, 2, plan.points, dtype=u.dtype, device=u.device)
            _convolve_in_phases[(programs,)](
                u, mask, spectrum, out, ungated, gate, add, *constants, scratch,
                n_rows, batch, width, length,
                N1=plan.n1, G=group, P=plan.p, Q=plan.q, COLUMNS=TILE // plan.n1,
                num_warps=_warps(plan), **OPTIONS,
            )  # fmt: skip
    return out


class _LongConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, spectrum, plan, gate, add, mask):
        u = u.contiguous()
        spectrum = spectrum.to(u.dtype).contiguous()
        ungated = torch.empty_like(u) if gate is not None and ctx.needs_input_grad[3] else None
        out = convolve(u, spectrum, plan, gate, add, mask, ungated)
        ctx.plan = plan
        ctx.save_for_backward(u, spectrum, gate, mask, ungated)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        u, spectrum, gate, mask, ungated = ctx.saved_tensors
        d_out = d_out.contiguous()
        d_u = d_spectrum = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            d_u, d_spectrum = _gradients(u, spectrum, ctx.plan, gate, mask, d_out)
        d_gate = None if ungated is None else d_out * ungated
        d_add = d_out if ctx.needs_input_grad[4] else None
        return d_u, d_spectrum, None, d_gate, d_add, None


def _gradients(
    u: torch.Tensor,
    spectrum: torch.Tensor,
    plan: Plan,
    gate: torch.Tensor | None,
    mask: torch.Tensor | None,
    d_out: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the input, (B, D, L), and of the spectrum, (D, 2, N) fp32 and summed over the batch."""
    batch, width, length = u.shape
    gate = None if gate is None else gate.contiguous()
    mask = None if mask is None else mask.contiguous()
    d_u = torch.empty_like(u)
    d_spectrum = torch.empty(width, 2, plan.points, dtype=torch.float32, device=u.device)
    constants = _constants(plan, u.device, u.dtype)
    with on_device_of(u):
        if plan.n1 == 1:
            _gradients_on_chip[(width,)](
                u, mask, d_out, gate, spectrum, d_u, d_spectrum, constants.first, constants.twiddle, constants.last,
                batch, width, length,
                P=plan.p, Q=plan.q, num_warps=8 if plan.p * plan.q >= 2048 else 4, num_stages=1, **OPTIONS,
            )  # fmt: skip
        else:
            programs = _programs(width, u.device)
            scratch = torch.empty(programs, 4, plan.points, dtype=u.dtype, device=u.device)
            # Two rows are held at a time, so each takes half a tile.
            _gradients_in_phases[(programs,)](
                u, mask, d_out, gate, spectrum, d_u, d_spectrum, *constants, scratch,
                batch, width, length,
                N1=plan.n1, G=max(_group(plan) // 2, 1), P=plan.p, Q=plan.q, COLUMNS=TILE // plan.n1,
                num_warps=_warps(plan), **OPTIONS,
            )  # fmt: skip
    return d_u, d_spectrum


def long_conv(
    u: torch.Tensor,
    kernel: torch.Tensor,
    kernel_rev: torch.Tensor | None,
    skip: torch.Tensor,
    gate: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `m2rag_kernels.long_conv.naive.long_conv`; the filters' spectra are computed in fp32 whatever autocast says.

    Raises:
        ValueError: the input is longer than 32,768 positions.
    """
    chosen = plan(u.shape[-1])
    with torch.autocast(u.device.type, enabled=False):
        filters = spectrum(kernel, kernel_rev, skip, chosen)
        gate = None if gate is None else gate.to(u.dtype)
        return _LongConv.apply(u, filters, chosen, gate, None, mask)
