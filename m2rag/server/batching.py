"""Batches made of many callers' inputs: what a server with one model and many clients needs.

Callers hand in pieces, threads take batches of them and run them on the model. Who comes next is decided by a date:
the time a piece came in, plus a multiple of the time it will take. So a short text passes long ones that came a little
earlier, and a long one is not passed for ever. Short pieces have a lane of their own beside the long ones, because a
forward pass that has begun cannot be put off.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from m2rag.backends import Backend, BatchTooLargeError, PieceOutput
from m2rag.batching import Piece, Plan
from m2rag.errors import M2RagError
from m2rag.tokenizer import Tokenizer
from m2rag.words import WordVectors

SHORT_TOKENS = 512
"""Pieces of up to this cost, in padded tokens, go through the short lane."""

# So many times the seconds that a piece will take is it put back for.
_PATIENCE = 4.0
# What nobody waits for at a screen is put back by this many seconds more.
_BACKGROUND_SECONDS = 20.0
# Looked at for one batch: planning takes time too.
_CANDIDATES = 256
_FIRST_RATE = 5_000.0
# Beside a short batch that has work too, the long lane gets about a quarter of the CPU.
_LONG_NICENESS = 5

OnBatch = Callable[[str, int, int, float], None]


class ServerStoppedError(M2RagError):
    """The server is shutting down and takes no more work."""


class SharedBackend:
    """A backend whose batches are made of the pieces of all callers at once.

    Args:
        inner: runs the batches. It stays the caller's, and is not closed.
        short_batch_tokens: budget of a batch in the short lane; default: an eighth of the backend's own.
        on_batch: told of each batch (lane, pieces, tokens, seconds), from the lane's thread.
        clock: seconds.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        short_batch_tokens: int | None = None,
        on_batch: OnBatch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work = _Work(inner, clock)
        budgets = {
            "short": short_batch_tokens or max(inner.batch_tokens // 8, SHORT_TOKENS),
            "long": inner.batch_tokens,
        }
        for lane, budget in budgets.items():
            threading.Thread(
                target=self._work.serve, args=(lane, budget, on_batch), daemon=True, name=f"m2rag-{lane}"
            ).start()
        self._inner = inner
        self._delay = 0.0
        self.model_name = inner.model_name
        self.source = inner.source
        self.max_tokens = inner.max_tokens
        self.matryoshka_dimensions = inner.matryoshka_dimensions
        self.batch_tokens = inner.batch_tokens
        self.has_spans = inner.has_spans
        self.sends_text = inner.sends_text
        # The batches of a call are handed in together, so that they can be joined with others'.
        self.concurrency = 64

    def in_background(self) -> SharedBackend:
        """The same, for documents that come after all that somebody waits for; short texts are not put back."""
        twin: SharedBackend = object.__new__(SharedBackend)
        vars(twin).update(vars(self))
        twin._delay = _BACKGROUND_SECONDS
        # Its caller shows progress batch by batch, and waits for the first ones first.
        twin.concurrency = 2
        return twin

    @property
    def waiting_tokens(self) -> int:
        """Cost of what is waiting or running, in padded tokens."""
        return self._work.tokens

    @property
    def tokens_per_second(self) -> float:
        """Of late, over long pieces and short ones."""
        return self._work.rate

    def stop(self) -> None:
        """Take no more work; what waits fails with `ServerStoppedError`, what runs is finished."""
        self._work.stop()

    # What a backend is asked for.

    @property
    def dimension(self) -> int | None:
        return self._inner.dimension

    @property
    def tokenizer(self) -> Tokenizer:
        return self._inner.tokenizer

    @property
    def batch_rule(self) -> Plan:
        return self._inner.batch_rule

    def identity(self) -> dict[str, str]:
        return self._inner.identity()

    def words(self) -> WordVectors | None:
        return self._inner.words()

    def info(self) -> dict[str, Any]:
        return self._inner.info()

    def run(self, batch: Sequence[Piece]) -> list[PieceOutput]:
        future = self._work.put(batch, self._delay)
        try:
            return future.result()
        finally:
            # Nobody waits any more if this was interrupted.
            future.cancel()

    async def arun(self, batch: Sequence[Piece]) -> list[PieceOutput]:
        # Cancelled with its task: pieces that still wait are dropped.
        return await asyncio.wrap_future(self._work.put(batch, self._delay))

    def close(self) -> None:
        """The lanes go on for others: see `stop`."""

    async def aclose(self) -> None:
        """The lanes go on for others: see `stop`."""


class _Call:
    """The pieces of one call of `run`, which may end in several batches."""

    def __init__(self, size: int) -> None:
        self.future: Future[list[PieceOutput]] = Future()
        self._outputs: list[PieceOutput | None] = [None] * size
        self._left = size
        self._lock = threading.Lock()

    def take(self, position: int, output: PieceOutput) -> None:
        with self._lock:
            self._outputs[position] = output
            self._left -= 1
            if self._left:
                return
        try:
            self.future.set_result([output for output in self._outputs if output is not None])
        except InvalidStateError:
            pass  # cancelled meanwhile

    def fail(self, error: BaseException) -> None:
        try:
            self.future.set_exception(error)
        except InvalidStateError:
            pass  # cancelled, or another of its pieces failed before


@dataclass(order=True)
class _Waiting:
    """A piece in the queue, ordered by its date."""

    date: float
    number: int
    piece: Piece = field(compare=False)
    position: int = field(compare=False)
    call: _Call = field(compare=False)
    cost: int = field(compare=False)


class _Work:
    """The queues of both lanes and what is known of the model's speed."""

    def __init__(self, inner: Backend, clock: Callable[[], float]) -> None:
        self._inner = inner
        self._clock = clock
        self._queues: dict[str, list[_Waiting]] = {"short": [], "long": []}
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._stopped = False
        self.tokens = 0
        self.rate = _FIRST_RATE

    def put(self, batch: Sequence[Piece], delay: float) -> Future[list[PieceOutput]]:
        call = _Call(len(batch))
        now = self._clock()
        with self._changed:
            if self._stopped:
                raise ServerStoppedError("the server is shutting down")
            for position, piece in enumerate(batch):
                cost = self._inner.batch_rule.total([piece])
                short = cost <= SHORT_TOKENS
                date = now + _PATIENCE * cost / self.rate + (0.0 if short else delay)
                waiting = _Waiting(date, next(self._numbers), piece, position, call, cost)
                bisect.insort(self._queues["short" if short else "long"], waiting)
                self.tokens += cost
            self._changed.notify_all()
        call.future.add_done_callback(self._drop_cancelled)
        return call.future

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            left = [waiting for queue in self._queues.values() for waiting in queue]
            for queue in self._queues.values():
                queue.clear()
            self.tokens -= sum(waiting.cost for waiting in left)
            self._changed.notify_all()
        for waiting in left:
            waiting.call.fail(ServerStoppedError("the server is shutting down"))

    def serve(self, lane: str, budget: int, on_batch: OnBatch | None) -> None:
        """What a lane's thread does until `stop`."""
        if lane == "long":
            _give_way()
        while batch := self._next(lane, budget):
            started = self._clock()
            self._run(batch)
            seconds = self._clock() - started
            cost = sum(waiting.cost for waiting in batch)
            with self._changed:
                self.tokens -= cost
                if seconds > 0:
                    # Weighed by size: a lonely query says little about how fast a document will be.
                    weight = min(cost / 16_384, 0.3)
                    self.rate += weight * (cost / seconds - self.rate)
            if on_batch is not None:
                on_batch(lane, len(batch), cost, seconds)

    def _next(self, lane: str, budget: int) -> list[_Waiting]:
        """The batch that holds the piece whose turn it is; none after `stop`."""
        queue = self._queues[lane]
        with self._changed:
            while not queue:
                if self._stopped:
                    return []
                self._changed.wait()
            candidates = queue[:_CANDIDATES]
            plan = self._inner.batch_rule.plan([waiting.piece for waiting in candidates], budget)
            chosen = next(positions for positions in plan if 0 in positions)
            for position in sorted(chosen, reverse=True):
                del queue[position]
            return [candidates[position] for position in chosen]

    def _run(self, batch: Sequence[_Waiting]) -> None:
        try:
            outputs = self._inner.run([waiting.piece for waiting in batch])
        except BatchTooLargeError as error:
            if len(batch) == 1:
                batch[0].call.fail(error)
                return
            # The callers know only batches of their own: those that are others' fault are divided here.
            half = len(batch) // 2
            self._run(batch[:half])
            self._run(batch[half:])
        # Whatever it is, it is for those who wait: this thread serves others too.
        except Exception as error:
            for waiting in batch:
                waiting.call.fail(error)
        else:
            for waiting, output in zip(batch, outputs, strict=True):
                waiting.call.take(waiting.position, output)

    def _drop_cancelled(self, future: Future[list[PieceOutput]]) -> None:
        """Forget the pieces of a call that nobody waits for."""
        if not future.cancelled() and not isinstance(_failure(future), BaseException):
            return
        with self._changed:
            for queue in self._queues.values():
                kept = [waiting for waiting in queue if waiting.call.future is not future]
                self.tokens -= sum(waiting.cost for waiting in queue) - sum(waiting.cost for waiting in kept)
                queue[:] = kept


def _give_way() -> None:
    """Let this thread, and those that the model starts from it, have less of a full CPU than others."""
    # Elsewhere a niceness is the whole process's.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.nice(0) + _LONG_NICENESS)


def _failure(future: Future[Any]) -> BaseException | None:
    try:
        return future.exception()
    except CancelledError:
        return None
