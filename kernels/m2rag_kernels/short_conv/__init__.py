"""Short convolution and first gate."""

from __future__ import annotations

from types import ModuleType

import torch

from m2rag_kernels.dispatch import choose, needs_grad, triton_module
from m2rag_kernels.short_conv import cpu, naive, train

_PATHS: dict[str, ModuleType] = {"naive": naive, "cpu": cpu, "train": train}


def short_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    kernels: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """`naive.short_conv` by the path `kernels` names."""
    path = choose(
        "short_conv",
        kernels,
        x.device,
        inference=not needs_grad(x, weight, bias),
        unsupported=lambda: triton_module("short_conv").unsupported(x, weight, bias, mask),
    )
    module = triton_module("short_conv") if path == "triton" else _PATHS[path]
    return module.short_conv(x, weight, bias, mask)


__all__ = ["short_conv"]
