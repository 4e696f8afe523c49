"""What the Triton kernels share: products and roundings that are right in Triton's interpreter too.

Not imported without triton.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(a, b, acc=None):
    """a @ b (+ acc) with fp32 sums; fp32 operands are not rounded to TF32 on their way in."""
    if INTERPRETED:
        # The interpreter multiplies bf16 operands as if their bits were integers.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """fp32 values in another dtype, to nearest."""
    if INTERPRETED:
        if dtype == tl.bfloat16:
            # The interpreter cuts bits off: carry into the ones that stay.
            bits = x.to(tl.int32, bitcast=True)
            bits += 0x7FFF + ((bits >> 16) & 1)
            x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)
