"""What `gpu_correctness.py` checks: the calls, their arguments, and the kernels' definitions in double precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LENGTHS = (
    1, 2, 3, 63, 64, 127, 128, 255, 256, 257, 1000, 2047, 2048, 4095, 4097, 8192, 12289, 16384, 20001, 32767, 32768,
)  # fmt: skip
# Every variant is run at these; the other lengths take turns.
ALL_VARIANTS_AT = (63, 1000, 4096, 32768)
# Inner and outer width of the MLP: the bundled checkpoint's, the published ones', and one that fills no tile.
WIDTHS = ((384, 1536), (768, 3072), (960, 3840), (1536, 6144), (1792, 7168), (24, 40))


@dataclass(frozen=True)
class Case:
    """One call of one kernel; `options` are the names of optional arguments that it gets."""

    op: str
    dtype: str
    length: int
    batch: int = 2
    width: int = 768
    inner: int = 3072
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([f"B={self.batch} L={self.length} D={self.width}", *self.options])


def cases(op: str, dtype: str, interpret: bool) -> Iterator[Case]:
    """The calls of one kernel, short ones first."""
    lengths: Sequence[int] = sorted({*LENGTHS, *ALL_VARIANTS_AT})
    every: Sequence[int] = ALL_VARIANTS_AT
    width, batch = 768, 2
    if interpret:
        lengths, every, width = (1, 63, 300), (63,), 5
    if op == "long_conv":
        # As the gated convolution, as the residual one, causal, without a mask.
        variants: list[tuple[str, ...]] = [("right", "gate", "mask"), ("right",), ("gate",), ("right", "gate")]
        if not interpret:
            yield Case(op, dtype, 100, 3, 21, 0, variants[0])
            yield Case(op, dtype, 5000, 3, 21, 0, variants[0])
    elif op == "short_conv":
        variants = [("mask",), ()]
        if interpret:
            lengths = (1, 63)
        else:
            yield Case(op, dtype, 100, 3, 21, 0, variants[0])
    else:
        variants = [()]
        for some, inner in ((24, 40),) if interpret else WIDTHS:
            yield Case(op, dtype, 37, batch, some, inner)
        if interpret:
            lengths, every, width = (1, 65), (), 8
    for turn, length in enumerate(lengths):
        rows = 1 if length > 16384 else batch
        for options in variants if length in every else [variants[turn % len(variants)]]:
            yield Case(op, dtype, length, rows, width, 4 * width, options)


def mask_of(case: Case, device: str) -> torch.Tensor:
    """(B, L) bool: rows of different lengths, the last one with a hole as well."""
    mask = torch.ones(case.batch, case.length, dtype=torch.bool, device=device)
    for row in range(case.batch):
        mask[row, max(1, case.length * (row + 1) // case.batch) :] = False
    mask[-1, case.length // 5 : case.length // 4] = False
    mask[:, 0] = True
    return mask


@dataclass
class Problem:
    """Arguments of a kernel, by name: floating ones are differentiated; `kept` (B, L) are no pads."""

    tensors: dict[str, torch.Tensor | None]
    fixed: dict[str, Any]
    kept: torch.Tensor | None
    poison: str = ""  # the tensor that holds NaN at pads, channels first or last


def long_conv_problem(case: Case, device: str) -> Problem:
    dtype, shape = DTYPES[case.dtype], (case.batch, case.width, case.length)
    tau = torch.logspace(0.3, 4, case.width, device=device)[:, None].clamp(max=max(case.length / 2, 1))
    decay = torch.exp(-torch.arange(case.length, device=device) / tau) / tau.sqrt()
    mask = mask_of(case, device) if "mask" in case.options else None
    tensors: dict[str, torch.Tensor | None] = {
        "u": torch.randn(shape, device=device).to(dtype),
        "kernel": torch.randn(case.width, case.length, device=device) * decay,
        "kernel_rev": torch.randn(case.width, case.length, device=device) * decay if "right" in case.options else None,
        "skip": torch.randn(case.width, device=device),
        "gate": torch.randn(shape, device=device).to(dtype) if "gate" in case.options else None,
    }
    return Problem(tensors, {"mask": mask}, mask, "u")


def long_conv_exact(u, kernel, kernel_rev, skip, gate, mask):
    length = u.shape[-1]
    if mask is not None:
        u = torch.where(mask[:, None, :], u, 0.0)
    taps = F.pad(kernel, (0, length))
    taps = torch.cat([taps[:, :1] + skip[:, None], taps[:, 1:]], dim=1)
    if kernel_rev is not None:
        taps = taps + F.pad(kernel_rev.flip(-1), (length, 0))
    product = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(taps)
    y = torch.fft.irfft(product, n=2 * length)[..., :length]
    return y if gate is None else y * gate


def short_conv_problem(case: Case, device: str) -> Problem:
    mask = mask_of(case, device) if "mask" in case.options else None
    tensors: dict[str, torch.Tensor | None] = {
        "x": torch.randn(case.batch, case.length, 3 * case.width, device=device).to(DTYPES[case.dtype]),
        "weight": torch.randn(3 * case.width, 1, 3, device=device),
        "bias": torch.randn(3 * case.width, device=device),
    }
    return Problem(tensors, {"mask": mask}, mask, "x")


def short_conv_exact(x, weight, bias, mask):
    if mask is not None:
        x = torch.where(mask[..., None], x, 0.0)
    c = bias + sum(weight[:, 0, 2 - back] * F.pad(x, (0, 0, back, 0))[:, : x.shape[1]] for back in range(3))
    x1, x2, v = c.transpose(1, 2).chunk(3, dim=1)
    gated = x1 * v
    return gated if mask is None else torch.where(mask[:, None, :], gated, 0.0), x2


def blockdiag_glu_problem(case: Case, device: str) -> Problem:
    n_blocks, width, inner = 4, case.width, case.inner
    tensors: dict[str, torch.Tensor | None] = {
        "x": torch.randn(case.batch, case.length, width, device=device).to(DTYPES[case.dtype]),
        "w_in": torch.randn(n_blocks, 2 * inner // n_blocks, width // n_blocks, device=device) / (width / 4) ** 0.5,
        "w_out": torch.randn(n_blocks, width // n_blocks, inner // n_blocks, device=device) / (inner / 4) ** 0.5,
        "bias": torch.randn(width, device=device),
        "norm_weight": torch.rand(width, device=device) + 0.5,
        "norm_bias": torch.randn(width, device=device),
    }
    return Problem(tensors, {"eps": 1e-12}, None)


def functions(op: str) -> tuple[Any, Any, Any]:
    """Maker of problems, the function in double precision, and the Triton one itself: no dispatcher may step aside."""
    if op == "long_conv":
        from m2rag_kernels.long_conv.triton import long_conv

        return long_conv_problem, long_conv_exact, long_conv
    if op == "short_conv":
        from m2rag_kernels.short_conv.triton import short_conv

        return short_conv_problem, short_conv_exact, short_conv
    from m2rag_kernels.blockdiag_glu.naive import blockdiag_glu as exact
    from m2rag_kernels.blockdiag_glu.triton import blockdiag_glu

    return blockdiag_glu_problem, exact, blockdiag_glu
