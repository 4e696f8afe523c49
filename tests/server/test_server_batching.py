"""Many callers, one model: nothing lost or crossed, short before long, divided where memory is short."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tiny_models import TOKENIZER, FakeBackend, sentence

from m2rag import M2Embedder
from m2rag.backends import BatchTooLargeError, PieceOutput
from m2rag.batching import Piece
from m2rag.errors import OutOfMemoryError
from m2rag.server.batching import SHORT_TOKENS, ServerStoppedError, SharedBackend


class Held(FakeBackend):
    """Long batches wait for `go`, so that what comes meanwhile queues up."""

    def __init__(self, **options: Any) -> None:
        super().__init__(max_tokens=100_000, **options)
        self.batch_tokens = 8_192
        self.go = threading.Event()
        self.entered = threading.Semaphore(0)

    def run(self, batch: Sequence[Piece]) -> list[PieceOutput]:
        if max(map(len, batch)) > SHORT_TOKENS:
            self.entered.release()
            assert self.go.wait(20)
        return super().run(batch)


@pytest.fixture
def shared() -> Iterator[Callable[..., SharedBackend]]:
    made: list[SharedBackend] = []

    def make(inner: FakeBackend, **options: Any) -> SharedBackend:
        made.append(SharedBackend(inner, **options))
        return made[-1]

    yield make
    for backend in made:
        backend.stop()


def piece(tokens: int, document: int = 0) -> Piece:
    return Piece(document, 0, np.full(tokens, 2_000, dtype=np.int32), "")


def waiting(backend: SharedBackend, tokens: int) -> None:
    deadline = time.monotonic() + 20
    while backend.waiting_tokens != tokens:
        assert time.monotonic() < deadline, f"{backend.waiting_tokens} tokens wait, not {tokens}"
        time.sleep(0.001)


def test_callers_get_their_own_vectors_though_they_share_batches(shared: Callable[..., SharedBackend]) -> None:
    inner = FakeBackend(max_tokens=4_096)
    inner.batch_tokens = 16_384
    embedder = M2Embedder(backend=shared(inner), on_too_long="window")
    alone = M2Embedder(backend=FakeBackend(max_tokens=4_096), on_too_long="window")
    texts = [[sentence(1 + (7 * i + j) % 900, seed=100 * i + j) for j in range(1 + i % 3)] for i in range(60)]

    async def all_at_once() -> list[np.ndarray]:
        return [r.vectors for r in await asyncio.gather(*(embedder.aembed_documents(some) for some in texts))]

    for some, vectors in zip(texts, asyncio.run(all_at_once()), strict=True):
        np.testing.assert_allclose(vectors, alone.embed_documents(some).vectors, atol=1e-6)
    assert len(inner.batches) < sum(map(len, texts)), "no two callers shared a batch"


def test_threads_and_tasks_may_call(shared: Callable[..., SharedBackend]) -> None:
    embedder = M2Embedder(backend=shared(FakeBackend()))
    with ThreadPoolExecutor(8) as threads:
        vectors = list(threads.map(lambda i: embedder.embed_query(sentence(3, seed=i)), range(50)))
    alone = M2Embedder(backend=FakeBackend())
    for i, vector in enumerate(vectors):
        np.testing.assert_allclose(vector, alone.embed_query(sentence(3, seed=i)), atol=1e-6)


def test_a_short_text_does_not_wait_for_a_long_one(shared: Callable[..., SharedBackend]) -> None:
    inner = Held()
    backend = shared(inner)
    with ThreadPoolExecutor(1) as thread:
        long = thread.submit(backend.run, [piece(SHORT_TOKENS + 1)])
        assert inner.entered.acquire(timeout=20)
        assert len(backend.run([piece(12)])) == 1
        assert not long.done()
        inner.go.set()
        assert len(long.result(20)) == 1


def order_of(inner: Held) -> list[int]:
    return [one.document for batch in inner.batches for one in batch]


def test_the_shorter_of_two_long_ones_comes_first_but_none_waits_for_ever(
    shared: Callable[..., SharedBackend],
) -> None:
    inner, now = Held(), [0.0]
    backend = shared(inner, clock=lambda: now[0])
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(backend.run, [piece(8_000, document=0)])]
        assert inner.entered.acquire(timeout=20)
        total = 8_000
        # 30,000 tokens take 6 s at first, so that one is put back by 24 s.
        for document, tokens, at in ((1, 30_000, 0.0), (2, 1_000, 0.1), (3, 4_000, 10.0), (4, 5_000, 60.0)):
            now[0] = at
            calls.append(threads.submit(backend.run, [piece(tokens, document)]))
            total += tokens
            waiting(backend, total)
        inner.go.set()
        for call in calls:
            call.result(20)
    assert order_of(inner) == [0, 2, 3, 1, 4]


def test_work_in_the_background_comes_last(shared: Callable[..., SharedBackend]) -> None:
    inner = Held()
    backend = shared(inner)
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(backend.run, [piece(8_000, document=0)])]
        assert inner.entered.acquire(timeout=20)
        calls.append(threads.submit(backend.in_background().run, [piece(5_000, document=1)]))
        waiting(backend, 13_000)
        calls.append(threads.submit(backend.run, [piece(7_000, document=2)]))
        waiting(backend, 20_000)
        inner.go.set()
        for call in calls:
            call.result(20)
    assert order_of(inner) == [0, 2, 1]


def test_a_query_is_not_put_back_with_the_documents(shared: Callable[..., SharedBackend]) -> None:
    """A search in the page's index uses the embedder that its documents are indexed with."""
    held = threading.Event()

    def hold(batch: Sequence[Piece]) -> None:
        if batch[0].document == 0:
            assert held.wait(20)

    inner = FakeBackend(fails=hold)
    inner.batch_tokens = 64
    backend = shared(inner, short_batch_tokens=64)
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(backend.run, [piece(60, document=0)])]
        while not inner.batches:
            time.sleep(0.001)
        calls.append(threads.submit(backend.in_background().run, [piece(50, document=1)]))
        waiting(backend, 110)
        calls.append(threads.submit(backend.run, [piece(60, document=2)]))
        waiting(backend, 170)
        held.set()
        for call in calls:
            call.result(20)
    assert [batch[0].document for batch in inner.batches] == [0, 1, 2]


