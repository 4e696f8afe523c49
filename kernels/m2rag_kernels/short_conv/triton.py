"""Short convolution and first gate on GPUs: one pass over the projections, and one or two back.

The projections are token-major, the long convolution wants every channel as a row: tiles are read along the channels
and written along the positions. The three taps are three loads of the same tile, shifted by a row each; all but the
first find it in L1. Everything between load and store is fp32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from m2rag_kernels.launch import OPTIONS, on_device_of, unsupported_dtype
from m2rag_kernels.tensor_core import rounded

FORWARD_TILE = {"BLOCK_L": 64, "BLOCK_D": 32, "num_warps": 8}
BACKWARD_TILE = {"BLOCK_L": 32, "BLOCK_D": 32, "num_warps": 8}

# Partial sums of the gradients of weight and bias per channel: bounds their memory, and leaves enough programs.
SPLITS = 256


@triton.jit
def _load_rows(row_ptr, rows, stride_l, columns, n_columns, mask_ptr, stride_ml, length, HAS_MASK: tl.constexpr):
    """Rows of a token-major tile in fp32, (BLOCK_L, BLOCK_D); zero outside of the sequence and at pads."""
    kept = (rows >= 0) & (rows < length)
    if HAS_MASK:
        kept = kept & (tl.load(mask_ptr + rows * stride_ml, mask=kept, other=0) != 0)
    tile = row_ptr[None, :] + rows.to(tl.int64)[:, None] * stride_l
    return tl.load(tile, mask=kept[:, None] & (columns < n_columns)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _load_grad(
    grad_ptr, rows, stride_l, columns, stride_d, n_columns, mask_ptr, stride_ml, length, HAS_MASK: tl.constexpr
):
    """The same of a channel-major gradient."""
    kept = rows < length
    if HAS_MASK:
        kept = kept & (tl.load(mask_ptr + rows * stride_ml, mask=kept, other=0) != 0)
    tile = grad_ptr + rows.to(tl.int64)[:, None] * stride_l + columns.to(tl.int64)[None, :] * stride_d
    return tl.load(tile, mask=kept[:, None] & (columns < n_columns)[None, :], other=0.0).to(tl.float32)


@triton.jit
def _load_taps(taps_ptr, bias_ptr, columns, n_columns):
    """w0, w1, w2 and b of some channels, (1, BLOCK_D) each, from one of the three parts of taps (3, 3D)."""
    ok = columns < n_columns
    w0 = tl.load(taps_ptr + columns, mask=ok, other=0.0).to(tl.float32)
    w1 = tl.load(taps_ptr + 3 * n_columns + columns, mask=ok, other=0.0).to(tl.float32)
    w2 = tl.load(taps_ptr + 6 * n_columns + columns, mask=ok, other=0.0).to(tl.float32)
    b = tl.load(bias_ptr + columns, mask=ok, other=0.0).to(tl.float32)
    return w0[None, :], w1[None, :], w2[None, :], b[None, :]


@triton.jit
def _convolve(
    row_ptr, taps_ptr, bias_ptr, rows, stride_l, columns, n_columns, mask_ptr, stride_ml, length,
    HAS_MASK: tl.constexpr,
):  # fmt: skip
    """b + w0 x[i - 2] + w1 x[i - 1] + w2 x[i] for the given rows and channels."""
    w0, w1, w2, b = _load_taps(taps_ptr, bias_ptr, columns, n_columns)
    x0 = _load_rows(row_ptr, rows - 2, stride_l, columns, n_columns, mask_ptr, stride_ml, length, HAS_MASK)
    x1 = _load_rows(row_ptr, rows - 1, stride_l, columns, n_columns, mask_ptr, stride_ml, length, HAS_MASK)
    x2 = _load_rows(row_ptr, rows, stride_l, columns, n_columns, mask_ptr, stride_ml, length, HAS_MASK)
    return b + w0 * x0 + w1 * x1 + w2 * x2


@triton.jit
def short_conv_fwd_kernel(
    x_ptr, taps_ptr, bias_ptr, mask_ptr, gated_ptr, gate_ptr,
    length, channels, stride_xb, stride_xl, stride_xd, stride_mb, stride_ml,
    HAS_MASK: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """gated = c_v c_1 (0 at pads), gate = c_2 with c_p the convolution of projection p. Grid: (D, L, B) in tiles."""
    columns = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    rows = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    batch = tl.program_id(2).to(tl.int64)
    row_ptr = x_ptr + batch * stride_xb + columns.to(tl.int64) * stride_xd
    part = tl.cast(channels, tl.int64) * stride_xd
    if HAS_MASK:
        mask_ptr += batch * stride_mb
    c1 = _convolve(
        row_ptr, taps_ptr, bias_ptr, rows, stride_xl, columns, channels, mask_ptr, stride_ml, length, HAS_MASK
    )
    cv = _convolve(
        row_ptr + 2 * part, taps_ptr + 2 * channels, bias_ptr + 2 * channels,
        rows, stride_xl, columns, channels, mask_ptr, stride_ml, length, HAS_MASK,
    )  # fmt: skip
    gated = c1 * cv
    if HAS_MASK:
        kept = tl.load(mask_ptr + rows * stride_ml, mask=rows < length, other=0) != 0
        gated = tl.where(kept[:, None], gated, 0.0)
    out = (batch * channels + columns)[None, :] * length + rows[:, None]
    inside = (rows < length)[:, None] & (columns < channels)[None, :]
    tl.store(gated_ptr + out, rounded(gated, gated_ptr.dtype.element_ty), mask=inside)
    c2 = _convolve(
        row_ptr + part, taps_ptr + channels, bias_ptr + channels,
        rows, stride_xl, columns, channels, mask_ptr, stride_ml, length, HAS_MASK,
    )  # fmt: skip
    tl.store(gate_ptr + out, rounded(c2, gate_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _store_partial(partial_ptr, columns, channels, s0, s1, s2, sb):
    """Sums of this program for w0, w1, w2 and b of some channels."""
    ok = columns < channels
    row = 3 * channels
    tl.store(partial_ptr + columns, tl.sum(s0, axis=0), mask=ok)
    tl.store(partial_ptr + row + columns, tl.sum(s1, axis=0), mask=ok)
    tl.store(partial_ptr + 2 * row + columns, tl.sum(s2, axis=0), mask=ok)
    tl.store(partial_ptr + 3 * row + columns, tl.sum(sb, axis=0), mask=ok)


@triton.jit(do_not_specialize=["batches"])
def short_conv_bwd_kernel_gated(
    x_ptr, taps_ptr, bias_ptr, mask_ptr, grad_ptr, d_x_ptr, partial_ptr,
    batches, length, channels, stride_xb, stride_xl, stride_xd, stride_mb, stride_ml, stride_gb, stride_gd, stride_gl,
    HAS_MASK: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients through gated = c_v c_1 for projections 1 and v. Grid: (D in tiles, splits of the (B, L) tiles).

    d_x[i] = w2 d_c[i] + w1 d_c[i + 1] + w0 d_c[i + 2], d_w_k = sum_i d_c[i] x[i - 2 + k], d_b = sum_i d_c[i]; the c of
    three neighbouring positions are computed again from five rows of x.
    """
    columns = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    part = tl.cast(channels, tl.int64) * stride_xd
    inside_d = (columns < channels)[None, :]
    w10, w11, w12, b1 = _load_taps(taps_ptr, bias_ptr, columns, channels)
    wv0, wv1, wv2, bv = _load_taps(taps_ptr + 2 * channels, bias_ptr + 2 * channels, columns, channels)
    zeros = tl.zeros((BLOCK_L, BLOCK_D), tl.float32)
    s10, s11, s12, s1b = zeros, zeros, zeros, zeros
    sv0, sv1, sv2, svb = zeros, zeros, zeros, zeros
    tiles_l = tl.cdiv(length, BLOCK_L)
    for tile in range(tl.program_id(1), batches * tiles_l, tl.num_programs(1)):
        batch = (tile // tiles_l).to(tl.int64)
        rows = tile % tiles_l * BLOCK_L + tl.arange(0, BLOCK_L)
        first_ptr = x_ptr + batch * stride_xb + columns.to(tl.int64) * stride_xd
        v_ptr = first_ptr + 2 * part
        g_ptr = grad_ptr + batch * stride_gb
        m_ptr = mask_ptr
        if HAS_MASK:
            m_ptr = mask_ptr + batch * stride_mb
        x0 = _load_rows(first_ptr, rows - 2, stride_xl, columns, channels, m_ptr, stride_ml, length, HAS_MASK)
        x1 = _load_rows(first_ptr, rows - 1, stride_xl, columns, channels, m_ptr, stride_ml, length, HAS_MASK)
        x2 = _load_rows(first_ptr, rows, stride_xl, columns, channels, m_ptr, stride_ml, length, HAS_MASK)
        v0 = _load_rows(v_ptr, rows - 2, stride_xl, columns, channels, m_ptr, stride_ml, length, HAS_MASK)
        v1 = _load_rows(v_ptr, rows - 1, stride_xl, columns, channels, m_ptr, stride_ml, length, HAS_MASK)
        v2 = _load_rows(v_ptr, rows, stride_xl, columns, channels, m_ptr, stride_ml, length, HAS_MASK)
        grad = _load_grad(g_ptr, rows, stride_gl, columns, stride_gd, channels, m_ptr, stride_ml, length, HAS_MASK)
        d_c1 = grad * (bv + wv0 * v0 + wv1 * v1 + wv2 * v2)
        d_cv = grad * (b1 + w10 * x0 + w11 * x1 + w12 * x2)
        s10 += d_c1 * x0
        s11 += d_c1 * x1
        s12 += d_c1 * x2
        s1b += d_c1
        sv0 += d_cv * v0
        sv1 += d_cv * v1
        sv2 += d_cv * v2
        svb += d_cv
        d_x = w12 * d_c1
        d_v = wv2 * d_cv

        x3 = _load_rows(first_ptr, rows + 1, stride_xl, columns, channels, m_ptr, stride_ml, length, HAS_MASK)
        v3 = _load_rows(v_ptr, rows + 1, stride_xl, columns, channels, m_ptr, stride_ml, length, HAS_MASK)
        grad = _load_grad(g_ptr, rows + 1, stride_gl, columns, stride_gd, channels, m_ptr, stride_ml, length, HAS_MASK)
        d_x += w11 * grad * (bv + wv0 * v1 + wv1 * v2 + wv2 * v3)
        d_v += wv1 * grad * (b1 + w10 * x1 + w11 * x2 + w12 * x3)

        x4 = _load_rows(first_ptr, rows + 2, stride_xl, columns, channels, m_ptr, stride_ml, length, HAS_MASK)
        v4 = _load_rows(v_ptr, rows + 2, stride_xl, columns, channels, m_ptr, stride_ml, length, HAS_MASK)
        grad = _load_grad(g_ptr, rows + 2, stride_gl, columns, stride_gd, channels, m_ptr, stride_ml, length, HAS_MASK)
        d_x += w10 * grad * (bv + wv0 * v2 + wv1 * v3 + wv2 * v4)
        d_v += wv0 * grad * (b1 + w10 * x2 + w11 * x3 + w12 * x4)

        if HAS_MASK:
            kept = (tl.load(m_ptr + rows * stride_ml, mask=rows < length, other=0) != 0)[:, None]
            d_x = tl.where(kept, d_x, 0.0)
            d_v = tl.where(kept, d_v, 0.0)
        out = d_x_ptr + (batch * length + rows)[:, None] * (3 * channels) + columns[None, :]
        inside = (rows < length)[:, None] & inside_d
        tl.store(out, rounded(d_x, d_x_ptr.dtype.element_ty), mask=inside)
        tl.store(out + 2 * channels, rounded(d_v, d_x_ptr.dtype.element_ty), mask=inside)
    partial_ptr += tl.program_id(1) * 12 * channels
    _store_partial(partial_ptr, columns, channels, s10, s11, s12, s1b)
    _store_partial(partial_ptr + 2 * channels, columns, channels, sv0, sv1, sv2, svb)


@triton.jit(do_not_specialize=["batches"])
def short_conv_bwd_kernel_gate(
    x_ptr, taps_ptr, mask_ptr, grad_ptr, d_x_ptr, partial_ptr,
    batches, length, channels, stride_xb, stride_xl, stride_xd, stride_mb, stride_ml, stride_gb, stride_gd, stride_gl,
    HAS_MASK: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients through gate = c_2, with d_c the incoming gradient itself. Grid as above."""
    columns = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    part = tl.cast(channels, tl.int64) * stride_xd
    inside_d = (columns < channels)[None, :]
    w0, w1, w2, _ = _load_taps(taps_ptr + channels, taps_ptr, columns, channels)
    zeros = tl.zeros((BLOCK_L, BLOCK_D), tl.float32)
    s0, s1, s2, sb = zeros, zeros, zeros, zeros
    tiles_l = tl.cdiv(length, BLOCK_L)
    for tile in range(tl.program_id(1), batches * tiles_l, tl.num_programs(1)):
        batch = (tile // tiles_l).to(tl.int64)
        rows = tile % tiles_l * BLOCK_L + tl.arange(0, BLOCK_L)
        row_ptr = x_ptr + batch * stride_xb + part + columns.to(tl.int64) * stride_xd
        g_ptr = grad_ptr + batch * stride_gb
        m_ptr = mask_ptr
        if HAS_MASK:
            m_ptr = mask_ptr + batch * stride_mb
        grad = _load_grad(g_ptr, rows, stride_gl, columns, stride_gd, channels, m_ptr, stride_ml, length, False)
        x0 = _load_rows(row_ptr, rows - 2, stride_xl, columns, channels, m_ptr, stride_ml, length, HAS_MASK)
        s0 += grad * x0
        x1 = _load_rows(row_ptr, rows - 1, stride_xl, columns, channels, m_ptr, stride_ml, length, HAS_MASK)
        s1 += grad * x1
        x2 = _load_rows(row_ptr, rows, stride_xl, columns, channels, m_ptr, stride_ml, length, HAS_MASK)
        s2 += grad * x2
        sb += grad
        d_x = w2 * grad
        d_x += w1 * _load_grad(
            g_ptr, rows + 1, stride_gl, columns, stride_gd, channels, m_ptr, stride_ml, length, False
        )
        d_x += w0 * _load_grad(
            g_ptr, rows + 2, stride_gl, columns, stride_gd, channels, m_ptr, stride_ml, length, False
        )
        if HAS_MASK:
            kept = tl.load(m_ptr + rows * stride_ml, mask=rows < length, other=0) != 0
            d_x = tl.where(kept[:, None], d_x, 0.0)
        out = d_x_ptr + (batch * length + rows)[:, None] * (3 * channels) + channels + columns[None, :]
        tl.store(out, rounded(d_x, d_x_ptr.dtype.element_ty), mask=(rows < length)[:, None] & inside_d)
    _store_partial(partial_ptr + tl.program_id(1) * 12 * channels + channels, columns, channels, s0, s1, s2, sb)


class _ShortConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, mask):
        batch, length, width = x.shape
        channels = width // 3
        # Neighbouring channels side by side: their taps are loaded as vectors.
        taps, bias = weight[:, 0].t().contiguous(), bias.contiguous()
        mask = None if mask is None else mask.view(torch.uint8)
        gated = x.new_empty(batch, channels, length)
        gate = x.new_empty(batch, channels, length)
        tile = FORWARD_TILE
        grid = (triton.cdiv(channels, tile["BLOCK_D"]), triton.cdiv(length, tile["BLOCK_L"]), batch)
        with on_device_of(x):
            short_conv_fwd_kernel[grid](
                x, taps, bias, mask, gated, gate,
                length, channels, *x.stride(), *_mask_strides(mask), HAS_MASK=mask is not None, **tile, **OPTIONS,
            )  # fmt: skip
        ctx.save_for_backward(x, taps, bias, mask)
        return gated, gate

    @staticmethod
    @once_differentiable
    def backward(ctx, d_gated, d_gate):
        x, taps, bias, mask = ctx.saved_tensors
        batch, length, width = x.shape
        channels = width // 3
        tile = BACKWARD_TILE
        splits = max(1, min(SPLITS, batch * triton.cdiv(length, tile["BLOCK_L"])))
        d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        partial = torch.empty(splits, 4, width, dtype=torch.float32, device=x.device)
        grid = (triton.cdiv(channels, tile["BLOCK_D"]), splits)
        sizes = batch, length, channels, *x.stride(), *_mask_strides(mask)
        options = {"HAS_MASK": mask is not None, **tile, **OPTIONS}
        with on_device_of(x):
            short_conv_bwd_kernel_gated[grid](
                x, taps, bias, mask, d_gated, d_x, partial, *sizes, *d_gated.stride(), **options
            )
            short_conv_bwd_kernel_gate[grid](x, taps, mask, d_gate, d_x, partial, *sizes, *d_gate.stride(), **options)
        sums = partial.sum(0)
        d_weight = sums[:3].t()[:, None].to(taps.dtype)
        return d_x, d_weight, sums[3].to(bias.dtype), None


def _mask_strides(mask: torch.Tensor | None) -> tuple[int, ...]:
    return (0, 0) if mask is None else mask.stride()


def unsupported(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None = None
) -> str | None:
    """Why `short_conv` cannot take these tensors, or None if it can."""
    if weight.shape[1:] != (1, 3):
        return f"the weight has the shape {tuple(weight.shape)}, the kernel is for (3D, 1, 3)"
    return unsupported_dtype(x.dtype)


def short_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `m2rag_kernels.short_conv.naive.short_conv`; computes in fp32, returns the dtype of `x`.

    `x` may have any strides. Both results are contiguous.
    """
    return _ShortConv.apply(x, weight, bias, mask)
