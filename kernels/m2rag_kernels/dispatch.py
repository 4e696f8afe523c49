"""Which path an operation takes, and which one it took."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger(__name__)

KERNELS = ("auto", "naive", "cpu", "train")

_last: dict[str, str] = {}


def check_kernels(kernels: str) -> str:
    """Return the name.

    Raises:
        ValueError: no path has this name.
    """
    if kernels not in KERNELS:
        raise ValueError(f"kernels is {kernels!r}, must be one of {', '.join(map(repr, KERNELS))}")
    return kernels


def needs_grad(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd would record an operation on these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def choose(op: str, kernels: str, device: torch.device, *, inference: bool) -> str:
    """Name of the path that operation `op` takes: `"naive"`, `"cpu"` or `"train"`.

    `"auto"` on a CPU takes the cpu path where nothing but the result is wanted, and the train path where gradients are;
    elsewhere the naive one.

    Raises:
        ValueError: unknown name, or the path asked for by name does not apply.
    """
    check_kernels(kernels)
    cpu_applies = inference and device.type == "cpu"
    if kernels == "cpu" and not cpu_applies:
        reason = f"the tensors are on {device}" if inference else "gradients or dropout are wanted"
        raise ValueError(
            f"kernels='cpu' is an inference path on CPUs and {reason}: "
            "use torch.no_grad() and eval(), or kernels='auto'"
        )
    path = kernels
    if kernels == "auto":
        path = "naive" if device.type != "cpu" else "cpu" if inference else "train"
    if _last.get(op) != path:
        logger.debug("%s takes the %s path", op, path)
        _last[op] = path
    return path


def chosen() -> dict[str, str]:
    """The path every operation took when it last ran in this process, by name of the operation."""
    return dict(_last)
