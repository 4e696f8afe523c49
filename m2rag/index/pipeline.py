"""Read, embed and write at the same time, with little in between: what comes next is ready when its turn comes."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


def run_stages(read: Iterable[A], embed: Callable[[A], B], write: Callable[[B], object]) -> None:
    """Hand every item of `read` to `embed`, and what that gives to `write`, each in order and one at a time.

    `read` is followed in this thread, the two others have a thread each. At most one item waits between two stages, so
    that five are in memory at a time.

    An error of any stage ends all of them and is raised here. What had been read before an error of `read` is still
    embedded and written; what `embed` had given before its error is still written. An interrupt of this thread lets
    each stage finish what it has begun; a second one does not wait for that.
    """
    writing: Stage[B] = Stage(write)

    def hand_on(item: A) -> None:
        if not writing.put(embed(item)):
            raise _NextFailedError

    embedding: Stage[A] = Stage(hand_on)
    try:
        try:
            for item in read:
                if not embedding.put(item):
                    break
        except KeyboardInterrupt:
            raise
        except BaseException:
            _end(embedding, writing)
            raise
        _end(embedding, writing)
    except KeyboardInterrupt:
        embedding.drop()
        _end(embedding, writing)
        raise
    for stage in (writing, embedding):
        if stage.failure is not None:
            raise stage.failure


class _NextFailedError(Exception):
    """Ends a stage whose results nobody takes any more."""


def _end(*stages: Stage[Any]) -> None:
    # The first one first: until it has ended it may hand on to the next.
    for stage in stages:
        stage.end()


class Stage(Generic[A]):
    """A thread that does one thing with each item, in order; one item may wait for it.

    Args:
        work: done with each item.
    """

    def __init__(self, work: Callable[[A], object]) -> None:
        self._work = work
        self._waiting: deque[A] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self.failure: BaseException | None = None
        # Its caller's context variables, too: a store may ask them who is waiting.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True, name="m2rag-stage")
        self._thread.start()

    def put(self, item: A) -> bool:
        """Hand in an item, waiting while there is one already; False if the stage has failed and takes no more."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self.failure is not None)
            if self.failure is not None:
                return False
            self._waiting.append(item)
            self._changed.notify_all()
            return True

    def drop(self) -> None:
        """Forget the item that waits."""
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()

    def end(self) -> None:
        """Wait until all that was handed in is done, and end the thread."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if not self._waiting:
                    return
                item = self._waiting.popleft()
                self._changed.notify_all()
            try:
                self._work(item)
            # Raised by `run_stages`, in its caller's thread, whatever it is.
            except BaseException as error:
                with self._changed:
                    self.failure = error
                    self._waiting.clear()
                    self._changed.notify_all()
                return
