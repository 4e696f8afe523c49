"""Waiting for a store that does not answer: for a while, not for ever."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Transient(Exception):
    """What a call raises that is worth trying again; its cause is the error to report if it stays so.

    Args:
        cause: the client's error.
        wait: seconds the store asks to wait; 0 if it does not say.
    """

    def __init__(self, cause: Exception, wait: float = 0.0) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.wait = wait


@dataclass(frozen=True)
class Patience:
    """How long to go on with a store that does not answer.

    The pause before try n + 1 is drawn evenly from 0 to `first_pause` * 2**(n - 1) seconds, at most `longest_pause`,
    so that many writers do not come back all at once; a longer one that the store asks for is kept. When the next try
    would begin more than `seconds` after the first, the last error is raised.

    Attributes:
        seconds: from the first try to the last; 0 tries once.
        first_pause, longest_pause: in seconds.
        clock, sleep, draw: the time in seconds, a pause, a number from 0 to 1.
    """

    seconds: float = 60.0
    first_pause: float = 0.5
    longest_pause: float = 10.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    draw: Callable[[], float] = random.random

    def run(self, call: Callable[[], T], what: str) -> T:
        """The result of `call`, tried again as long as it raises `Transient`.

        Args:
            call: does the same however often it is done.
            what: what is tried, for the log.

        Raises:
            Transient: it was so to the end. Everything else a call raises comes through at once.
        """
        started = self.clock()
        for n in count(1):
            try:
                return call()
            except Transient as error:
                limit = min(self.longest_pause, self.first_pause * 2 ** min(n - 1, 30))
                pause = max(error.wait, self.draw() * limit)
                if self.clock() + pause - started > self.seconds:
                    raise
                logger.warning("%s: %s. Try %d in %.1f s", what, error, n + 1, pause)
                self.sleep(pause)
        raise AssertionError("unreachable")
