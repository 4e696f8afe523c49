"""How long a call takes on a device, what it allocates, and how fast the device copies."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common import Row, significant

WARM_UP, MIN_RUNS, MAX_RUNS = 2, 5, 50


@dataclass(frozen=True)
class Meter:
    """Times calls by events on the device; on a CPU, where only dry runs happen, one call by the clock.

    Attributes:
        device: "cuda" or "cpu".
        seconds: about how long one call is repeated for; 0: only the first call is made, which compiles.
    """

    device: str
    seconds: float = 1.0

    def measure(self, call: Callable[[], Any]) -> Row:
        """Median seconds of a call, those of the first one (which compiles), and the peak of what it allocates."""
        first = self._clocked(call)
        if self.device != "cuda" or self.seconds == 0:
            return {"seconds": significant(first), "first_seconds": significant(first), "runs": 1}
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        once = min(self._clocked(call) for _ in range(WARM_UP))
        peak = torch.cuda.max_memory_allocated()
        times = self._timed(call, max(MIN_RUNS, min(MAX_RUNS, int(self.seconds / max(once, 1e-6)))))
        return {
            "seconds": significant(statistics.median(times)),
            "min_seconds": significant(min(times)),
            "first_seconds": significant(first),
            "runs": len(times),
            "peak_mb": significant((peak - before) / 1e6),
            "peak_total_mb": significant(peak / 1e6),
        }

    def _clocked(self, call: Callable[[], Any]) -> float:
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - start

    def _timed(self, call: Callable[[], Any], runs: int) -> list[float]:
        marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(runs)]
        for start, end in marks:
            start.record()
            call()
            end.record()
        self._wait()
        return [start.elapsed_time(end) / 1e3 for start, end in marks]

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def copy_bytes_per_second(self) -> float:
        """Bytes read plus bytes written by a copy much larger than the caches."""
        source = torch.randn(2**28 if self.device == "cuda" else 2**16, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.measure(lambda: target.copy_(source))["seconds"]


def traffic(*tensors: torch.Tensor | None) -> int:
    """Bytes of tensors that are read or written once each."""
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
