"""The block-diagonal GLU MLP on GPUs: two trips to memory forward, the hidden activations never among them.

One kernel computes one block of outputs for some tokens: it keeps their gate and value channels in shared memory, goes
over the hidden units of the block in chunks, and adds bias and residual; a second one normalises. The backward computes
the hidden activations again, for some tokens at a time, and leaves the products of the weights' gradients to cuBLAS.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from m2rag_kernels.dispatch import needs_grad
from m2rag_kernels.launch import OPTIONS, capability, on_device_of, unsupported_dtype
from m2rag_kernels.tensor_core import INTERPRETED, dot, rounded

# Widest block of channels whose accumulators fit into registers, and widest row for the LayerNorm.
MAX_BLOCK_WIDTH = 512
MAX_WIDTH = 8192

# Tokens the backward works on at a time: bounds its memory, 3 x intermediate size x this.
CHUNK_TOKENS = 16384

# Partial sums of the gradients of norm and bias per channel.
SPLITS = 512


@triton.jit
def _piece(p: tl.constexpr, P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr):
    """Channels of piece p of a block. Tiles are powers of two wide, blocks of channels are cut into up to three."""
    if p == 0:
        return tl.arange(0, P0)
    elif p == 1:
        return P0 + tl.arange(0, P1)
    else:
        return P0 + P1 + tl.arange(0, P2)


@triton.jit
def _load_block(
    ptr, rows, n_rows, stride, first, dtype: tl.constexpr,
    WIDTH: tl.constexpr, PIECES: tl.constexpr, P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr,
):  # fmt: skip
    """Channels first .. first + WIDTH of some tokens, a tile for every piece; zeros beyond."""
    tiles = ()
    for p in tl.static_range(PIECES):
        columns = _piece(p, P0, P1, P2)
        inside = (rows < n_rows)[:, None] & (columns < WIDTH)[None, :]
        tile = ptr + rows.to(tl.int64)[:, None] * stride + (first + columns)[None, :]
        loaded = tl.load(tile, mask=inside, other=0.0).to(tl.float32)
        tiles = tiles + (rounded(loaded, dtype),)  # type: ignore[assignment]
    return tiles


@triton.jit
def _fast(x, instruction: tl.constexpr, precise):
    """One instruction of the special function unit; without the tests for denormals that Triton puts around it."""
    if INTERPRETED:
        return precise
    return tl.inline_asm_elementwise(instruction, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def _normal(x):
    """P(X <= x) and exp(-x^2 / 2) of the standard normal distribution.

    Abramowitz and Stegun 7.1.26, |error| < 1e-7: the library's erf branches at every element, which holds up the
    tensor cores.
    """
    exponent = -0.7213475204444817 * x * x
    density = _fast(exponent, "ex2.approx.ftz.f32 $0, $1;", tl.exp2(exponent))
    divisor = 1.0 + 0.23164190 * tl.abs(x)
    t = _fast(divisor, "rcp.approx.ftz.f32 $0, $1;", 1.0 / divisor)
    tail = (0.127414796 + (-0.142248368 + (0.710706871 + (-0.726576014 + 0.530702715 * t) * t) * t) * t) * t * density
    return tl.where(x < 0, tail, 1.0 - tail), density


@triton.jit
def _gelu(x):
    cdf, _ = _normal(x)
    return x * cdf


@triton.jit
def _gelu_and_slope(x):
    cdf, density = _normal(x)
    return x * cdf, cdf + x * 0.3989422804014327 * density


@triton.jit
def _dropout_scale(seed, probability, tokens, units):
    """0 or 1 / (1 - probability) for every (token, hidden unit): a function of seed, token and unit alone."""
    unit = tl.broadcast_to(units[None, :], (tokens.shape[0], units.shape[0]))
    token = tl.broadcast_to(tokens[:, None], (tokens.shape[0], units.shape[0]))
    zero = unit * 0
    random, _, _, _ = tl.philox(seed, unit, token, zero, zero)
    uniform = (random >> 8).to(tl.float32) * (1.0 / 16777216.0)
    return tl.where(uniform < probability, 0.0, 1.0 / (1.0 - probability))


@triton.jit
def _products(
    acc, x, w_ptr, units, HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr, PIECES: tl.constexpr, P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr,
):  # fmt: skip
    """acc + x W^T for some hidden units, piece by piece."""
    for p in tl.static_range(PIECES):
        columns = _piece(p, P0, P1, P2)
        inside = (columns < WIDTH)[:, None] & (units < HIDDEN)[None, :]
        w = tl.load(w_ptr + units[None, :] * WIDTH + columns[:, None], mask=inside, other=0.0)
        acc = dot(x[p], w, acc)
    return acc


@triton.jit(do_not_specialize=["n_tokens", "seed"])
def blockdiag_glu_fwd_kernel(
    x_ptr, w_in_ptr, w_out_ptr, bias_ptr, y_ptr, n_tokens, seed, probability,
    N_BLOCKS: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
    PIECES: tl.constexpr, P0: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """y_k = W_out_k (GELU(W_gate x_gate) (W_value x_value)) + b_k + x_k for output block k. Grid: (tokens / M) nb.

    Hidden block k has its gates in rows (k % 2) HIDDEN .. of input block k // 2, its values in those of block
    nb / 2 + k // 2.
    """
    dtype: tl.constexpr = w_in_ptr.dtype.element_ty
    k = tl.program_id(0) % N_BLOCKS
    rows = tl.program_id(0) // N_BLOCKS * BLOCK_M + tl.arange(0, BLOCK_M)
    gate_block = k // 2
    value_block = N_BLOCKS // 2 + k // 2
    stride = N_BLOCKS * WIDTH
    x_gate = _load_block(x_ptr, rows, n_tokens, stride, gate_block * WIDTH, dtype, WIDTH, PIECES, P0, P1, P2)
    x_value = _load_block(x_ptr, rows, n_tokens, stride, value_block * WIDTH, dtype, WIDTH, PIECES, P0, P1, P2)
    w_gate_ptr = w_in_ptr + (gate_block * 2 + k % 2) * HIDDEN * WIDTH
    w_value_ptr = w_in_ptr + (value_block * 2 + k % 2) * HIDDEN * WIDTH
    w_out_ptr += k * WIDTH * HIDDEN

    y = ()
    for p in tl.static_range(PIECES):
        columns = _piece(p, P0, P1, P2)
        y = y + (tl.zeros((BLOCK_M, columns.shape[0]), tl.float32),)  # type: ignore[assignment]
    for h in range(0, HIDDEN, BLOCK_H):
        units = h + tl.arange(0, BLOCK_H)
        zeros = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
        gate = _products(zeros, x_gate, w_gate_ptr, units, HIDDEN, WIDTH, PIECES, P0, P1, P2)
        value = _products(zeros, x_value, w_value_ptr, units, HIDDEN, WIDTH, PIECES, P0, P1, P2)
        hidden = _gelu(gate) * value
        if DROPOUT:
            hidden *= _dropout_scale(seed, probability, rows, k * HIDDEN + units)
        hidden = rounded(hidden, dtype)
        added = ()
        for p in tl.static_range(PIECES):
            columns = _piece(p, P0, P1, P2)
            inside = (columns < WIDTH)[None, :] & (units < HIDDEN)[:, None]
            w_out = tl.load(w_out_ptr + columns[None, :] * HIDDEN + units[:, None], mask=inside, other=0.0)
            added = added + (dot(hidden, w_out, y[p]),)  # type: ignore[assignment]
        y = added

    for p in tl.static_range(PIECES):
        columns = _piece(p, P0, P1, P2)
        inside = (rows < n_tokens)[:, None] & (columns < WIDTH)[None, :]
        offsets = rows.to(tl.int64)[:, None] * (N_BLOCKS * WIDTH) + (k * WIDTH + columns)[None, :]
        bias = tl.load(bias_ptr + k * WIDTH + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
        residual = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        tl.store(y_ptr + offsets, rounded(y[p] + bias[None, :] + residual, y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _normalise(y_ptr, rows, n_rows, columns, eps, WIDTH: tl.constexpr):
    """Rows with zero mean and unit variance, their 1 / standard deviation (ROWS, 1), and the mask of the tile."""
    inside = (rows < n_rows)[:, None] & (columns < WIDTH)[None, :]
    y = tl.load(y_ptr + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    centred = tl.where((columns < WIDTH)[None, :], y - (tl.sum(y, axis=1) / WIDTH)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1) / WIDTH + eps)[:, None]
    return centred * scale, scale, inside


@triton.jit(do_not_specialize=["n_tokens"])
def layer_norm_fwd_kernel(
    y_ptr, weight_ptr, bias_ptr, out_ptr, n_tokens, eps, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr
):
    """LayerNorm of (N, WIDTH); `out` may be `y`. Grid: tokens / ROWS."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_D)
    normal, _, inside = _normalise(y_ptr, rows, n_tokens, columns, eps, WIDTH)
    weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    out = normal * weight[None, :] + bias[None, :]
    offsets = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    tl.store(out_ptr + offsets, rounded(out, out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n_tokens"])
def layer_norm_bwd_kernel(
    y_ptr, weight_ptr, grad_ptr, d_y_ptr, partial_ptr, n_tokens, eps,
    WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """d_y, and this program's sums of d_weight, d_bias and d_y over its rows. Grid: splits of the rows."""
    columns = tl.arange(0, BLOCK_D)
    weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    d_weight = tl.zeros((ROWS, BLOCK_D), tl.float32)
    d_bias = tl.zeros((ROWS, BLOCK_D), tl.float32)
    d_y_sum = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for first in range(tl.program_id(0) * ROWS, n_tokens, tl.num_programs(0) * ROWS):
        rows = first + tl.arange(0, ROWS)
        normal, scale, inside = _normalise(y_ptr, rows, n_tokens, columns, eps, WIDTH)
        offsets = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        grad = tl.load(grad_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        d_weight += grad * normal
        d_bias += grad
        grad *= weight[None, :]
        along = (tl.sum(grad * normal, axis=1) / WIDTH)[:, None]
        mean = (tl.sum(grad, axis=1) / WIDTH)[:, None]
        d_y = tl.where(inside, scale * (grad - mean - normal * along), 0.0)
        d_y_sum += d_y
        tl.store(d_y_ptr + offsets, rounded(d_y, d_y_ptr.dtype.element_ty), mask=inside)
    partial_ptr += tl.program_id(0) * 3 * WIDTH + columns
    tl.store(partial_ptr, tl.sum(d_weight, axis=0), mask=columns < WIDTH)
    tl.store(partial_ptr + WIDTH, tl.sum(d_bias, axis=0), mask=columns < WIDTH)
    tl.store(partial_ptr + 2 * WIDTH, tl.sum(d_y_sum, axis=0), mask=columns < WIDTH)


@triton.jit(do_not_specialize=["n_tokens", "first_token", "seed"])
def blockdiag_glu_bwd_kernel(
    x_ptr, w_in_ptr, w_out_ptr, d_y_ptr, hidden_ptr, d_pre_ptr, n_tokens, first_token, seed, probability,
    N_BLOCKS: tl.constexpr, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PIECE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """Hidden activations (nb, N, HIDDEN), and gradients of gates and values in the order of W_in (nb, N, 2 HIDDEN).

    Grid: (tokens / M) nb (HIDDEN / BLOCK_H).
    """
    tiles_h: tl.constexpr = (HIDDEN + BLOCK_H - 1) // BLOCK_H
    units = tl.program_id(0) % tiles_h * BLOCK_H + tl.arange(0, BLOCK_H)
    k = tl.program_id(0) // tiles_h % N_BLOCKS
    rows = tl.program_id(0) // (tiles_h * N_BLOCKS) * BLOCK_M + tl.arange(0, BLOCK_M)
    gate_block = k // 2
    value_block = N_BLOCKS // 2 + k // 2
    row_offsets = rows.to(tl.int64)[:, None] * (N_BLOCKS * WIDTH)
    w_gate_ptr = w_in_ptr + (gate_block * 2 + k % 2) * HIDDEN * WIDTH
    w_value_ptr = w_in_ptr + (value_block * 2 + k % 2) * HIDDEN * WIDTH
    w_out_ptr += k * WIDTH * HIDDEN

    gate = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
    value = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
    d_hidden = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
    for c in range(0, WIDTH, PIECE):
        columns = c + tl.arange(0, PIECE)
        inside_x = (rows < n_tokens)[:, None] & (columns < WIDTH)[None, :]
        inside_w = (columns < WIDTH)[:, None] & (units < HIDDEN)[None, :]
        x = x_ptr + row_offsets + columns[None, :]
        w_in_offsets = units[None, :] * WIDTH + columns[:, None]
        w_gate = tl.load(w_gate_ptr + w_in_offsets, mask=inside_w, other=0.0)
        gate = dot(tl.load(x + gate_block * WIDTH, mask=inside_x, other=0.0), w_gate, gate)
        w_value = tl.load(w_value_ptr + w_in_offsets, mask=inside_w, other=0.0)
        value = dot(tl.load(x + value_block * WIDTH, mask=inside_x, other=0.0), w_value, value)
        w_out = tl.load(w_out_ptr + columns[:, None] * HIDDEN + units[None, :], mask=inside_w, other=0.0)
        d_y = tl.load(d_y_ptr + row_offsets + (k * WIDTH + columns)[None, :], mask=inside_x, other=0.0)
        d_hidden = dot(d_y, w_out, d_hidden)

    activated, slope = _gelu_and_slope(gate)
    if DROPOUT:
        scale = _dropout_scale(seed, probability, first_token + rows, k * HIDDEN + units)
        d_hidden *= scale
        hidden = activated * value * scale
    else:
        hidden = activated * value
    inside = (rows < n_tokens)[:, None] & (units < HIDDEN)[None, :]
    row = rows.to(tl.int64)[:, None]
    all_rows = tl.cast(n_tokens, tl.int64)
    out = (k * all_rows + row) * HIDDEN + units[None, :]
    tl.store(hidden_ptr + out, rounded(hidden, hidden_ptr.dtype.element_ty), mask=inside)
    side = (k % 2 * HIDDEN + units)[None, :]
    out = (gate_block * all_rows + row) * (2 * HIDDEN) + side
    tl.store(d_pre_ptr + out, rounded(d_hidden * value * slope, d_pre_ptr.dtype.element_ty), mask=inside)
    out = (value_block * all_rows + row) * (2 * HIDDEN) + side
    tl.store(d_pre_ptr + out, rounded(d_hidden * activated, d_pre_ptr.dtype.element_ty), mask=inside)


def _pieces(width: int) -> list[int]:
    """Up to three powers of two, at least 16, that hold a block of channels; padding only where it is little."""
    pieces: list[int] = []
    rest = width
    while rest > 0:
        whole = max(16, triton.next_power_of_2(rest))
        piece = whole if len(pieces) == 2 or whole == 16 or whole <= 1.1 * rest else whole // 2
        pieces.append(piece)
        rest -= piece
    return pieces


# Tiles of the fused kernel: the widest block of channels each is for; BLOCK_M, BLOCK_H, warps, stages. The channels of
# BLOCK_M tokens take 2 W BLOCK_M elements of shared memory throughout, every stage of weights 3 W BLOCK_H.
_HOPPER_TILES = {128: (128, 64, 8, 3), 192: (128, 32, 8, 3), 256: (128, 32, 8, 2), 512: (64, 16, 8, 2)}
_AMPERE_TILES = {128: (128, 32, 8, 3), 256: (64, 32, 8, 2), 512: (32, 16, 4, 2)}
_FULL_PRECISION_TILES = {256: (32, 32, 8, 1), 512: (16, 16, 8, 1)}


def _forward_tile(width: int, dtype: torch.dtype, device: torch.device) -> dict[str, int]:
    pieces = _pieces(width)
    table = _HOPPER_TILES if capability(device) >= (9, 0) else _AMPERE_TILES
    if dtype == torch.float32:
        table = _FULL_PRECISION_TILES
    tile = next(tile for widest, tile in table.items() if sum(pieces) <= widest)
    names = ("BLOCK_M", "BLOCK_H", "num_warps", "num_stages")
    p0, p1, p2 = [*pieces, 0, 0][:3]
    return {"PIECES": len(pieces), "P0": p0, "P1": p1, "P2": p2, **dict(zip(names, tile, strict=True))}


def _backward_tile(dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float32:
        return {"PIECE": 16, "BLOCK_M": 32, "BLOCK_H": 32, "num_warps": 4, "num_stages": 1}
    return {"PIECE": 32, "BLOCK_M": 128, "BLOCK_H": 64, "num_warps": 8, "num_stages": 3}


def _norm_tile(width: int) -> dict[str, int]:
    block = triton.next_power_of_2(width)
    return {"WIDTH": width, "BLOCK_D": block, "ROWS": max(1, 4096 // block), "num_warps": 8}


class _Settings(NamedTuple):
    """What is no tensor: dtypes of the products' operands and of the result among it."""

    eps: float
    dropout: float
    dtype: torch.dtype
    out_dtype: torch.dtype
    seed: int

    def shape(self, w_in: torch.Tensor) -> dict[str, int | bool]:
        """Constants that both kernels of the products are compiled for."""
        n_blocks, doubled, block_width = w_in.shape
        return {"N_BLOCKS": n_blocks, "WIDTH": block_width, "HIDDEN": doubled // 2, "DROPOUT": self.dropout > 0}


def _before_norm(x, w_in, w_out, bias, settings):
    """Sum of products, bias and residual: contiguous (N, D) -> (N, D)."""
    n_tokens, _ = x.shape
    n_blocks, _, block_width = w_in.shape
    y = torch.empty(x.shape, dtype=settings.out_dtype, device=x.device)
    tile = _forward_tile(block_width, settings.dtype, x.device)
    blockdiag_glu_fwd_kernel[(triton.cdiv(n_tokens, tile["BLOCK_M"]) * n_blocks,)](
        x, w_in, w_out, bias, y, n_tokens, settings.seed, settings.dropout,
        **settings.shape(w_in), **tile, **OPTIONS,
    )  # fmt: skip
    return y


def _layer_norm(y, weight, bias, eps, out):
    """LayerNorm of (N, D) into `out`, which may be `y`."""
    n_tokens, width = y.shape
    tile = _norm_tile(width)
    layer_norm_fwd_kernel[(triton.cdiv(n_tokens, tile["ROWS"]),)](
        y, weight, bias, out, n_tokens, eps, **tile, **OPTIONS
    )
    return out


class _BlockdiagGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w_in, w_out, bias, norm_weight, norm_bias, settings):
        w_in, w_out = w_in.to(settings.dtype), w_out.to(settings.dtype)
        y = _before_norm(x, w_in, w_out, bias, settings)
        ctx.save_for_backward(x, w_in, w_out, norm_weight, y)
        ctx.settings = settings
        return _layer_norm(y, norm_weight, norm_bias, settings.eps, torch.empty_like(y))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, w_in, w_out, norm_weight, y = ctx.saved_tensors
        with on_device_of(x), torch.autocast(x.device.type, enabled=False):
            d_x, *d_norm, d_bias = _norm_backward(y, norm_weight, grad.contiguous(), ctx.settings.eps, x.dtype)
            d_w_in, d_w_out = _glu_backward(x, w_in, w_out, d_x, ctx.settings)
        return d_x, d_w_in, d_w_out, d_bias, *d_norm, None


def _norm_backward(y, norm_weight, grad, eps, dtype):
    """Gradients of the LayerNorm: input (N, D) in `dtype`, weight, bias, and the sum of the first over the tokens."""
    n_tokens, width = y.shape
    tile = _norm_tile(width)
    splits = max(1, min(SPLITS, triton.cdiv(n_tokens, tile["ROWS"])))
    d_y = torch.empty(y.shape, dtype=dtype, device=y.device)
    partial = torch.empty(splits, 3, width, dtype=torch.float32, device=y.device)
    layer_norm_bwd_kernel[(splits,)](y, norm_weight, grad, d_y, partial, n_tokens, eps, **tile, **OPTIONS)
    return d_y, *partial.sum(0)


def _glu_backward(x, w_in, w_out, d_y, settings):
    """Gradients of the weights; `d_y` becomes that of `x`: the residual's is in it already."""
    n_blocks, _, hidden_width = w_out.shape
    dtype = settings.dtype
    d_w_in = torch.zeros(w_in.shape, dtype=torch.float32, device=x.device)
    d_w_out = torch.zeros(w_out.shape, dtype=torch.float32, device=x.device)
    tile = _backward_tile(dtype)
    for first in range(0, len(x), CHUNK_TOKENS):
        x_chunk = x[first : first + CHUNK_TOKENS].to(dtype)
        d_x_chunk = d_y[first : first + CHUNK_TOKENS]
        d_y_chunk = d_x_chunk.to(dtype)
        n_tokens = len(x_chunk)
        hidden = torch.empty(n_blocks, n_tokens, hidden_width, dtype=dtype, device=x.device)
        d_pre = torch.empty(n_blocks, n_tokens, 2 * hidden_width, dtype=dtype, device=x.device)
        n_tiles = triton.cdiv(n_tokens, tile["BLOCK_M"]) * n_blocks * triton.cdiv(hidden_width, tile["BLOCK_H"])
        blockdiag_glu_bwd_kernel[(n_tiles,)](
            x_chunk, w_in, w_out, d_y_chunk, hidden, d_pre, n_tokens, first, settings.seed, settings.dropout,
            **settings.shape(w_in), **tile, **OPTIONS,
        )  # fmt: skip
        d_w_out += torch.bmm(_by_block(d_y_chunk, n_blocks).mT, hidden)
        d_w_in += torch.bmm(d_pre.mT, _by_block(x_chunk, n_blocks))
        d_x_blocks = _by_block(d_x_chunk, n_blocks)
        if d_x_chunk.dtype == dtype:
            d_x_blocks.baddbmm_(d_pre, w_in)
        else:
            d_x_blocks += torch.bmm(d_pre, w_in)
    return d_w_in, d_w_out


def _by_block(x: torch.Tensor, n_blocks: int) -> torch.Tensor:
    """(N, D) -> (nb, N, D / nb), a view."""
    return x.unflatten(1, (n_blocks, -1)).transpose(0, 1)


def unsupported(
    x: torch.Tensor,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    dropout: float = 0.0,
) -> str | None:
    """Why `blockdiag_glu` cannot take these arguments, or None if it can."""
    n_blocks, _, block_width = w_in.shape
    if n_blocks % 2:
        return f"the number of blocks is {n_blocks}, the kernel is for even ones"
    if block_width > MAX_BLOCK_WIDTH:
        return f"a block has {block_width} channels, the kernel takes at most {MAX_BLOCK_WIDTH}"
    if x.shape[-1] > MAX_WIDTH:
        return f"a token has {x.shape[-1]} channels, the kernel takes at most {MAX_WIDTH}"
    return unsupported_dtype(x.dtype)


def blockdiag_glu(
    x: torch.Tensor,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """See `m2rag_kernels.blockdiag_glu.naive.blockdiag_glu`; everything but the products' operands is fp32.

    Under autocast the operands have its dtype and the result is fp32; otherwise both have the dtype of `x`. The seed of
    the dropout comes from torch's CPU generator, which needs no synchronisation.
    """
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    settings = _Settings(
        eps=eps,
        dropout=float(dropout),
        dtype=torch.get_autocast_dtype(device) if autocast else x.dtype,
        out_dtype=torch.float32 if autocast else x.dtype,
        seed=int(torch.randint(2**31, ())) if dropout > 0 else 0,
    )
    tokens = x.reshape(-1, x.shape[-1])
    tensors = [t.contiguous() for t in (tokens, w_in, w_out, bias, norm_weight, norm_bias)]
    with on_device_of(x):
        if needs_grad(*tensors):
            return _BlockdiagGLU.apply(*tensors, settings).view(x.shape)
        tokens, w_in, w_out, bias, norm_weight, norm_bias = tensors
        y = _before_norm(tokens, w_in.to(settings.dtype), w_out.to(settings.dtype), bias, settings)
        return _layer_norm(y, norm_weight, norm_bias, eps, out=y).view(x.shape)
