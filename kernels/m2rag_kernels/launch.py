"""What launching a Triton kernel takes beside the kernel."""

from __future__ import annotations

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# For every launch. Contracting a product and a sum is what Triton does, but its newer versions warn unless told to.
OPTIONS = {"enable_fp_fusion": True}


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability that tiles are chosen for; off the GPU, in Triton's interpreter, that of a Hopper."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def on_device_of(x: torch.Tensor) -> torch.cuda.device_of:
    """Context in which launches go to the GPU of `x`: Triton takes the current one."""
    return torch.cuda.device_of(x)


def unsupported_dtype(dtype: torch.dtype) -> str | None:
    """Why the Triton kernels cannot take tensors of this dtype, or None if they can."""
    if dtype in DTYPES:
        return None
    return f"the dtype is {str(dtype).removeprefix('torch.')}, the kernels take float32, bfloat16 and float16"
