"""The block-diagonal GLU MLP with a hand-written backward, for training without a GPU.

Same function as `naive.py`. Each block is one matrix product on a slice, without the permuted copies of a batched
product; products run in the autocast dtype, everything else in fp32; the activation is recomputed in the backward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from m2rag_kernels.blockdiag_glu import naive


class _BlockdiagGLU(torch.autograd.Function):
    """(N, D) -> (N, D) without bias, residual and norm; an even number of blocks."""

    @staticmethod
    def forward(ctx, x, w_in, w_out, dtype):
        wide = torch.promote_types(x.dtype, torch.float32)
        n_blocks, _, block_in = w_in.shape
        x, w_in, w_out = x.to(dtype), w_in.to(dtype), w_out.to(dtype)
        pre = torch.stack(
            [x[:, k * block_in : (k + 1) * block_in] @ w_in[k].t() for k in range(n_blocks)]
        )  # (nb, N, 2I / nb): the first half of the blocks are gates
        gate, value = pre.chunk(2)
        hidden = F.gelu(gate) * value
        ctx.save_for_backward(x, w_in, w_out, pre)
        return torch.cat([_slice(hidden, k) @ w_out[k].t() for k in range(n_blocks)], dim=-1).to(wide)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, w_in, w_out, pre = ctx.saved_tensors
        n_blocks, _, block_in = w_in.shape
        grads = grad.to(x.dtype).chunk(n_blocks, dim=-1)
        gate, value = pre.chunk(2)
        activated = F.gelu(gate)
        hidden = activated * value
        d_w_out = torch.stack([grads[k].t() @ _slice(hidden, k) for k in range(n_blocks)])
        d_hidden = torch.empty_like(hidden)
        for k in range(n_blocks):
            _slice(d_hidden, k).copy_(grads[k] @ w_out[k])
        d_gate = torch.ops.aten.gelu_backward(d_hidden * value, gate)
        d_value = d_hidden.mul_(activated)
        d_pre = [*d_gate, *d_value]
        d_w_in = torch.stack([d_pre[k].t() @ x[:, k * block_in : (k + 1) * block_in] for k in range(n_blocks)])
        d_x = torch.cat([d_pre[k] @ w_in[k] for k in range(n_blocks)], dim=-1)
        return *(gradient.to(grad.dtype) for gradient in (d_x, d_w_in, d_w_out)), None


def _slice(hidden: torch.Tensor, k: int) -> torch.Tensor:
    """Input of output block k: half of one of the hidden blocks (nb / 2, N, 2I / nb)."""
    half = hidden.shape[-1] // 2
    return hidden[k // 2, :, (k % 2) * half : (k % 2 + 1) * half]


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
    """See `naive.blockdiag_glu`, which also serves odd numbers of blocks and dropout."""
    if dropout > 0 or w_in.shape[0] % 2:
        return naive.blockdiag_glu(x, w_in, w_out, bias, norm_weight, norm_bias, eps, dropout)
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    with torch.autocast(device, enabled=False):
        y = _BlockdiagGLU.apply(x.flatten(0, -2), w_in, w_out, dtype).view(x.shape)
        return F.layer_norm(y + bias + x.to(y.dtype), (x.shape[-1],), norm_weight, norm_bias, eps)
