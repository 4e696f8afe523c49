"""The long convolution with a hand-written backward, for training without a GPU.

Same function as `naive.py`. Autograd's own backward of `torch.fft` runs complex transforms and keeps every
intermediate; this one uses real transforms of fast sizes only: three forward, three backward.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.autograd.function import once_differentiable


@lru_cache(maxsize=1024)
def fast_fft_size(n: int) -> int:
    """Smallest even number >= n without prime factors above 5, which FFT libraries transform fastest."""
    size = n + n % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2


class _LongConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, kernel, kernel_rev, skip, gate):
        length = u.shape[-1]
        n_fft = fast_fft_size(2 * length)
        taps = kernel.new_zeros(kernel.shape[0], n_fft)
        taps[:, :length] = kernel
        taps[:, 0] += skip
        if kernel_rev is not None:
            taps[:, n_fft - length :] += kernel_rev.flip(-1)
        spectrum = torch.fft.rfft(taps)
        u_f = torch.fft.rfft(u, n=n_fft)
        y = torch.fft.irfft(u_f * spectrum, n=n_fft)[..., :length].contiguous()
        ctx.n_fft, ctx.bidirectional = n_fft, kernel_rev is not None
        ctx.save_for_backward(spectrum, u_f, gate, y if gate is not None else None)
        return y * gate if gate is not None else y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        spectrum, u_f, gate, y = ctx.saved_tensors
        n_fft, length = ctx.n_fft, grad.shape[-1]
        d_gate = None
        if gate is not None:
            d_gate = grad * y
            grad = grad * gate
        grad_f = torch.fft.rfft(grad, n=n_fft)
        d_u = torch.fft.irfft(grad_f * spectrum.conj(), n=n_fft)[..., :length]
        d_taps = torch.fft.irfft((grad_f * u_f.conj()).sum(0), n=n_fft)
        d_rev = d_taps[:, n_fft - length :].flip(-1) if ctx.bidirectional else None
        return d_u, d_taps[:, :length], d_rev, d_taps[:, 0], d_gate


def long_conv(
    u: torch.Tensor,
    kernel: torch.Tensor,
    kernel_rev: torch.Tensor | None,
    skip: torch.Tensor,
    gate: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `naive.long_conv`; computed in fp32 whatever autocast says."""
    dtype = u.dtype
    with torch.autocast(u.device.type, enabled=False):
        if mask is not None:
            u = torch.where(mask[:, None, :], u, 0.0)
        y = _LongConv.apply(
            u.float(),
            kernel.float(),
            None if kernel_rev is None else kernel_rev.float(),
            skip.float(),
            None if gate is None else gate.float(),
        )
    return y.to(dtype)
