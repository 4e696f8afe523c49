"""What the log says of a run: mean losses, speed, time left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import torch

logger = logging.getLogger(__name__)


def format_duration(seconds: float) -> str:
    """The two largest units: "1 h 12 min", "3 min 20 s", "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Meter:
    """Running means of the losses, logged every few steps with speed and time left.

    Args:
        total_steps: of the whole run.
        tokens_left: tokens that the run still needs after so many steps; stages differ in length, so time left is
            told from tokens and not from steps.
        every: steps between two lines.
        clock: seconds from any origin.
    """

    def __init__(
        self,
        total_steps: int,
        tokens_left: Callable[[int], float],
        *,
        every: int = 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps = total_steps
        self._tokens_left = tokens_left
        self._every = every
        self._clock = clock
        self._reset()

    def _reset(self) -> None:
        self._began, self._steps, self._tokens = self._clock(), 0, 0
        self._sums: dict[str, list[float]] = {}

    def add(self, step: int, n_tokens: int, losses: Mapping[str, torch.Tensor]) -> None:
        """Count step `step` (from 0)."""
        self._steps += 1
        self._tokens += n_tokens
        for name, value in losses.items():
            self._sums.setdefault(name, []).append(float(value.detach()))
        if (step + 1) % self._every == 0:
            self._log(step + 1)
            self._reset()

    def _log(self, done: int) -> None:
        seconds = max(self._clock() - self._began, 1e-9)
        means = " ".join(f"{name} {sum(values) / len(values):.4f}" for name, values in self._sums.items())
        rate = self._tokens / seconds
        logger.info(
            "step %d of %d: %s, %.2f steps/s, %.0f tokens/s, %s left",
            done,
            self._total_steps,
            means,
            self._steps / seconds,
            rate,
            format_duration(self._tokens_left(done) / rate),
        )
