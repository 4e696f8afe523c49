"""`DocumentCollection`: `LongDocumentIndex` on a client of the caller's own, with conditions in its language."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pymongo.collection import Collection

from m2rag.index import Embedder, Hit, LongDocumentIndex
from m2rag.index.filters import MetadataFilter, metadata_filter
from m2rag.index.hits import HIT_FIELDS
from m2rag.index.ingest import DOC
from m2rag.index.modes import Mode
from m2rag.stores import Filter, Point
from m2rag.stores.retry import Patience
from m2rag_mongodb.indexes import TIMEOUT, IndexProgress
from m2rag_mongodb.options import CollectionOptions, new_collection
from m2rag_mongodb.searches import READY_SECONDS
from m2rag_mongodb.server import Blocking, Caller
from m2rag_mongodb.store import MongoStore


class DocumentCollection(LongDocumentIndex):
    """Whole documents in one collection: `add`, `search`, `delete`, `get`, `ids`, `info` as of `LongDocumentIndex`.

    `add` is idempotent: a document that is there unchanged is not embedded and not written again. Writes count as done
    when a majority of the servers has acknowledged them. A document larger than MongoDB takes in one piece is kept in
    several, which are there or not there together.

    Args:
        store: an open store; see `on_server`.
        embedder: makes the vectors.

    Raises:
        IndexMismatchError: the collection was made with another embedder.
    """

    def __init__(self, store: MongoStore, embedder: Embedder) -> None:
        super().__init__(store, embedder)
        self._mongo = store

    @classmethod
    def on_server(
        cls,
        collection: Collection[Any],
        embedder: Embedder,
        *,
        options: CollectionOptions | None = None,
        create: bool = True,
        patience: Patience | None = None,
        ready_seconds: float = READY_SECONDS,
    ) -> DocumentCollection:
        """Open a collection, or create it for this embedder, with its search indexes.

        Args:
            collection: of a `MongoClient`, which stays yours: it is not closed with the collection.
            embedder: makes the vectors.
            options: for a new collection.
            create: make a new collection where there is none.
            patience: how long to wait for a server that does not answer (a minute by default).
            ready_seconds: how long the first query, and the end of an upload, wait for the search indexes.

        Raises:
            IndexNotFoundError: there is none and `create` is False.
            IndexMismatchError: it was made with another embedder.
            InvalidInputError: an option is wrong.
            SearchUnavailableError: the server has no vector search.
            StoreError: the collection was not made by m2rag, or the server cannot be reached or refuses.
        """
        caller = Blocking(collection.database)
        return cls.with_caller(caller, collection.name, embedder, options, create, patience, ready_seconds)

    @classmethod
    def with_caller(
        cls,
        caller: Caller,
        name: str,
        embedder: Embedder,
        options: CollectionOptions | None,
        create: bool,
        patience: Patience | None,
        ready_seconds: float,
    ) -> DocumentCollection:
        """`on_server` for whatever makes the requests."""
        manifest, schema, kept = new_collection(embedder, options or CollectionOptions())
        store = MongoStore(
            caller,
            name,
            create=(manifest, schema) if create else None,
            options=kept,
            patience=patience,
            ready_seconds=ready_seconds,
        )
        return cls(store, embedder)

    def wait_until_ready(
        self, timeout: float = TIMEOUT, *, progress: Callable[[IndexProgress], None] | None = None
    ) -> None:
        """Wait until the search indexes are built; see `MongoStore.wait_until_ready`."""
        self._mongo.wait_until_ready(timeout, progress=progress)

    def search(
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
        """The `k` documents that fit a query best, with their best passages; see `LongDocumentIndex.search`.

        Words are found by Lucene's BM25.

        Args:
            where: a condition in MongoDB's own language, as {"metadata.year": {"$gte": 2020}}, on fields that are
                among the collection's `filter_fields`. It holds together with `filter`.
            exact: compare with every vector, or go through the graph; by default exact up to 20,000 documents.

        Raises:
            IndexNotReadyError: a search index is still being built.
            others: as `LongDocumentIndex.search` raises them.
        """
        rankings = _Rankings(self._mongo, metadata_filter(filter), where, exact)
        return self._search(rankings, query, k, mode, weights, rescore, n_passages if passages else 0)


@dataclass(frozen=True)
class _Rankings:
    """A collection's rankings under a caller's conditions."""

    store: MongoStore
    filter: Filter | None
    where: Mapping[str, Any] | None
    exact: bool | None

    def by_meaning(self, vector: np.ndarray, limit: int) -> list[Point]:
        more: dict[str, Any] = {"filter": self.filter, "where": self.where, "payload": HIT_FIELDS}
        return self.store.nearest(DOC, vector, limit=limit, exact=self.exact, **more)

    def by_words(self, text: str, limit: int) -> list[Point]:
        return self.store.by_words(text, limit=limit, filter=self.filter, where=self.where, payload=HIT_FIELDS)
