"""`M2QdrantVectorStore`: a LangChain vector store in a folder (Qdrant Edge) or on a Qdrant server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from pydantic import SecretStr
from typing_extensions import Self

from langchain_m2rag._embedder import embedder_of
from m2rag.errors import M2RagError
from m2rag.index import AddProgress, Failure, LongDocumentIndex
from m2rag.index import Document as LongDocument
from m2rag.index.documents import point_id
from m2rag.index.filters import metadata_filter
from m2rag.index.index import BATCH_TOKENS, new_index
from m2rag.index.ingest import DOC, check_embedder, mismatch
from m2rag.stores import Point, open_store
from m2rag.stores import VectorStore as Store

_FIELDS = ("id", "text", "metadata")


class DocumentsNotStoredError(M2RagError):
    """Some documents of a call were not stored; all others of it were.

    Attributes:
        failures: id and cause of each.
    """

    def __init__(self, failures: Sequence[Failure], n: int) -> None:
        some = "; ".join(f"{failure.id!r}: {failure.cause}" for failure in failures[:3])
        more = "; ..." if len(failures) > 3 else ""
        super().__init__(f"{len(failures)} of {n} documents were not stored, the others were: {some}{more}")
        self.failures = tuple(failures)


class M2QdrantVectorStore(VectorStore):
    """Documents, their vectors and metadata in Qdrant: its engine in this process, or a server or cloud.

    It is a `LongDocumentIndex` seen as a LangChain vector store: what one writes the other reads (`index`). The store's
    own searches go by meaning, as LangChain's interface has it; those of `index` and `M2LongDocumentRetriever` by words
    too. Ids are any strings (the point's id is made from it, uuid5), metadata is kept apart from all else and comes
    back as it was, a document whose id, text and metadata have not changed is not embedded again, and what was stored
    survives the death of the process at any moment. Every write and query is preceded by a check that the collection
    was made with these embeddings.

    Args:
        location: folder, `http[s]://HOST:PORT/COLLECTION`, or an open store of m2rag.
        embedding: `M2Embeddings`, or any other embeddings of LangChain.
        create: make a new collection where there is none.
        lexical: language of stemmer and stop words of a new collection ("english", "german", ...), for hybrid search;
            None for no words. A collection that is there keeps what it was made with.
        api_key: of the server; default: the environment variable QDRANT_API_KEY.
        on_too_long: texts longer than the model takes: "window", "truncate" or "error". `M2Embeddings` only.
        batch_tokens: tokens embedded and stored in one go.
        fingerprint: what tells these embeddings from others whose vectors cannot be compared with theirs; default: of
            `M2Embeddings` its own, of others their class, model and dimension.

    Example:
        >>> from langchain_m2rag import M2Embeddings, M2QdrantVectorStore
        >>> store = M2QdrantVectorStore("my-index", M2Embeddings())
        >>> store.add_texts(["all of a long contract ..."], ids=["contract-1"])
        >>> store.similarity_search("who answers for late delivery?", k=1)

    Raises:
        m2rag.errors.IndexMismatchError: the collection was made with other embeddings; names both.
        m2rag.errors.IndexNotFoundError: there is none, and `create` is False.
        m2rag.errors.IndexLockedError: another process has the folder open.
        m2rag.errors.InvalidInputError: there is no such language.
        m2rag.errors.StoreError: it cannot be reached, read or written.
    """

    def __init__(
        self,
        location: str | Path | Store,
        embedding: Embeddings,
        *,
        create: bool = True,
        lexical: str | None = "english",
        api_key: str | SecretStr | None = None,
        on_too_long: str = "window",
        batch_tokens: int = BATCH_TOKENS,
        fingerprint: str | None = None,
    ) -> None:
        self._embedding = embedding
        self._embedder = embedder_of(embedding, fingerprint)
        self._on_too_long = on_too_long
        self._batch_tokens = batch_tokens
        if isinstance(location, (str, Path)):
            key = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
            new = new_index(self._embedder, lexical) if create else None
            location = open_store(location, create=new, api_key=key)
        self._store = location
        self._index = LongDocumentIndex(self._store, self._embedder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is pending and let others open the folder. Closing twice is fine."""
        self._index.close()

    @property
    def index(self) -> LongDocumentIndex:
        """The same collection as an index, for `M2LongDocumentRetriever(index=store.index)` and for passages."""
        return self._index

    @property
    def embeddings(self) -> Embeddings:
        """What makes the vectors."""
        return self._embedding

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        progress: Callable[[AddProgress], None] | None = None,
        **unknown: Any,
    ) -> list[str]:
        """Add texts; those whose id is there already are replaced, or left alone if nothing about them has changed.

        Args:
            texts: whole documents.
            metadatas: JSON values, one mapping for each text.
            ids: any strings, each once; None makes a new one.
            batch_size: LangChain's indexing hands it on; batches are made by tokens here.
            progress: called as work goes on.

        Returns:
            Ids of all texts, in their order.

        Raises:
            DocumentsNotStoredError: some texts could not be embedded; the others are stored.
            ValueError: an id comes twice, or the numbers of texts, metadatas and ids differ; nothing is stored.
        """
        _reject(unknown)
        given = list(texts)
        names = [str(uuid4()) if id is None else id for id in (ids or [None] * len(given))]
        data = metadatas or [{}] * len(given)
        for what, n in (("ids", len(names)), ("metadatas", len(data))):
            if n != len(given):
                raise ValueError(f"{n} {what} for {len(given)} texts")
        _each_once(names)
        documents = [LongDocument(id, text, None, own) for id, text, own in zip(names, given, data, strict=True)]
        report = self._index.add(
            documents, on_too_long=self._on_too_long, batch_tokens=self._batch_tokens, progress=progress
        )
        if report.failed:
            raise DocumentsNotStoredError(report.failed, len(given))
        return names

    def delete(self, ids: list[str] | None = None, **unknown: Any) -> bool:
        """Remove documents; ids that are not there are ignored. None, as LangChain has it: all of them."""
        _reject(unknown)
        self._index.delete(self._index.ids() if ids is None else ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, in their order; those that are not there are left out."""
        wanted = {point_id(id): None for id in ids}
        found = self._store.retrieve(list(wanted), payload=_FIELDS)
        return [_document(found[id]) for id in wanted if id in found]

    def similarity_search(
        self, query: str, k: int = 4, *, filter: Mapping[str, Any] | None = None, **unknown: Any
    ) -> list[Document]:
        """The `k` documents nearest to a query, best first.

        Args:
            query: what is looked for.
            k: how many.
            filter: what the metadata must be, as `LongDocumentIndex.search` takes it.
        """
        return [document for document, _ in self.similarity_search_with_score(query, k, filter=filter, **unknown)]

    def similarity_search_with_score(
        self, query: str, k: int = 4, *, filter: Mapping[str, Any] | None = None, **unknown: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search`, each with its cosine to the query."""
        _reject(unknown)
        return self._scored(self._embedder.embed_query(query), k, filter)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: Mapping[str, Any] | None = None, **unknown: Any
    ) -> list[Document]:
        """The `k` documents nearest to a vector (D,), best first."""
        return [
            document for document, _ in self.similarity_search_with_score_by_vector(embedding, k, filter, **unknown)
        ]

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: Mapping[str, Any] | None = None, **unknown: Any
    ) -> list[tuple[Document, float]]:
        """As `similarity_search_by_vector`, each with its cosine."""
        _reject(unknown)
        return self._scored(embedding, k, filter)

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> list[Document]:
        """`k` documents near to a query and unlike each other, out of the `fetch_k` nearest.

        Args:
            query: what is looked for.
            k: how many.
            fetch_k: out of how many.
            lambda_mult: 1 heeds only nearness to the query, 0 only unlikeness.
            filter: as in `similarity_search`.
        """
        vector = self._embedder.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, filter=filter, **unknown)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: Sequence[float] | np.ndarray,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, for a vector (D,)."""
        _reject(unknown)
        near = [point.id for point in self._nearest(embedding, max(k, fetch_k), filter, ())]
        found = self._store.retrieve(near, payload=_FIELDS, vectors=(DOC,))
        points = [found[id] for id in near if id in found]
        chosen = maximal_marginal_relevance(
            np.asarray(embedding, dtype=np.float32), [point.vectors[DOC].tolist() for point in points], lambda_mult, k
        )
        return [_document(points[i]) for i in chosen]

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        location: str | Path | Store | None = None,
        **options: Any,
    ) -> Self:
        """Open a store and add texts to it.

        Args:
            texts, metadatas, ids: as in `add_texts`.
            embedding: makes the vectors.
            location, options: as for the class.

        Raises:
            ValueError: no location.
        """
        if location is None:
            raise ValueError("location is missing: the folder or URL of the collection")
        store = cls(location, embedding, **options)
        try:
            store.add_texts(texts, metadatas, ids=ids)
        except BaseException:
            store.close()
            raise
        return store

    def _scored(
        self, vector: Sequence[float] | np.ndarray, k: int, filter: Mapping[str, Any] | None
    ) -> list[tuple[Document, float]]:
        return [(_document(point), point.score) for point in self._nearest(vector, k, filter, _FIELDS)]

    def _nearest(
        self,
        given: Sequence[float] | np.ndarray,
        k: int,
        filter: Mapping[str, Any] | None,
        payload: tuple[str, ...],
    ) -> list[Point]:
        if k < 1:
            raise ValueError(f"k is {k}, must be at least 1")
        check_embedder(self._store, self._embedder)
        vector = np.asarray(given, dtype=np.float32)
        if vector.shape != (self._store.manifest.dimension,):
            raise mismatch(self._store, f"a query vector of shape {vector.shape}")
        return self._store.query(DOC, vector, limit=k, filter=metadata_filter(filter), payload=payload)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda cosine: (cosine + 1) / 2


def _document(point: Point) -> Document:
    payload = point.payload
    return Document(id=payload["id"], page_content=payload["text"], metadata=dict(payload["metadata"]))


def _each_once(ids: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for i, id in enumerate(ids):
        if first.setdefault(id, i) != i:
            raise ValueError(f"texts {first[id]} and {i} have the same id {id!r}: nothing was stored")


def _reject(unknown: Mapping[str, Any]) -> None:
    """An option that would do nothing is a mistake of the caller."""
    if unknown:
        raise TypeError(f"unknown arguments: {', '.join(sorted(unknown))}")
