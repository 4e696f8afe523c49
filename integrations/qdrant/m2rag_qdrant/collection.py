"""`DocumentCollection`: `LongDocumentIndex` on a client of the caller's own, or in a folder, with options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdrant_client import QdrantClient

from m2rag.index import Embedder, LongDocumentIndex
from m2rag.stores import EdgeStore, VectorStore, without_secrets
from m2rag.stores.qdrant_server import QdrantServerStore
from m2rag.stores.retry import Patience
from m2rag_qdrant.options import CollectionOptions, new_collection


class DocumentCollection(LongDocumentIndex):
    """Whole documents in one collection: `add`, `search`, `delete`, `get`, `ids`, `info` as of `LongDocumentIndex`.

    `add` is idempotent: a document that is there unchanged is not embedded and not written again. Every write is
    acknowledged before it counts as done; new documents are only inserted, so that a write whose answer was lost costs
    little to repeat; a server that is away or overloaded is waited for with growing pauses. Requests stay at a few
    megabytes. (The client's own uploader tries again at once, and its async one blocks.)

    Args:
        store: an open store; see `on_server` and `in_folder`.
        embedder: makes the vectors.

    Raises:
        IndexMismatchError: the collection was made with another embedder.
    """

    def __init__(self, store: VectorStore, embedder: Embedder) -> None:
        super().__init__(store, embedder)

    @classmethod
    def on_server(
        cls,
        client: QdrantClient,
        name: str,
        embedder: Embedder,
        *,
        options: CollectionOptions | None = None,
        create: bool = True,
        patience: Patience | None = None,
    ) -> DocumentCollection:
        """Open the collection `name`, or create it for this embedder.

        Args:
            client: stays yours: it is not closed with the collection. REST, gRPC and in-memory clients will do.
            name: of the collection.
            embedder: makes the vectors.
            options: for a new collection.
            create: make a new collection where there is none.
            patience: how long to wait for a server that does not answer (a minute by default).

        Raises:
            IndexNotFoundError: there is none and `create` is False.
            IndexMismatchError: it was made with another embedder.
            InvalidInputError: an option is wrong.
            StoreError: it was not made by m2rag, or the server cannot be reached, refuses, or is too old.
        """
        options = options or CollectionOptions()
        store = QdrantServerStore(
            client,
            name,
            create=new_collection(embedder, options) if create else None,
            location=location_of(client, name),
            patience=patience,
            create_options=options.server,
        )
        return cls(store, embedder)

    @classmethod
    def in_folder(
        cls,
        folder: str | Path,
        embedder: Embedder,
        *,
        options: CollectionOptions | None = None,
        create: bool = True,
    ) -> DocumentCollection:
        """The same in a folder, on Qdrant Edge: Qdrant's engine in this process, no server.

        Raises:
            IndexNotFoundError: there is none and `create` is False.
            IndexMismatchError: it was made with another embedder.
            IndexLockedError: another process has the folder open.
            StoreError: the folder holds other things, is damaged or cannot be written.
        """
        new = new_collection(embedder, options or CollectionOptions()) if create else None
        return cls(EdgeStore(folder, create=new), embedder)


def location_of(client: Any, name: str) -> str:
    """A collection as a person would name it: the client's server and the name, without any key."""
    options = client.init_options
    host = f"{options['host']}:{options['port']}" if options["host"] else None
    server = options["url"] or host or options["location"] or options["path"] or "localhost"
    return f"{without_secrets(server)}/{name}" if "://" in server else f"{server}/{name}"
