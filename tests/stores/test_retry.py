"""Patience with a clock of its own: no test waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from m2rag.stores.retry import Patience, Transient


class Clock:
    """Time passes only by sleeping, and by what a call is said to take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def patience(clock: Clock, draw: float = 1.0, **limits: float) -> Patience:
    return Patience(**limits, clock=lambda: clock.now, sleep=clock.sleep, draw=lambda: draw)


def failing(times: int, wait: float = 0.0) -> tuple[Callable[[], str], list[int]]:
    tries: list[int] = []

    def call() -> str:
        tries.append(len(tries) + 1)
        if len(tries) <= times:
            raise Transient(ConnectionError(f"no {len(tries)}"), wait=wait)
        return "done"

    return call, tries


def test_success_waits_for_nothing() -> None:
    clock = Clock()
    call, tries = failing(0)
    assert patience(clock).run(call, "it") == "done" and tries == [1] and clock.slept == []


def test_pauses_double_up_to_the_longest() -> None:
    clock = Clock()
    call, tries = failing(6)
    assert patience(clock, first_pause=1, longest_pause=10, seconds=99).run(call, "it") == "done"
    assert clock.slept == [1, 2, 4, 8, 10, 10] and len(tries) == 7


def test_pauses_are_drawn() -> None:
    clock = Clock()
    patience(clock, draw=0.25, first_pause=1).run(failing(3)[0], "it")
    assert clock.slept == [0.25, 0.5, 1.0]


def test_it_ends() -> None:
    clock = Clock()
    call, tries = failing(10**6)
    with pytest.raises(Transient, match="no 7") as caught:
        patience(clock, first_pause=1, longest_pause=10, seconds=40).run(call, "it")
    assert isinstance(caught.value.cause, ConnectionError)
    assert sum(clock.slept) <= 40 and len(tries) == 7


def test_no_pauses_still_end_with_the_clock() -> None:
    """Draws of almost 0 must not make an endless loop: the time that calls take counts."""
    clock = Clock()
    call, tries = failing(10**6)

    def slow() -> str:
        clock.now += 5
        return call()

    with pytest.raises(Transient):
        patience(clock, draw=0.0, seconds=60).run(slow, "it")
    assert len(tries) == 13


def test_what_the_store_asks_for_is_kept() -> None:
    clock = Clock()
    patience(clock, first_pause=1, seconds=60).run(failing(2, wait=7)[0], "it")
    assert clock.slept == [7, 7]


def test_a_wait_beyond_the_end_is_not_begun() -> None:
    clock = Clock()
    call, tries = failing(1, wait=600)
    with pytest.raises(Transient):
        patience(clock, seconds=60).run(call, "it")
    assert clock.slept == [] and tries == [1]


def test_zero_seconds_is_one_try() -> None:
    call, tries = failing(1)
    with pytest.raises(Transient):
        patience(Clock(), seconds=0).run(call, "it")
    assert tries == [1]


def test_other_errors_come_through_at_once() -> None:
    clock = Clock()

    def call() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        patience(clock).run(call, "it")
    assert clock.slept == []


def test_it_says_what_it_waits_for(caplog: pytest.LogCaptureFixture) -> None:
    patience(Clock(), first_pause=1).run(failing(1)[0], "the index at X")
    assert caplog.messages == ["the index at X: no 1. Try 2 in 1.0 s"]
