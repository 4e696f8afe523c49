"""`AsyncDocumentCollection`: the same for `AsyncQdrantClient`, without a second implementation.

The steps run in a worker thread, where embedding belongs anyway. Each request of the store is handed to the event loop
the caller lives in, where the caller's own `AsyncQdrantClient` makes it; the thread waits for the answer, the loop does
not. So one code plans, embeds, writes and retries for both kinds of client.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from qdrant_client import AsyncQdrantClient

from m2rag.index import AddProgress, AddReport, Document, Embedder, Hit
from m2rag.index.index import BATCH_TOKENS
from m2rag.index.sources import Source
from m2rag.stores import Scalar
from m2rag.stores.qdrant_server import QdrantServerStore
from m2rag.stores.retry import Patience
from m2rag_qdrant.collection import DocumentCollection, Mode, location_of
from m2rag_qdrant.options import CollectionOptions, new_collection

P = ParamSpec("P")
T = TypeVar("T")

_cancelled: ContextVar[threading.Event] = ContextVar("_cancelled")


class AsyncDocumentCollection:
    """`DocumentCollection` with `await`; see there for what the methods do, take and raise.

    A cancelled call ends its thread before the next request; a request under way is finished, and what was stored
    stays stored. Use it from the event loop it was opened in.

    Args:
        collection: what does the work.
    """

    def __init__(self, collection: DocumentCollection) -> None:
        self._collection = collection

    @classmethod
    async def on_server(
        cls,
        client: AsyncQdrantClient,
        name: str,
        embedder: Embedder,
        *,
        options: CollectionOptions | None = None,
        create: bool = True,
        patience: Patience | None = None,
    ) -> AsyncDocumentCollection:
        """Open the collection `name`, or create it for this embedder; see `DocumentCollection.on_server`."""
        options = options or CollectionOptions()
        on_loop = _OnLoop(client, asyncio.get_running_loop())

        def open_it() -> DocumentCollection:
            store = QdrantServerStore(
                on_loop,
                name,
                create=new_collection(embedder, options) if create else None,
                location=location_of(client, name),
                patience=patience,
                create_options=options.server,
            )
            return DocumentCollection(store, embedder)

        return cls(await _in_thread(open_it))

    @classmethod
    async def in_folder(
        cls,
        folder: str | Path,
        embedder: Embedder,
        *,
        options: CollectionOptions | None = None,
        create: bool = True,
    ) -> AsyncDocumentCollection:
        """The same in a folder, on Qdrant Edge; see `DocumentCollection.in_folder`."""
        return cls(await _in_thread(DocumentCollection.in_folder, folder, embedder, options=options, create=create))

    async def __aenter__(self) -> AsyncDocumentCollection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def location(self) -> str:
        """Folder or URL, without any key."""
        return self._collection.location

    async def add(
        self,
        documents_or_paths: Source | Iterable[Source],
        *,
        on_too_long: str = "window",
        batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[AddProgress], None] | None = None,
    ) -> AddReport:
        """Index documents; see `LongDocumentIndex.add`. `progress` is called in the worker thread."""
        return await _in_thread(
            self._collection.add,
            documents_or_paths,
            on_too_long=on_too_long,
            batch_tokens=batch_tokens,
            progress=progress,
        )

    async def search(
        self,
        query: str,
        k: int = 10,
        *,
        filter: Mapping[str, Scalar] | None = None,
        passages: bool = True,
        n_passages: int = 3,
        rescore: float = 0.0,
        mode: Mode | None = None,
        weights: tuple[float, float] = (1.0, 1.0),
    ) -> list[Hit]:
        """The `k` documents that fit a query best; see `DocumentCollection.search`."""
        return await _in_thread(
            self._collection.search,
            query,
            k,
            filter=filter,
            passages=passages,
            n_passages=n_passages,
            rescore=rescore,
            mode=mode,
            weights=weights,
        )

    async def delete(self, ids: str | Iterable[str]) -> int:
        """Remove documents by id; returns how many were there."""
        return await _in_thread(self._collection.delete, ids)

    async def get(self, id: str) -> Document | None:
        """The document with this id, as stored; None if there is none."""
        return await _in_thread(self._collection.get, id)

    async def ids(self) -> list[str]:
        """Ids of all documents, sorted."""
        return await _in_thread(self._collection.ids)

    async def count(self) -> int:
        """Documents in the collection."""
        return await _in_thread(self._collection.__len__)

    async def info(self) -> dict[str, Any]:
        """What it holds; see `LongDocumentIndex.info`."""
        return await _in_thread(self._collection.info)

    async def close(self) -> None:
        """Let go of it; the client stays open. Closing twice is fine."""
        await _in_thread(self._collection.close)


class _Stopped(Exception):
    """Ends the thread of a call that was cancelled; nobody is left to see it."""


class _OnLoop:
    """An async client's methods as blocking ones, for threads other than the loop's."""

    def __init__(self, client: AsyncQdrantClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def blocking(**arguments: Any) -> Any:
            if _cancelled.get().is_set():
                raise _Stopped
            request = getattr(self._client, method)(**arguments)
            return asyncio.run_coroutine_threadsafe(request, self._loop).result()

        return blocking


async def _in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a call in a worker thread; if the caller is cancelled, the call ends before its next request."""
    cancelled = threading.Event()
    token = _cancelled.set(cancelled)
    try:
        return await asyncio.to_thread(call, *args, **kwargs)  # takes the context variable with it
    except asyncio.CancelledError:
        cancelled.set()
        raise
    finally:
        _cancelled.reset(token)
