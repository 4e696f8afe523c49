"""Three stages at once: order, bounds, and what becomes of what is under way when one fails."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from m2rag.index.pipeline import run_stages


def test_everything_goes_through_in_order() -> None:
    written: list[str] = []
    run_stages(range(200), lambda number: f"<{number}>", written.append)
    assert written == [f"<{number}>" for number in range(200)]
    run_stages([], lambda item: pytest.fail("there is no item"), written.append)


def test_stages_overlap_and_hold_five_items_at_most() -> None:
    """Each stage waits until the others have gone as far as they can without it."""
    read: list[int] = []
    go = threading.Event()
    written: list[int] = []

    def source() -> Iterator[int]:
        for number in range(20):
            read.append(number)
            yield number

    def write(number: int) -> None:
        assert go.wait(20)
        written.append(number)

    def release() -> None:
        deadline = time.monotonic() + 20
        while len(read) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.05)
        held.append(len(read))
        go.set()

    held: list[int] = []
    releasing = threading.Thread(target=release)
    releasing.start()
    run_stages(source(), lambda number: number, write)
    releasing.join()
    assert held == [5], "being written, waiting, being embedded, waiting, just read"
    assert written == list(range(20))


class Failed(Exception):
    pass


def failing(at: int, error: type[BaseException] = Failed) -> Callable[[int], int]:
    def work(number: int) -> int:
        if number == at:
            raise error
        return number

    return work


@pytest.mark.parametrize("error", [Failed, KeyboardInterrupt, SystemExit])
def test_an_error_of_embedding_leaves_what_it_gave(error: type[BaseException]) -> None:
    written: list[int] = []
    read: list[int] = []
    with pytest.raises(error):
        run_stages((read.append(n) or n for n in range(100)), failing(5, error), written.append)
    assert written == [0, 1, 2, 3, 4]
    assert len(read) < 10, "it went on reading"


def test_an_error_of_writing_ends_the_others() -> None:
    embedded: list[int] = []
    with pytest.raises(Failed):
        run_stages(range(100), lambda n: embedded.append(n) or n, failing(5))
    assert 6 <= len(embedded) < 12


def test_what_was_read_before_an_error_of_reading_is_written() -> None:
    def source() -> Iterator[int]:
        yield from range(5)
        raise Failed

    written: list[int] = []
    with pytest.raises(Failed):
        run_stages(source(), lambda number: number, written.append)
    assert written == [0, 1, 2, 3, 4]


def test_an_interrupt_lets_each_stage_finish_what_it_has_begun() -> None:
    embedding, go = threading.Event(), threading.Event()
    written: list[int] = []

    def source() -> Iterator[int]:
        yield from range(2)
        assert embedding.wait(20)
        threading.Timer(0.05, go.set).start()
        raise KeyboardInterrupt

    def embed(number: int) -> int:
        embedding.set()
        assert go.wait(20)
        return number

    with pytest.raises(KeyboardInterrupt):
        run_stages(source(), embed, written.append)
    assert written == [0], "the second one had not been begun"


def test_the_stages_know_their_callers_context() -> None:
    who = contextvars.ContextVar("who", default="nobody")
    token = who.set("the caller")
    seen: list[str] = []
    run_stages([1], lambda _: seen.append(who.get()), lambda _: seen.append(who.get()))
    who.reset(token)
    assert seen == ["the caller"] * 2


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    with pytest.raises(Failed):
        run_stages(range(10), failing(3), lambda _: None)
    run_stages(range(10), lambda number: number, lambda _: None)
    assert threading.active_count() == before
