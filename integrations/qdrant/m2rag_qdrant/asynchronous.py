"""`AsyncDocumentCollection`: the same for `AsyncQdrantClient`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdrant_client import AsyncQdrantClient

from m2rag.index import AsyncLongDocumentIndex, Embedder
from m2rag.index.asynchronous import in_thread, on_loop
from m2rag.stores.qdrant_server import QdrantServerStore
from m2rag.stores.retry import Patience
from m2rag_qdrant.collection import DocumentCollection, location_of
from m2rag_qdrant.options import CollectionOptions, new_collection


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
        caller = _OnLoop(client, asyncio.get_running_loop())

        def open_it() -> DocumentCollection:
            store = QdrantServerStore(
                caller,
                name,
                create=new_collection(embedder, options) if create else None,
                location=location_of(client, name),
                patience=patience,
                create_options=options.server,
            )
            return DocumentCollection(store, embedder)

        return cls(await in_thread(open_it))

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
        return cls(await in_thread(DocumentCollection.in_folder, folder, embedder, options=options, create=create))


class _OnLoop:
    """An async client's methods as blocking ones, for the threads of `in_thread`."""

    def __init__(self, client: AsyncQdrantClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda **arguments: on_loop(self._loop, lambda: getattr(self._client, method)(**arguments))
