"""Time that passes only when somebody waits."""

from __future__ import annotations

import threading
from typing import Any

from m2rag.backends.exchange import RetryPolicy


class FakeTime:
    """A clock and its waits; `waits` holds every one, in seconds.

    Args:
        tick: how much time every look at the clock takes.
    """

    def __init__(self, tick: float = 0.0) -> None:
        self.now = 1_000.0
        self.waits: list[float] = []
        self._tick = tick
        self._lock = threading.Lock()

    def clock(self) -> float:
        with self._lock:
            self.now += self._tick
            return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.waits.append(seconds)
            self.now += seconds

    async def asleep(self, seconds: float) -> None:
        self.sleep(seconds)

    def policy(self, **changes: Any) -> RetryPolicy:
        """Waits as long as it may (no luck in the draw), unless changed."""
        settings = {
            "clock": self.clock,
            "sleep": self.sleep,
            "asleep": self.asleep,
            "draw": lambda: 1.0,
            "now": lambda: 1_700_000_000.0,
        }
        return RetryPolicy(**{**settings, **changes})
