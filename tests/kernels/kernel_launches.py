"""Launches of every kernel at the sizes of the published models, for `triton_resources`: what they compute is noise."""

from __future__ import annotations

import torch

from m2rag_kernels.blockdiag_glu.triton import blockdiag_glu
from m2rag_kernels.long_conv.monarch import plan
from m2rag_kernels.long_conv.triton import _gradients, convolve
from m2rag_kernels.short_conv.triton import short_conv


def launch_short_conv(width: int = 768, dtype: torch.dtype = torch.bfloat16, length: int = 256) -> None:
    """Forward and backward, with pads."""
    mask = torch.ones(1, length, dtype=torch.bool)
    x = torch.zeros(1, length, 3 * width, dtype=dtype, requires_grad=True)
    outputs = short_conv(x, torch.zeros(3 * width, 1, 3), torch.zeros(3 * width), mask)
    torch.autograd.grad(outputs, x, [torch.zeros_like(y) for y in outputs])


def launch_blockdiag_glu(
    width: int = 768, dtype: torch.dtype = torch.bfloat16, dropout: float = 0.0, length: int = 256
) -> None:
    """Forward and backward of 4 blocks with 4 x width hidden units."""
    shapes = [(1, length, width), (4, 2 * width, width // 4), (4, width // 4, width), (width,), (width,), (width,)]
    tensors = [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    y = blockdiag_glu(*tensors, 1e-12, dropout)
    torch.autograd.grad(y, tensors, torch.zeros_like(y))


def launch_long_conv(length: int, forward: bool = True, dtype: torch.dtype = torch.bfloat16) -> None:
    """With everything fused, or the gradients."""
    u = torch.zeros(2, 16, length, dtype=dtype)
    chosen, mask = plan(length), torch.ones(2, length, dtype=torch.bool)
    spectrum = torch.zeros(16, 2, chosen.points, dtype=dtype)
    if forward:
        convolve(u, spectrum, chosen, u, u, mask)
    else:
        _gradients(u, spectrum, chosen, u, mask, u)


def long_conv() -> None:
    for length in (512, 2048, 32768):
        launch_long_conv(length)


def long_conv_every_size() -> None:
    for length in (256, 1024, 4096, 8192, 16384):
        launch_long_conv(length)


def long_conv_gradients() -> None:
    for length in (256, 512, 1024, 2048, 4096, 8192, 16384, 32768):
        launch_long_conv(length, forward=False)


def production() -> None:
    launch_short_conv()
    launch_blockdiag_glu()


def widths() -> None:
    for width in (384, 960, 1536, 1792):
        launch_blockdiag_glu(width)


def full_precision() -> None:
    launch_short_conv(dtype=torch.float32)
    launch_blockdiag_glu(dtype=torch.float32)
    launch_blockdiag_glu(1792, dtype=torch.float32)


def dropout() -> None:
    launch_blockdiag_glu(dropout=0.1)


def one_token() -> None:
    """Triton compiles arguments that are 1 into the kernel: other code."""
    launch_short_conv(length=1)
    launch_blockdiag_glu(length=1)
