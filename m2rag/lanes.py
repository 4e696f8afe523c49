"""Several pieces of work at once, at most so many, outcomes as they come: one function for threads, one for tasks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
E = TypeVar("E", bound=Exception)


def run_lanes(
    next_item: Callable[[], T | None], work: Callable[[T], R], limit: int, outcomes: tuple[type[E], ...]
) -> Iterator[tuple[T, R | E]]:
    """(item, what `work` gave or raised) of every item, in the order they end.

    Args:
        next_item: the next one, None while there is none; asked again after every outcome.
        work: called from several threads if `limit` is above 1 and there are several items.
        limit: how many at once.
        outcomes: exceptions that are handed on like results; all others are raised.
    """
    pending: dict[Future[R], T] = {}
    while True:
        fresh = list(islice(iter(next_item, None), limit - len(pending)))
        if not pending and len(fresh) == 1:
            # One at a time stays in this thread.
            yield fresh[0], _outcome(partial(work, fresh[0]), outcomes)
            continue
        pending.update((_in_thread(work, item), item) for item in fresh)
        if not pending:
            return
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            yield pending.pop(future), _outcome(future.result, outcomes)


async def arun_lanes(
    next_item: Callable[[], T | None], work: Callable[[T], Awaitable[R]], limit: int, outcomes: tuple[type[E], ...]
) -> AsyncGenerator[tuple[T, R | E], None]:
    """As `run_lanes`, in tasks of the running event loop; what is not finished when it is closed is cancelled."""

    async def lane(item: T) -> R | E:
        try:
            return await work(item)
        except outcomes as error:
            return error

    pending: dict[asyncio.Task[R | E], T] = {}
    try:
        while True:
            fresh = islice(iter(next_item, None), limit - len(pending))
            pending.update((asyncio.create_task(lane(item)), item) for item in fresh)
            if not pending:
                return
            for task in (await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED))[0]:
                yield pending.pop(task), task.result()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def _outcome(result: Callable[[], R], outcomes: tuple[type[E], ...]) -> R | E:
    try:
        return result()
    except outcomes as error:
        return error


def _in_thread(work: Callable[[T], R], item: T) -> Future[R]:
    """The work begun in a thread that does not keep an interrupted process from ending, unlike an executor's."""
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(work(item))
        # Not handled here: raised by whoever asks for the result.
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True, name="m2rag-lane").start()
    return future
