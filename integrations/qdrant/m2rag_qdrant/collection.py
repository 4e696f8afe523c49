"""`DocumentCollection`: `LongDocumentIndex` on a client of the caller's own, with hybrid search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from qdrant_client import QdrantClient

from m2rag.fusion import fuse
from m2rag.index import Embedder, Hit, LongDocumentIndex
from m2rag.index.hits import HIT_FIELDS, make_hits, unit
from m2rag.index.index import metadata_filter
from m2rag.index.ingest import DOC, LEXICAL
from m2rag.index.modes import Mode, check_numbers, checked_mode
from m2rag.stores import EdgeStore, Point, Scalar, VectorStore, without_secrets
from m2rag.stores.lexical import Bm25
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
        language = store.manifest.lexical
        self._bm25 = Bm25(language) if language else None

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
    ) -> list[Hit]:
        """The `k` documents that fit a query best, with their best passages.

        Args:
            query: what is looked for, in any words.
            k: how many documents.
            filter: metadata fields and the values they must have, all of them; a list matches by any of its items.
            passages: also find the passages of each hit that are nearest to the query.
            n_passages: at most how many per hit; they do not overlap.
            rescore: in dense mode, the weight of the best passage in a document's score, 0 to 1.
            mode: "dense" (cosine of whole documents), "lexical" (BM25), or "hybrid" (reciprocal rank fusion of both).
                Default: hybrid where the collection has BM25 vectors, else dense.
            weights: of the dense and the lexical ranking, in hybrid mode.

        Returns:
            Hits; `score` is the mode's own (cosine, BM25, or fused ranks), `document_score` always the cosine.

        Raises:
            InvalidInputError: a number is out of range, the filter is malformed, the query is empty, or the mode needs
                BM25 vectors and the collection has none.
            IndexMismatchError: the collection is not the embedder's.
        """
        no_words = None if self._bm25 else f"{self.location} has no BM25 vectors: it was made with lexical=None"
        mode = checked_mode(mode, weights, rescore, no_words=no_words)
        if mode == "dense" or self._bm25 is None:
            return super().search(query, k, filter=filter, passages=passages, n_passages=n_passages, rescore=rescore)
        check_numbers(k, n_passages, rescore)
        where = metadata_filter(filter)
        vector = self._query_vector(query)
        depth = k if mode == "lexical" else max(100, 3 * k)
        words = self._bm25.query(query)
        lexical: list[Point] = []
        if words.indices.size:
            lexical = self._store.query(LEXICAL, words, limit=depth, filter=where, payload=HIT_FIELDS)
        if mode == "lexical":
            scores = {point.id: point.score for point in lexical}
            points = [replace(point, score=cosine) for point, cosine in self._cosines(lexical, vector)]
        else:
            dense = self._store.query(DOC, vector, limit=depth, filter=where, payload=HIT_FIELDS)
            scores = fuse([[point.id for point in dense], [point.id for point in lexical]], weights)
            points = self._best(list(scores)[:k], dense, lexical, vector)
        return make_hits(self._store, points, scores, vector, n_passages if passages else 0)

    def _best(self, ids: list[UUID], dense: list[Point], lexical: list[Point], vector: np.ndarray) -> list[Point]:
        """The points of these ids in their order, each with its cosine."""
        known = {point.id: point for point in dense}
        others = [point for point in lexical if point.id in ids and point.id not in known]
        known.update((point.id, replace(point, score=cosine)) for point, cosine in self._cosines(others, vector))
        return [known[id] for id in ids if id in known]

    def _cosines(self, points: list[Point], query: np.ndarray) -> list[tuple[Point, float]]:
        """Each point with the cosine of its document; one that was deleted in the meantime is left out."""
        stored = self._store.retrieve([point.id for point in points], vectors=(DOC,)) if points else {}
        return [(point, float(stored[point.id].vectors[DOC] @ unit(query))) for point in points if point.id in stored]


def location_of(client: Any, name: str) -> str:
    """A collection as a person would name it: the client's server and the name, without any key."""
    options = client.init_options
    host = f"{options['host']}:{options['port']}" if options["host"] else None
    server = options["url"] or host or options["location"] or options["path"] or "localhost"
    return f"{without_secrets(server)}/{name}" if "://" in server else f"{server}/{name}"
