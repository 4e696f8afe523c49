"""Work done several at a time, by threads and by tasks: same items, same outcomes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from m2rag.lanes import arun_lanes, run_lanes

Run = Callable[..., list[tuple[int, Any]]]


def in_threads(next_item: Callable[[], int | None], work: Callable[[int], Any], limit: int) -> list[tuple[int, Any]]:
    return list(run_lanes(next_item, work, limit, (KeyError,)))


def in_tasks(next_item: Callable[[], int | None], work: Callable[[int], Any], limit: int) -> list[tuple[int, Any]]:
    async def awork(item: int) -> Any:
        return await asyncio.to_thread(work, item)

    async def run() -> list[tuple[int, Any]]:
        return [pair async for pair in arun_lanes(next_item, awork, limit, (KeyError,))]

    return asyncio.run(run())


both_ways = pytest.mark.parametrize("run", [in_threads, in_tasks])


def items(n: int) -> Callable[[], int | None]:
    todo = list(range(n))
    return lambda: todo.pop(0) if todo else None


@both_ways
@pytest.mark.parametrize("n", [0, 1, 2, 7])
@pytest.mark.parametrize("limit", [1, 3])
def test_every_item_once(run: Run, n: int, limit: int) -> None:
    assert sorted(run(items(n), lambda item: item * item, limit)) == [(item, item * item) for item in range(n)]


@both_ways
@pytest.mark.parametrize("limit", [1, 3])
def test_expected_errors_are_outcomes_and_others_are_raised(run: Run, limit: int) -> None:
    def work(item: int) -> int:
        if item == 2:
            raise KeyError("two")
        return item

    outcomes = dict(run(items(4), work, limit))
    assert isinstance(outcomes.pop(2), KeyError) and outcomes == {0: 0, 1: 1, 3: 3}
    with pytest.raises(ZeroDivisionError):
        run(items(4), lambda item: 1 // (item - 2), limit)


@both_ways
@pytest.mark.parametrize("limit", [1, 3])
def test_an_outcome_may_bring_new_items(run: Run, limit: int) -> None:
    """The first item's parts come only after its outcome is known."""
    todo = [8]

    def work(item: int) -> int:
        if item > 1:
            todo.extend([item // 2, item // 2])
        return item

    assert sorted(item for item, _ in run(lambda: todo.pop() if todo else None, work, limit)) == [1] * 8 + [2] * 4 + [
        4,
        4,
        8,
    ]


@both_ways
def test_as_many_at_once_as_allowed(run: Run) -> None:
    together = threading.Barrier(3)
    run(items(9), lambda item: together.wait(timeout=20), 3)


def test_one_at_a_time_stays_in_the_thread() -> None:
    names = [name for _, name in run_lanes(items(3), lambda item: threading.current_thread().name, 1, ())]
    assert set(names) == {threading.current_thread().name}
    [(_, name)] = run_lanes(items(1), lambda item: threading.current_thread().name, 4, ())
    assert name == threading.current_thread().name


def test_leaving_early_cancels_the_rest() -> None:
    cancelled = []

    async def work(item: int) -> int:
        try:
            await asyncio.sleep(0 if item == 0 else 60)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        return item

    async def run() -> None:
        lanes = arun_lanes(items(3), work, 3, ())
        async for pair in lanes:
            assert pair == (0, 0)
            break
        await lanes.aclose()

    asyncio.run(run())
    assert sorted(cancelled) == [1, 2]
