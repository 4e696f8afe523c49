"""How results are compared, and the definitions written out as sums."""

from __future__ import annotations

import torch

LENGTHS = [1, 2, 3, 63, 64, 127, 256, 1000]


def relative_rms(result: torch.Tensor, expected: torch.Tensor) -> float:
    """RMS of the difference over RMS of the expected values; NaN on either side fails by itself."""
    assert result.shape == expected.shape
    assert not expected.isnan().any(), "NaN in the expected values"
    assert not result.isnan().any(), "NaN in the result"
    difference = (result.double() - expected.double()).square().mean().sqrt()
    return float(difference / expected.double().square().mean().sqrt().clamp_min(1e-30))


def long_conv_by_sums(u, kernel, kernel_rev, skip, gate=None) -> torch.Tensor:
    """The long convolution as a (L, L) matrix per channel, in the dtype of its inputs."""
    length = u.shape[-1]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    matrix = torch.where(distance >= 0, kernel[:, distance.clamp(min=0)], 0.0)
    if kernel_rev is not None:
        matrix = matrix + torch.where(distance < 0, kernel_rev[:, (-distance - 1).clamp(min=0)], 0.0)
    y = torch.einsum("dij,bdj->bdi", matrix, u) + skip[:, None] * u
    return y if gate is None else y * gate


def short_conv_by_sums(x, weight, bias, mask=None) -> tuple[torch.Tensor, torch.Tensor]:
    """The short convolution position by position."""
    batch, length, width = x.shape
    kept = torch.ones(batch, length, dtype=torch.bool) if mask is None else mask
    c = torch.zeros_like(x)
    for b in range(batch):
        for i in range(length):
            c[b, i] = bias
            for back in range(3):
                if i - back >= 0 and kept[b, i - back]:
                    c[b, i] += weight[:, 0, 2 - back] * x[b, i - back]
    x1, x2, v = c.transpose(1, 2).chunk(3, dim=1)
    return v * x1 * kept[:, None, :], x2


def blockdiag_glu_by_sums(x, w_in, w_out, bias, norm_weight, norm_bias, eps) -> torch.Tensor:
    """The MLP with its block-diagonal matrices written out in full."""
    pre = x @ torch.block_diag(*w_in).t()
    inner = pre.shape[-1] // 2
    gate, value = pre[..., :inner], pre[..., inner:]
    activated = 0.5 * gate * (1 + torch.erf(gate / 2**0.5)) * value
    y = activated @ torch.block_diag(*w_out).t() + bias + x
    centred = y - y.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * norm_weight + norm_bias
