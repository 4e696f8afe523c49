"""Block-diagonal gated MLP with residual and LayerNorm."""

from __future__ import annotations

from types import ModuleType

import torch

from m2rag_kernels.blockdiag_glu import cpu, naive, train
from m2rag_kernels.dispatch import choose, needs_grad, triton_module

_PATHS: dict[str, ModuleType] = {"naive": naive, "train": train}


def blockdiag_glu(
    x: torch.Tensor,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    dropout: float = 0.0,
    *,
    kernels: str = "auto",
) -> torch.Tensor:
    """`naive.blockdiag_glu` by the path `kernels` names."""
    tensors = (x, w_in, w_out, bias, norm_weight, norm_bias)
    path = choose(
        "blockdiag_glu",
        kernels,
        x.device,
        inference=dropout == 0 and not needs_grad(*tensors),
        unsupported=lambda: triton_module("blockdiag_glu").unsupported(*tensors, eps, dropout),
    )
    if path == "cpu":
        return cpu.blockdiag_glu(*tensors, eps)
    module = triton_module("blockdiag_glu") if path == "triton" else _PATHS[path]
    return module.blockdiag_glu(*tensors, eps, dropout)


__all__ = ["blockdiag_glu"]
