"""The index with `await`: the same answers, a loop that stays free, and calls that end when they are cancelled."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fake_embedder import HashEmbedder

from m2rag.index import AsyncLongDocumentIndex, Document, LongDocumentIndex
from m2rag.index.asynchronous import CallCancelledError, in_thread, on_loop

DOCUMENTS = [Document(f"d{i}", f"Words of number {i}, and of {i * i}.", f"Number {i}") for i in range(12)]


def test_every_method_answers_as_the_other_index_does(tmp_path: Path) -> None:
    async def main() -> None:
        opened = LongDocumentIndex(tmp_path / "index", HashEmbedder())
        async with AsyncLongDocumentIndex(opened) as index:
            assert (await index.add(DOCUMENTS)).added == await index.count() == 12
            assert index.modes == opened.modes
            for mode in index.modes:
                asked: dict[str, Any] = {"mode": mode, "weights": (1, 2), "rescore": 0.3, "n_passages": 1}
                found = await index.search("number 3", 4, **asked)
                assert found == opened.search("number 3", 4, **asked) and found[0].id == "d3"
            assert await index.get("d3") == opened.get("d3") and await index.ids() == opened.ids()
            assert await index.info() == opened.info() and index.location == opened.location
            assert await index.delete(["d3", "nobody"]) == 1 and await index.get("d3") is None
        with LongDocumentIndex(tmp_path / "index", HashEmbedder()) as again:  # closed: the folder is free
            assert len(again) == 11

    asyncio.run(main())


def test_the_loop_goes_on_meanwhile(tmp_path: Path) -> None:
    async def main() -> int:
        embedder = HashEmbedder(seconds_per_text=0.02)
        async with AsyncLongDocumentIndex(LongDocumentIndex(tmp_path / "index", embedder)) as index:
            adding, ticks = asyncio.create_task(index.add(DOCUMENTS)), 0
            while not adding.done():
                await asyncio.sleep(0.005)
                ticks += 1
            await adding
        return ticks

    assert asyncio.run(main()) > 5  # of about 48; a loop that is held up has none


def test_errors_come_through(tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncLongDocumentIndex(LongDocumentIndex(tmp_path / "index", HashEmbedder())) as index:
            with pytest.raises(ValueError, match="k must be at least 1"):
                await index.search("words", 0)

    asyncio.run(main())


def test_a_cancelled_call_makes_no_further_request() -> None:
    """A request under way is finished; the thread ends at the next one."""
    made: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        async def request(number: int) -> None:
            made.append(number)
            await asyncio.sleep(0.05)

        def call() -> Any:
            try:
                for number in range(100):
                    on_loop(loop, lambda number=number: request(number))  # type: ignore[misc]
            except CallCancelledError:
                loop.call_soon_threadsafe(ended.set)
                raise

        task = asyncio.create_task(in_thread(call))
        while len(made) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), 5)

    asyncio.run(main())
    assert len(made) == 2
