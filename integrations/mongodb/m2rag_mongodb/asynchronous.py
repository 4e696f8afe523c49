"""`AsyncDocumentCollection`: the same for `AsyncMongoClient`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from pymongo.asynchronous.collection import AsyncCollection

from m2rag.index import AsyncLongDocumentIndex, Embedder, Hit
from m2rag.index.asynchronous import in_thread
from m2rag.index.filters import MetadataFilter
from m2rag.index.modes import Mode
from m2rag.stores.retry import Patience
from m2rag_mongodb.collection import DocumentCollection
from m2rag_mongodb.indexes import TIMEOUT, IndexProgress
from m2rag_mongodb.options import CollectionOptions
from m2rag_mongodb.searches import READY_SECONDS
from m2rag_mongodb.server import OnLoop


class AsyncDocumentCollection(AsyncLongDocumentIndex[DocumentCollection]):
    """`DocumentCollection` with `await`; see there for what the methods do, take and raise.

    A cancelled call ends its thread before the next request; a request under way is finished, and what was stored
    stays stored. Use it from the event loop it was opened in.

    Args:
        index: what does the work.
    """

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

    async def wait_until_ready(
        self, timeout: float = TIMEOUT, *, progress: Callable[[IndexProgress], None] | None = None
    ) -> None:
        """Wait until the search indexes are built; `progress` is called in the worker thread."""
        await in_thread(self._index.wait_until_ready, timeout, progress=progress)

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
        where: Mapping[str, Any] | None = None,
        exact: bool | None = None,
    ) -> list[Hit]:
        """The `k` documents that fit a query best; see `DocumentCollection.search`."""
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
            where=where,
            exact=exact,
        )
