"""`DocumentCollection`: `LongDocumentIndex` on a collection of the caller's own client, with hybrid search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import numpy as np
from pymongo.collection import Collection

from m2rag.index import Embedder, Hit, LongDocumentIndex
from m2rag.index.hits import HIT_FIELDS, make_hits, unit
from m2rag.index.index import metadata_filter
from m2rag.index.ingest import DOC
from m2rag.index.modes import Mode, check_numbers, checked_mode
from m2rag.stores import Point, Scalar
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
        filter: Mapping[str, Scalar] | None = None,
        passages: bool = True,
        n_passages: int = 3,
        rescore: float = 0.0,
        mode: Mode | None = None,
        weights: tuple[float, float] = (1.0, 1.0),
        where: Mapping[str, Any] | None = None,
        exact: bool | None = None,
    ) -> list[Hit]:
        """The `k` documents that fit a query best, with their best passages.

        Args:
            query: what is looked for, in any words.
            k: how many documents.
            filter: metadata fields and the values they must have, all of them; a list matches by any of its items.
            passages: also find the passages of each hit that are nearest to the query.
            n_passages: at most how many per hit; they do not overlap.
            rescore: in dense mode, the weight of the best passage in a document's score, 0 to 1.
            mode: "dense" (cosine of whole documents), "lexical" (Lucene's BM25), or "hybrid" (reciprocal rank fusion
                of both). Default: hybrid where the collection has a text index, else dense.
            weights: of the dense and the lexical ranking, in hybrid mode.
            where: a condition in MongoDB's own language, as {"metadata.year": {"$gte": 2020}}, on fields that are
                among the collection's `filter_fields`. It holds together with `filter`.
            exact: compare with every vector, or go through the graph; by default exact up to 20,000 documents.

        Returns:
            Hits; `score` is the mode's own (cosine, BM25, or fused ranks), `document_score` always the cosine.

        Raises:
            InvalidInputError: a number is out of range, a condition is malformed, the query is empty, or the mode needs
                a text index and the collection has none.
            IndexMismatchError: the collection is not the embedder's.
            IndexNotReadyError: a search index is still being built.
        """
        lexical = self._mongo.options.lexical
        no_words = None if lexical else f"{self.location} has no text index: it was made with lexical=None"
        mode = checked_mode(mode, weights, rescore, no_words=no_words)
        check_numbers(k, n_passages, rescore)
        conditions: dict[str, Any] = {"filter": metadata_filter(filter), "where": where, "payload": HIT_FIELDS}
        vector = self._query_vector(query)
        if mode == "dense":
            depth = max(3 * k, 30) if rescore else k
            points = self._mongo.nearest(DOC, vector, limit=depth, exact=exact, **conditions)
            scores = self._rescored(points, vector, rescore) if rescore else {one.id: one.score for one in points}
            points = sorted(points, key=lambda point: -scores[point.id])[:k]
        else:
            if mode == "lexical":
                found = self._mongo.by_words(query, limit=k, **conditions)
            else:
                more = {"weights": weights, "exact": exact, "depth": max(100, 3 * k), **conditions}
                found = self._mongo.fused(DOC, vector, query, limit=k, **more)
            scores = {point.id: point.score for point in found}
            points = self._by_cosine(found, vector)
        return make_hits(self._store, points, scores, vector, n_passages if passages else 0)

    def _by_cosine(self, points: list[Point], query: np.ndarray) -> list[Point]:
        """The same points scored by the cosine of their document; one deleted in the meantime is left out."""
        stored = self._store.retrieve([point.id for point in points], vectors=(DOC,))
        vectors: dict[UUID, np.ndarray] = {id: one.vectors[DOC] for id, one in stored.items() if DOC in one.vectors}
        return [
            replace(point, score=float(unit(vectors[point.id]) @ unit(query)))
            for point in points
            if point.id in vectors
        ]
