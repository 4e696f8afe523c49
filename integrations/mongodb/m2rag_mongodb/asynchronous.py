"""`AsyncDocumentCollection`: the same for `AsyncMongoClient`, without a second implementation.

The steps run in a worker thread, where embedding belongs anyway; each request is made by the caller's own client in the
caller's event loop, and only the thread waits for the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from pymongo.asynchronous.collection import AsyncCollection

from m2rag.index import AddProgress, AddReport, Document, Embedder, Hit
from m2rag.index.index import BATCH_TOKENS
from m2rag.index.sources import Source
from m2rag.stores import Scalar
from m2rag.stores.retry import Patience
from m2rag_mongodb.collection import DocumentCollection, Mode
from m2rag_mongodb.indexes import TIMEOUT, IndexProgress
from m2rag_mongodb.options import CollectionOptions
from m2rag_mongodb.searches import READY_SECONDS
from m2rag_mongodb.server import OnLoop, in_thread


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
        collection: AsyncCollection[Any],
        embedder: Embedder,
        *,
        options: CollectionOptions | None = None,
        create: bool = True,
        patience: Patience | None = None,
        ready_seconds: float = READY_SECONDS,
    ) -> AsyncDocumentCollection:
        """Open a collection, or create it for this embedder; see `DocumentCollection.on_server`."""
        caller = OnLoop(collection.database, asyncio.get_running_loop())
        args = (caller, collection.name, embedder, options, create, patience, ready_seconds)
        return cls(await in_thread(DocumentCollection.with_caller, *args))

    async def __aenter__(self) -> AsyncDocumentCollection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def location(self) -> str:
        """DATABASE.COLLECTION."""
        return self._collection.location

    async def wait_until_ready(
        self, timeout: float = TIMEOUT, *, progress: Callable[[IndexProgress], None] | None = None
    ) -> None:
        """Wait until the search indexes are built; `progress` is called in the worker thread."""
        await in_thread(self._collection.wait_until_ready, timeout, progress=progress)

    async def add(
        self,
        documents_or_paths: Source | Iterable[Source],
        *,
        on_too_long: str = "window",
        batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[AddProgress], None] | None = None,
    ) -> AddReport:
        """Index documents; see `LongDocumentIndex.add`. `progress` is called in the worker thread."""
        return await in_thread(
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
        where: Mapping[str, Any] | None = None,
        exact: bool | None = None,
    ) -> list[Hit]:
        """The `k` documents that fit a query best; see `DocumentCollection.search`."""
        return await in_thread(
            self._collection.search,
            query,
            k,
            filter=filter,
            passages=passages,
            n_passages=n_passages,
            rescore=rescore,
            mode=mode,
            weights=weights,
            where=where,
            exact=exact,
        )

    async def delete(self, ids: str | Iterable[str]) -> int:
        """Remove documents by id; returns how many were there."""
        return await in_thread(self._collection.delete, ids)

    async def get(self, id: str) -> Document | None:
        """The document with this id, as stored; None if there is none."""
        return await in_thread(self._collection.get, id)

    async def ids(self) -> list[str]:
        """Ids of all documents, sorted."""
        return await in_thread(self._collection.ids)

    async def count(self) -> int:
        """Documents in the collection."""
        return await in_thread(self._collection.__len__)

    async def info(self) -> dict[str, Any]:
        """What it holds; see `LongDocumentIndex.info`."""
        return await in_thread(self._collection.info)

    async def close(self) -> None:
        """Let go of it; the client stays open. Closing twice is fine."""
        await in_thread(self._collection.close)
