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


# Channels that are transformed together: buffers this small stay in the cache and are used again, where whole tensors
# would be mapped anew in every call. At 13,000 tokens it halves the time.
CHANNELS = 16


class _LongConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, kernel, kernel_rev, skip, gate):
        length, n_channels = u.shape[-1], u.shape[1]
        n_fft = fast_fft_size(2 * length)
        y = torch.empty_like(u)
        taps = kernel.new_empty(min(CHANNELS, n_channels), n_fft)
        spectra, inputs = [], []
        for some in _ranges(n_channels):
            k = taps[: some.stop - some.start]
            k[:, :length] = kernel[some]
            k[:, 0] += skip[some]
            k[:, length:] = 0
            if kernel_rev is not None:
                k[:, n_fft - length :] += kernel_rev[some].flip(-1)
            spectra.append(torch.fft.rfft(k))
            inputs.append(torch.fft.rfft(u[:, some], n=n_fft))
            y[:, some] = torch.fft.irfft(inputs[-1] * spectra[-1], n=n_fft)[..., :length]
        ctx.n_fft, ctx.bidirectional = n_fft, kernel_rev is not None
        ctx.layout = torch.empty_like(kernel, device="meta").stride()
        ctx.n_spectra = len(spectra)
        ctx.save_for_backward(*spectra, *inputs, gate, y if gate is not None else None)
        return y * gate if gate is not None else y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *saved, gate, y = ctx.saved_tensors
        spectra, inputs = saved[: ctx.n_spectra], saved[ctx.n_spectra :]
        n_fft, length = ctx.n_fft, grad.shape[-1]
        d_u = torch.empty_like(grad)
        # Laid out like the taps, which come transposed: what follows then reads memory in order.
        d_taps, d_rev = (grad.new_empty_strided(grad.shape[1:], ctx.layout) for _ in range(2))
        d_skip = grad.new_empty(grad.shape[1])
        for some, spectrum, u_f in zip(_ranges(grad.shape[1]), spectra, inputs, strict=True):
            g = grad[:, some] if gate is None else grad[:, some] * gate[:, some]
            grad_f = torch.fft.rfft(g, n=n_fft)
            d_u[:, some] = torch.fft.irfft(grad_f * spectrum.conj(), n=n_fft)[..., :length]
            d_k = torch.fft.irfft((grad_f * u_f.conj()).sum(0), n=n_fft)
            d_taps[some], d_skip[some] = d_k[:, :length], d_k[:, 0]
            if ctx.bidirectional:
                d_rev[some] = d_k[:, n_fft - length :].flip(-1)
        return d_u, d_taps, d_rev if ctx.bidirectional else None, d_skip, None if gate is None else grad * y


def _ranges(n_channels: int) -> list[slice]:
    return [slice(lo, min(lo + CHANNELS, n_channels)) for lo in range(0, n_channels, CHANNELS)]


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
