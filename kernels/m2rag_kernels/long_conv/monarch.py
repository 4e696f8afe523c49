r"""The transform behind the long convolution as products with small matrices (a Monarch decomposition).

A real sequence a of 2N values, as a polynomial modulo x^{2N} + 1, is the complex sequence z_j = a_j + i a_{j+N} modulo
x^N - i; with x = w y, w = exp(i pi / 2N), it becomes (z_j w^j) modulo y^N - 1, where an ordinary discrete Fourier
transform of N points turns products into pointwise ones. (The right-angle convolution of Crandall and Fagin, Math.
Comp. 62, 1994.) An input of at most N positions fills the real half only and its convolution is read from the real
half, so a convolution costs a transform of N complex points for N real positions, and no frequency needs its mirror
image, as real transforms by packing do.

The transform itself is split by N = n1 p q (Monarch Mixer, arXiv:2310.12109, section 3; Cooley and Tukey): three
batches of small discrete Fourier transforms, as products with (n1, n1), (p, p) and (q, q) matrices, with twiddle
factors in between; w^j is part of the first matrix and the first factors. Frequencies stay in the order they come
out, since both factors of a product have the same one.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch

MIN_POINTS = 256
MAX_POINTS = 32768

# Points that a GPU transforms without leaving the chip; more take an outer stage of n1 points first.
_FACTORS = {
    256: (1, 16, 16),
    512: (1, 16, 32),
    1024: (1, 32, 32),
    2048: (1, 32, 64),
    4096: (1, 64, 64),
    8192: (16, 16, 32),
    16384: (16, 32, 32),
    32768: (32, 32, 32),
}


class Plan(NamedTuple):
    """N = n1 p q; position j = (j1 p + j2) q + j3, frequency k = k1 + n1 (kp + p kq), kept at (k1 p + kp) q + kq."""

    n1: int
    p: int
    q: int

    @property
    def points(self) -> int:
        """N: complex points, and the longest input."""
        return self.n1 * self.p * self.q


def plan(length: int) -> Plan:
    """The smallest plan for inputs of `length` positions.

    Raises:
        ValueError: the input is longer than any plan.
    """
    if length > MAX_POINTS:
        raise ValueError(f"{length} positions, the longest transform takes {MAX_POINTS}")
    points = max(MIN_POINTS, 1 << max(length - 1, 0).bit_length())
    return Plan(*_FACTORS[points])


class Tables(NamedTuple):
    """Constants of a plan, complex64. Matrices are scaled to be unitary, so that half precision keeps its range.

    Attributes:
        outer: (n1, n1), None for n1 = 1. The first matrix carries the twist.
        outer_twiddle: (p q, n1), None for n1 = 1.
        first: (p, p).
        first_twiddle: (q, p).
        last: (q, q).
    """

    outer: torch.Tensor | None
    outer_twiddle: torch.Tensor | None
    first: torch.Tensor
    first_twiddle: torch.Tensor
    last: torch.Tensor


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a later training step saves them for its backward
def tables(plan: Plan, device: torch.device) -> Tables:
    """The constants of `plan` on `device`, computed in double precision."""
    n1, p, q = plan
    inner = p * q
    outer = outer_twiddle = None
    if n1 > 1:
        outer = _dft(n1) * _twist(torch.arange(n1)[:, None] * inner, plan)
        outer_twiddle = _roots(torch.arange(inner)[:, None] * torch.arange(n1), plan.points)
        outer_twiddle *= _twist(torch.arange(inner)[:, None], plan)
    first = _dft(p)
    first_twiddle = _roots(torch.arange(q)[:, None] * torch.arange(p), inner)
    if n1 == 1:
        first = first * _twist(torch.arange(p)[:, None] * q, plan)
        first_twiddle = first_twiddle * _twist(torch.arange(q)[:, None], plan)
    return Tables(
        None if outer is None else _placed(outer, device),
        None if outer_twiddle is None else _placed(outer_twiddle, device),
        _placed(first, device),
        _placed(first_twiddle, device),
        _placed(_dft(q), device),
    )


def _placed(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    return table.to(torch.complex64).to(device)


def _roots(exponents: torch.Tensor, n: int) -> torch.Tensor:
    """exp(-2 pi i e / n)."""
    angle = (exponents % n).double() * (-2 * math.pi / n)
    return torch.polar(torch.ones_like(angle), angle)


def _dft(n: int) -> torch.Tensor:
    index = torch.arange(n)
    return _roots(index[:, None] * index, n) / math.sqrt(n)


def _twist(positions: torch.Tensor, plan: Plan) -> torch.Tensor:
    """w^j = exp(i pi j / 2N)."""
    return _roots(-positions, 4 * plan.points)


def transform(z: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Twist and transform complex rows (..., N), unitary, frequencies in the plan's order. Differentiable."""
    t = tables(plan, z.device)
    x = z.unflatten(-1, tuple(plan))  # (..., j1, j2, j3)
    if t.outer is not None and t.outer_twiddle is not None:
        x = torch.einsum("...jm,jk->...km", x.flatten(-2), t.outer) * t.outer_twiddle.t()
        x = x.unflatten(-1, (plan.p, plan.q))
    x = torch.einsum("...jm,jk->...km", x, t.first) * t.first_twiddle.t()
    return (x @ t.last).flatten(-3)


def spectrum(kernel: torch.Tensor, kernel_rev: torch.Tensor | None, skip: torch.Tensor, plan: Plan) -> torch.Tensor:
    """What transformed inputs are multiplied by: (D, 2, N) fp32, real and imaginary parts. Differentiable.

    Args:
        kernel: taps for distances 0..T-1 to the left, (D, T), T <= N.
        kernel_rev: taps for distances 1..T to the right, (D, T), or None.
        skip: weight of the input itself, one more tap at distance 0, (D,).
    """
    points, length = plan.points, kernel.shape[1]
    pad = torch.nn.functional.pad
    real = pad(kernel.float(), (0, points - length))
    real = real + pad(skip.float()[:, None], (0, points - 1))
    imaginary = torch.zeros_like(real)
    if kernel_rev is not None:
        # Position -d is position 2N - d with its sign changed: the imaginary half from its end.
        imaginary = -pad(kernel_rev.float().flip(-1), (points - length, 0))
    result = transform(torch.complex(real, imaginary), plan) * math.sqrt(points)
    return torch.stack([result.real, result.imag], dim=1)
