"""Definition of the long convolution: fp32, FFT, differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def long_conv(
    u: torch.Tensor,
    kernel: torch.Tensor,
    kernel_rev: torch.Tensor | None,
    skip: torch.Tensor,
    gate: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Depthwise convolution as long as the sequence, optionally from both sides.

    $$y_i = \sum_{j \le i} k_{i-j} u_j + \sum_{j > i} k^{rev}_{j-i-1} u_j + s\,u_i, \qquad y \leftarrow y \cdot gate$$

    (Monarch Mixer, arXiv:2310.12109, section 4; the bidirectional form of its appendix.) The taps to
    the right begin at distance 1. Transforms run over 2L points, so nothing wraps around.

    Args:
        u: input, (B, D, L).
        kernel: taps for distances 0..L-1 to the left, (D, L).
        kernel_rev: taps for distances 1..L to the right, (D, L); None makes the convolution causal.
        skip: weight of the input itself, (D,).
        gate: factor of the result, (B, D, L).
        mask: (B, L) bool, False at pads: they count as zero, whatever they hold.

    Returns:
        (B, D, L), in the dtype of `u`.
    """
    length = u.shape[-1]
    n_fft = 2 * length
    dtype = u.dtype
    # Autocast would run the transforms' elementwise neighbours in half precision, where long sums lose their tail.
    with torch.autocast(u.device.type, enabled=False):
        u = u.float()
        if mask is not None:
            u = torch.where(mask[:, None, :], u, 0.0)
        taps = F.pad(kernel.float(), (0, length))
        if kernel_rev is not None:
            taps = taps + F.pad(kernel_rev.float().flip(-1), (length, 0))
        spectrum = torch.fft.rfft(taps, n=n_fft)
        y = torch.fft.irfft(torch.fft.rfft(u, n=n_fft) * spectrum, n=n_fft)[..., :length]
        y = y + u * skip.float()[:, None]
        if gate is not None:
            y = y * gate.float()
    return y.to(dtype)
