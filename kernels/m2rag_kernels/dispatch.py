"""Which path an operation takes, and which one it took."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from functools import lru_cache
from types import ModuleType

import torch

logger = logging.getLogger(__name__)

KERNELS = ("auto", "naive", "cpu", "train", "triton")

# Ampere: the first generation whose tensor cores multiply bf16.
MIN_CAPABILITY = (8, 0)

_last: dict[str, str] = {}
_warned: set[tuple[str, str]] = set()


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


def no_triton_reason(device: torch.device) -> str | None:
    """Why the triton path cannot run on `device`, or None if it can.

    With TRITON_INTERPRET=1 in the environment before the kernels are imported it runs on a CPU, slowly: for tests.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'm2rag[gpu]'"
    if device.type == "cpu":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if interpreted else "the tensors are on cpu"
    if device.type != "cuda":
        return f"the tensors are on {device}"
    return _no_triton_on_gpu(device.index if device.index is not None else torch.cuda.current_device())


@lru_cache(maxsize=64)
def _no_triton_on_gpu(index: int) -> str | None:
    if torch.version.hip is not None:
        return "AMD GPUs are not supported"
    capability = torch.cuda.get_device_capability(index)
    if capability < MIN_CAPABILITY:
        name = torch.cuda.get_device_name(index)
        return f"{name} has compute capability {capability[0]}.{capability[1]}, 8.0 is needed"
    return None


def triton_module(op: str) -> ModuleType:
    """`m2rag_kernels.<op>.triton`; only for those who know that triton is there."""
    return importlib.import_module(f"m2rag_kernels.{op}.triton")


def choose(
    op: str,
    kernels: str,
    device: torch.device,
    *,
    inference: bool,
    unsupported: Callable[[], str | None] | None = None,
) -> str:
    """Name of the path that operation `op` takes: `"naive"`, `"cpu"`, `"train"` or `"triton"`.

    `"auto"` on a CPU takes the cpu path where nothing but the result is wanted, and the train path where gradients are;
    on a GPU the triton path, or, after one warning that says why, the naive one; elsewhere the naive one.

    Args:
        inference: nothing but the result is wanted: no gradients, no dropout.
        unsupported: tells why the triton path cannot compute what is asked for, None if it can. Only called where
            triton is.

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
        path = {"cpu": "cpu" if inference else "train", "cuda": "triton"}.get(device.type, "naive")
    if path == "triton":
        path = _triton_or_naive(op, kernels, device, unsupported)
    if _last.get(op) != path:
        logger.debug("%s takes the %s path", op, path)
        _last[op] = path
    return path


def _triton_or_naive(op: str, kernels: str, device: torch.device, unsupported: Callable[[], str | None] | None) -> str:
    reason = no_triton_reason(device)
    if reason is not None and kernels == "triton":
        raise ValueError(f"kernels='triton' needs a GPU and triton, and {reason}: use kernels='auto'")
    if reason is None and unsupported is not None:
        reason = unsupported()
    if reason is None:
        return "triton"
    if (op, reason) not in _warned:
        _warned.add((op, reason))
        logger.warning("%s takes the slower naive path: %s", op, reason)
    return "naive"


def chosen() -> dict[str, str]:
    """The path every operation took when it last ran in this process, by name of the operation."""
    return dict(_last)
