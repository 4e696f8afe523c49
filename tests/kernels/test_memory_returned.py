"""What a process that lives long does with memory: what is kept does not tear the heap, what is free goes back."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from m2rag_kernels.cache import HeapTrimmer, lasting_empty

needs_glibc = pytest.mark.skipif(HeapTrimmer()._trim is None, reason="another allocator than glibc's")

# Megabytes of the process; tensors of 16 MB that come from the heap, as in a forward pass.
BEGINNING = """
import torch
from m2rag_kernels import HeapTrimmer, Workspace
from m2rag_kernels.cache import lasting_empty
Workspace().for_one_call()
def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
def filled(make):
    return make((4 * 2**20,), torch.float32).fill_(1)
def heap(shape, dtype):
    return torch.empty(shape, dtype=dtype)
def pin():  # what lies above a free block keeps it from going back by itself
    return torch.ones(2**17)
"""


def run(code: str) -> list[int]:
    command = [sys.executable, "-c", BEGINNING + textwrap.dedent(code)]
    return [int(n) for n in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


@pytest.mark.parametrize(("shape", "dtype"), [((3, 5), torch.complex64), ((0,), torch.float32), ((7,), torch.bfloat16)])
def test_lasting_tensors_are_tensors(shape, dtype):
    with torch.inference_mode():
        tensor = lasting_empty(shape, dtype)
        assert (tensor.shape, tensor.dtype, tensor.is_contiguous()) == (shape, dtype, True)
        value = torch.randn(shape).to(dtype)
        assert torch.equal(tensor.copy_(value), value)


@needs_glibc
def test_lasting_tensors_leave_no_holes():
    before, full, after = run("""
        print(megabytes())
        kept, small = [], []
        for _ in range(20):
            kept.append(filled(lasting_empty))
            small.append(pin())
        print(megabytes())
        del kept
        print(megabytes())
    """)
    assert full - before >= 320
    assert after - before < 64, full


@needs_glibc
def test_holes_go_back_to_the_system():
    before, torn, trimmed = run("""
        print(megabytes())
        large, small = [], []
        for _ in range(20):
            large.append(filled(heap))
            small.append(pin())
        del large
        print(megabytes())
        HeapTrimmer(seconds=0)()
        print(megabytes())
    """)
    assert torn - before >= 300, "nothing was torn: this proves nothing"
    assert trimmed - before < 32


def test_it_trims_no_more_often_than_told(monkeypatch):
    now, calls = [100.0], []
    monkeypatch.setattr("m2rag_kernels.cache.time.monotonic", lambda: now[0])
    trimmer = HeapTrimmer(seconds=5)
    trimmer._trim = calls.append
    for seconds in (1, 3, 1, 1, 2, 4):
        now[0] += seconds
        trimmer()
    assert len(calls) == 2  # at 105 and at 112