def test_what_nobody_waits_for_is_not_computed(shared: Callable[..., SharedBackend]) -> None:
    inner = Held()
    backend = shared(inner)

    async def leave() -> None:
        first = asyncio.create_task(backend.arun([piece(8_000, document=0)]))
        assert await asyncio.to_thread(inner.entered.acquire, timeout=20)
        second = asyncio.create_task(backend.arun([piece(7_000, document=1), piece(6_000, document=1)]))
        await asyncio.to_thread(waiting, backend, 21_000)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await asyncio.to_thread(waiting, backend, 8_000)
        inner.go.set()
        await first

    asyncio.run(leave())
    waiting(backend, 0)
    assert order_of(inner) == [0]


def test_a_batch_that_does_not_fit_is_divided(shared: Callable[..., SharedBackend]) -> None:
    def little_memory(batch: Sequence[Piece]) -> None:
        if sum(map(len, batch)) > 100:
            raise BatchTooLargeError("can't allocate memory")

    inner = FakeBackend(max_tokens=4_096, fails=little_memory)
    inner.batch_tokens = 16_384
    backend = shared(inner)
    embedder = M2Embedder(backend=backend)

    async def all_at_once() -> list[Any]:
        calls = [embedder.aembed_query(sentence(40, seed=i)) for i in range(20)]
        return await asyncio.gather(*calls, embedder.aembed_query(sentence(300)), return_exceptions=True)

    *vectors, refused = asyncio.run(all_at_once())
    for i, vector in enumerate(vectors):
        own = M2Embedder(backend=FakeBackend(max_tokens=4_096)).embed_query(sentence(40, seed=i))
        np.testing.assert_allclose(vector, own, atol=1e-6)
    assert isinstance(refused, OutOfMemoryError)
    waiting(backend, 0)


def test_an_error_of_the_model_reaches_who_waits_and_the_lane_goes_on(
    shared: Callable[..., SharedBackend],
) -> None:
    broken = [True]

    def breaks(batch: Sequence[Piece]) -> None:
        if broken[0]:
            raise RuntimeError("the device is gone")

    backend = shared(FakeBackend(fails=breaks))
    with pytest.raises(RuntimeError, match="the device is gone"):
        backend.run([piece(5)])
    broken[0] = False
    assert len(backend.run([piece(5)])) == 1
    waiting(backend, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="niceness of threads")
def test_documents_give_way_to_queries_on_a_full_cpu(shared: Callable[..., SharedBackend]) -> None:
    niceness: dict[bool, int] = {}

    def note(batch: Sequence[Piece]) -> None:
        niceness[len(batch[0]) > SHORT_TOKENS] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    backend = shared(FakeBackend(max_tokens=4_096, fails=note))
    backend.run([piece(SHORT_TOKENS + 1), piece(5)])
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert niceness[False] == own < niceness[True]


def test_stopping_ends_all_waits(shared: Callable[..., SharedBackend]) -> None:
    inner = Held()
    backend = shared(inner)
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(backend.run, [piece(8_000)])
        assert inner.entered.acquire(timeout=20)
        queued = threads.submit(backend.run, [piece(8_000)])
        waiting(backend, 16_000)
        backend.stop()
        with pytest.raises(ServerStoppedError):
            queued.result(20)
        inner.go.set()
        assert len(running.result(20)) == 1, "what had begun is finished"
    with pytest.raises(ServerStoppedError):
        backend.run([piece(5)])


def test_it_passes_for_what_it_wraps(shared: Callable[..., SharedBackend]) -> None:
    inner = FakeBackend(matryoshka=(4,))
    ours, own = M2Embedder(backend=shared(inner), dimensions=4), M2Embedder(backend=inner, dimensions=4)
    assert ours.fingerprint == own.fingerprint
    assert (ours.dimension, ours.max_tokens, ours.model_name) == (4, own.max_tokens, own.model_name)
    text = " ".join(["wheel"] * 30)
    np.testing.assert_array_equal(ours.embed_passages(text).vectors, own.embed_passages(text).vectors)
    assert len(TOKENIZER.encode(text)) == 30
