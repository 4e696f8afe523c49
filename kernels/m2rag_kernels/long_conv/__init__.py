"""Depthwise convolution as long as the sequence."""

from __future__ import annotations

from types import ModuleType

import torch

from m2rag_kernels.dispatch import choose, needs_grad, triton_module
from m2rag_kernels.long_conv import cpu, naive, train

_PATHS: dict[str, ModuleType] = {"naive": naive, "cpu": cpu, "train": train}


def long_conv(
    u: torch.Tensor,
    kernel: torch.Tensor,
    kernel_rev: torch.Tensor | None,
    skip: torch.Tensor,
    gate: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    *,
    kernels: str = "auto",
) -> torch.Tensor:
    """`naive.long_conv` by the path `kernels` names."""
    path = choose(
        "long_conv",
        kernels,
        u.device,
        inference=not needs_grad(u, kernel, kernel_rev, skip, gate),
        unsupported=lambda: triton_module("long_conv").unsupported(u),
    )
    module = triton_module("long_conv") if path == "triton" else _PATHS[path]
    return module.long_conv(u, kernel, kernel_rev, skip, gate, mask)


__all__ = ["long_conv"]
