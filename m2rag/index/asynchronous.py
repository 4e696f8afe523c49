"""An index with `await`, without a second implementation.

The steps run in a worker thread, where embedding belongs anyway. A store on an asynchronous client hands each of its
requests to the event loop the caller lives in (`on_loop`); the thread waits for the answer, the loop does not. So one
code plans, embeds, writes and retries for both kinds of client.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Coroutine, Iterable
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, ParamSpec, TypeVar

from m2rag.index.documents import AddProgress, AddReport, Document, Hit, Stored
from m2rag.index.filters import MetadataFilter
from m2rag.index.index import BATCH_TOKENS, LongDocumentIndex
from m2rag.index.modes import Mode
from m2rag.index.sources import Source
from m2rag.index.sync import SyncReport
from m2rag.stores import FieldKind

P = ParamSpec("P")
T = TypeVar("T")
Index = TypeVar("Index", bound=LongDocumentIndex)
Opened = TypeVar("Opened", bound="AsyncLongDocumentIndex[Any]")

_cancelled: ContextVar[threading.Event] = ContextVar("_cancelled")


class CallCancelledError(Exception):
    """Ends the thread of a call that was cancelled; nobody is left to see it."""


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a call in a worker thread; if the caller is cancelled, the call ends before its next `on_loop`."""
    cancelled = threading.Event()
    token = _cancelled.set(cancelled)
    try:
        return await asyncio.to_thread(call, *args, **kwargs)  # takes the context variable along
    except asyncio.CancelledError:
        cancelled.set()
        raise
    finally:
        _cancelled.reset(token)


def on_loop(loop: asyncio.AbstractEventLoop, request: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The answer to a request that is made in an event loop; for threads of `in_thread`, which wait for it.

    Raises:
        CallCancelledError: the caller was cancelled; the request is not made.
    """
    if _cancelled.get().is_set():
        raise CallCancelledError
    return asyncio.run_coroutine_threadsafe(request(), loop).result()


class AsyncLongDocumentIndex(Generic[Index]):
    """`LongDocumentIndex` with `await`; see there for what the methods do, take and raise.

    The event loop stays free meanwhile. What was stored by a call that is cancelled stays stored. Use it from the event
    loop it was made in.

    Args:
        index: what does the work.
    """

    def __init__(self, index: Index) -> None:
        self._index = index

    async def __aenter__(self: Opened) -> Opened:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def location(self) -> str:
        """See `LongDocumentIndex.location`."""
        return self._index.location

    @property
    def modes(self) -> tuple[Mode, ...]:
        """See `LongDocumentIndex.modes`."""
        return self._index.modes

    async def add(
        self,
        documents_or_paths: Source | Iterable[Source],
        *,
        on_too_long: str = "window",
        batch_tokens: int = BATCH_TOKENS,
        live: bool = False,
        progress: Callable[[AddProgress], None] | None = None,
    ) -> AddReport:
        """Index documents; see `LongDocumentIndex.add`. `progress` is called in the worker thread."""
        return await in_thread(
            self._index.add,
            documents_or_paths,
            on_too_long=on_too_long,
            batch_tokens=batch_tokens,
            live=live,
            progress=progress,
        )

    async def sync(
        self,
        folder: str | Path,
        *,
        allow_empty: bool = False,
        dry_run: bool = False,
        only: Collection[str | Path] | None = None,
        on_too_long: str = "window",
        batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[AddProgress], None] | None = None,
    ) -> SyncReport:
        """Make the index hold what a folder holds; see `LongDocumentIndex.sync`."""
        return await in_thread(
            self._index.sync,
            folder,
            allow_empty=allow_empty,
            dry_run=dry_run,
            only=only,
            on_too_long=on_too_long,
            batch_tokens=batch_tokens,
            progress=progress,
        )

    async def search(
        self,
        query: str,
        k: int = 10,
        *,
        mode: Mode | None = None,
        weights: tuple[float, float] | None = None,
        rescore: float | None = None,
        filter: MetadataFilter | None = None,
        passages: bool = True,
        n_passages: int = 3,
    ) -> list[Hit]:
        """The `k` documents that fit a query best; see `LongDocumentIndex.search`."""
        return await in_thread(
            self._index.search,
            query,
            k,
            mode=mode,
            weights=weights,
            rescore=rescore,
            filter=filter,
            passages=passages,
            n_passages=n_passages,
        )

    async def delete(self, ids: str | Iterable[str]) -> int:
        """Remove documents by id; returns how many were there."""
        return await in_thread(self._index.delete, ids)

    async def get(self, id: str) -> Document | None:
        """The document with this id, as stored; None if there is none."""
        return await in_thread(self._index.get, id)

    async def describe(self, ids: Iterable[str]) -> list[Stored]:
        """What is known of the documents with these ids; see `LongDocumentIndex.describe`."""
        return await in_thread(self._index.describe, ids)

    async def ids(self) -> list[str]:
        """Ids of all documents, sorted."""
        return await in_thread(self._index.ids)

    async def count(self) -> int:
        """Documents in the index."""
        return await in_thread(self._index.__len__)

    async def make_filterable(self, field: str, kind: FieldKind) -> None:
        """Give a metadata field an index; see `LongDocumentIndex.make_filterable`."""
        await in_thread(self._index.make_filterable, field, kind)

    async def optimize(self) -> None:
        """Build what makes searches fast; see `LongDocumentIndex.optimize`."""
        await in_thread(self._index.optimize)

    async def snapshot(self, file: str | Path) -> None:
        """Write the index into one new file; see `LongDocumentIndex.snapshot`."""
        await in_thread(self._index.snapshot, file)

    async def info(self) -> dict[str, Any]:
        """What it holds; see `LongDocumentIndex.info`."""
        return await in_thread(self._index.info)

    async def close(self) -> None:
        """Let go of it; a client of the caller's stays open. Closing twice is fine."""
        await in_thread(self._index.close)
