"""`M2LongDocumentRetriever`: a `LongDocumentIndex` as a LangChain retriever."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal
from uuid import UUID, uuid5

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import run_in_executor
from pydantic import ConfigDict, Field

from m2rag.index import AddProgress, AddReport, Hit, LongDocumentIndex
from m2rag.index import Document as LongDocument
from m2rag.index.documents import content_hash
from m2rag.index.modes import Mode

Returned = Literal["documents", "passages"]

_NAMESPACE = UUID("0b7f7cf0-6f0e-5c62-8d0a-0c6a4d5a9f11")


class M2LongDocumentRetriever(BaseRetriever):
    """Finds whole long documents by their one vector and their words, and in them the passages that answer.

    With `returns="documents"` each result is a document of the index with all of its text, best first. With
    `returns="passages"` it is a passage of one of the `k` best documents; the `k` nearest passages are given, best
    first, each with its place in its document.

    Metadata of a result: the document's own, and `score`, `document_score`, `document_id`, `n_tokens`, `truncated`,
    `title` if it has one; of a document `passages` (a list of `text`, `start_index`, `end_index`, `score`); of a
    passage `start_index` and `end_index`, its characters in the document. `score` is what the search orders by, of
    passages the cosine, as is `document_score`. A model that gives passages no vectors leaves their choice to words:
    then their cosine is their document's. A field of the document that has one of these names is hidden by it: `prefix`
    puts a word in front of ours.

    Example:
        >>> from langchain_m2rag import M2Embeddings, M2LongDocumentRetriever
        >>> from m2rag import LongDocumentIndex
        >>> index = LongDocumentIndex("my-index", M2Embeddings().embedder)
        >>> retriever = M2LongDocumentRetriever(index=index, k=3, returns="passages")

    Raises:
        ValueError: on use, `returns="passages"` of an index with neither passages nor words.
        m2rag.errors.M2RagError: on use, as `LongDocumentIndex.search`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    index: LongDocumentIndex
    """The index; closing it is the business of who opened it."""

    k: int = Field(default=4, ge=1)
    """How many results."""

    returns: Returned = "documents"
    """Whole documents, or passages."""

    filter: dict[str, Any] | None = None
    """Metadata fields and the values they must have."""

    n_passages: int = Field(default=3, ge=0)
    """At most how many passages of one document."""

    mode: Mode | None = None
    """"hybrid", "dense" or "lexical"; default: hybrid where the index has words. See `LongDocumentIndex.search`."""

    rescore: float | None = Field(default=None, ge=0, le=1)
    """Weight of the best passage in a document's score; default: 0.5 in hybrid mode, else 0."""

    prefix: str = ""
    """In front of the names of the metadata that the retriever adds."""

    def add_documents(
        self,
        documents: Iterable[Document],
        *,
        ids: Iterable[str] | None = None,
        on_too_long: str = "window",
        progress: Callable[[AddProgress], None] | None = None,
    ) -> AddReport:
        """Put documents into the index, whole; unchanged ones are not embedded again.

        Args:
            documents: to be added.
            ids: one for each, instead of its own. A document without any gets one from its text and metadata: the same
                document again is then unchanged, a changed one is another document.
            on_too_long: "window", "truncate" or "error".
            progress: called as work goes on.

        Returns:
            What was done. Documents that could not be indexed are in `failed`, they do not stop the others.

        Raises:
            ValueError: not as many ids as documents.
        """
        given = list(documents)
        names = [document.id for document in given] if ids is None else list(ids)
        if len(names) != len(given):
            raise ValueError(f"{len(names)} ids for {len(given)} documents")
        found = [to_long_document(document, name) for document, name in zip(given, names, strict=True)]
        return self.index.add(found, on_too_long=on_too_long, progress=progress)

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,
        returns: Returned | None = None,
    ) -> list[Document]:
        return self._find(query, k, filter, returns)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,
        returns: Returned | None = None,
    ) -> list[Document]:
        return await run_in_executor(None, self._find, query, k, filter, returns)

    def _find(
        self, query: str, k: int | None, filter: Mapping[str, Any] | None, returns: Returned | None
    ) -> list[Document]:
        k = self.k if k is None else k
        returns = returns or self.returns
        if returns not in ("documents", "passages"):
            raise ValueError(f"returns is {returns!r}, must be 'documents' or 'passages'")
        hits = self.index.search(
            query,
            k,
            filter=self.filter if filter is None else filter,
            mode=self.mode,
            n_passages=max(self.n_passages, 1) if returns == "passages" else self.n_passages,
            rescore=self.rescore,
        )
        if returns == "passages":
            if hits and self.index.modes == ("dense",) and not any(hit.passages for hit in hits):
                raise ValueError(
                    f"the index at {self.index.location} holds no passages, as its model gives none, and no words to "
                    "choose parts of texts by. Use returns='documents'"
                )
            return self._passages(hits)[:k]
        return [document for hit in hits if (document := self._document(hit)) is not None]

    def _document(self, hit: Hit) -> Document | None:
        stored = self.index.get(hit.id)
        if stored is None:  # deleted since it was found
            return None
        passages = [
            {"text": found.text, "start_index": found.start, "end_index": found.end, "score": found.score}
            for found in hit.passages
        ]
        return Document(
            id=hit.id, page_content=stored.text, metadata=self._metadata(hit, score=hit.score, passages=passages)
        )

    def _passages(self, hits: list[Hit]) -> list[Document]:
        every = sorted(((hit, found) for hit in hits for found in hit.passages), key=lambda pair: -pair[1].score)
        return [
            Document(
                id=f"{hit.id}#{found.start}-{found.end}",
                page_content=found.text,
                metadata=self._metadata(hit, score=found.score, start_index=found.start, end_index=found.end),
            )
            for hit, found in every
        ]

    def _metadata(self, hit: Hit, **more: Any) -> dict[str, Any]:
        ours = {
            "document_id": hit.id,
            "document_score": hit.document_score,
            "n_tokens": hit.n_tokens,
            "truncated": hit.truncated,
            **({} if hit.title is None else {"title": hit.title}),
            **more,
        }
        return {**hit.metadata, **{self.prefix + name: value for name, value in ours.items()}}


def to_long_document(document: Document, id: str | None = None) -> LongDocument:
    """A LangChain document as one of m2rag; without an id it gets one from its text and metadata."""
    found = LongDocument(id or document.id or "", document.page_content, None, document.metadata)
    if found.id:
        return found
    return LongDocument(str(uuid5(_NAMESPACE, content_hash(found))), found.text, None, found.metadata)
