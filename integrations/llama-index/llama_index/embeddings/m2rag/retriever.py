"""`M2LongDocumentRetriever`: a `LongDocumentIndex` as a LlamaIndex retriever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import (
    Document,
    IndexNode,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from m2rag.index import AddProgress, AddReport, Hit, LongDocumentIndex
from m2rag.index import Document as LongDocument
from m2rag.index.index import BATCH_TOKENS
from m2rag.index.modes import Mode

Returned = Literal["documents", "passages"]
Filters = Mapping[str, Any] | MetadataFilters

# What each is called in a filter of the index; None compares with the value itself.
_OPERATORS = {
    FilterOperator.EQ: None,
    FilterOperator.CONTAINS: None,
    FilterOperator.IN: "in",
    FilterOperator.GT: "gt",
    FilterOperator.GTE: "gte",
    FilterOperator.LT: "lt",
    FilterOperator.LTE: "lte",
}


class M2LongDocumentRetriever(BaseRetriever):
    """Finds whole long documents by their one vector and their words, and in them the passages that answer.

    With `returns="documents"` each node is a document of the index with all of its text, best first. With
    `returns="passages"` it is a passage of one of the best documents, the nearest passages first, its place in
    `start_char_idx` and `end_char_idx` and its document as the source. A document's score is the one the search orders
    by, a passage's its cosine; where the model gives passages no vectors, words choose them and it is the document's.

    Metadata of a node: the document's own, and `document_score`, `n_tokens`, `truncated`, `title` if it has one; of a
    document `passages` (a list of `text`, `start_char_idx`, `end_char_idx`, `score`). Ours but the title are kept out
    of what language models and embeddings are shown. A field of the document that has one of these names is hidden by
    it: `prefix` puts a word in front of ours.

    Args:
        index: the index; closing it is the business of who opened it.
        similarity_top_k: how many nodes.
        returns: whole documents, or passages.
        filters: what the metadata must be: a mapping as `LongDocumentIndex.search` takes it, or `MetadataFilters` with
            `EQ`, `IN`, `GT`, `GTE`, `LT`, `LTE` and `AND`.
        n_passages: at most how many of one document.
        mode: "hybrid", "dense" or "lexical"; default: hybrid where the index has words. See `LongDocumentIndex.search`.
        rescore: weight of the best passage in a document's score; default: 0.5 in hybrid mode, else 0.
        prefix: in front of the names of the metadata that the retriever adds.
        callback_manager, object_map, objects, verbose: as for every retriever of LlamaIndex.

    Raises:
        ValueError: an option is out of its range, or a filter asks for more than the index can.
    """

    def __init__(
        self,
        index: LongDocumentIndex,
        *,
        similarity_top_k: int = 2,
        returns: Returned = "documents",
        filters: Filters | None = None,
        n_passages: int = 3,
        mode: Mode | None = None,
        rescore: float | None = None,
        prefix: str = "",
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
    ) -> None:
        if returns not in ("documents", "passages"):
            raise ValueError(f"returns is {returns!r}, must be 'documents' or 'passages'")
        least = 1 if returns == "passages" else 0
        for name, value, minimum in (("similarity_top_k", similarity_top_k, 1), ("n_passages", n_passages, least)):
            if value < minimum:
                raise ValueError(f"{name} is {value}, must be at least {minimum}")
        if mode is not None and mode not in get_args(Mode):
            raise ValueError(f"mode is {mode!r}, must be one of {', '.join(get_args(Mode))}")
        if rescore is not None and not 0 <= rescore <= 1:
            raise ValueError(f"rescore is {rescore}, must be between 0 and 1")
        self._index = index
        self._similarity_top_k = similarity_top_k
        self._returns = returns
        self._filter = conditions(filters)
        self._n_passages = n_passages
        self._mode = mode
        self._rescore = rescore
        self._prefix = prefix
        super().__init__(callback_manager, object_map, objects, verbose)

    def add_documents(
        self,
        documents: Iterable[Document],
        *,
        on_too_long: str = "window",
        batch_tokens: int = BATCH_TOKENS,
        progress: Callable[[AddProgress], None] | None = None,
    ) -> AddReport:
        """Put documents into the index, whole, under their ids; unchanged ones are not embedded again.

        Only their text is embedded, not their metadata. Give them ids of your own: a document without has another one
        every time.

        Args:
            documents: to be added.
            on_too_long: "window", "truncate" or "error".
            batch_tokens: embedded and stored in one go: what a kill loses at most.
            progress: called as work goes on.

        Returns:
            What was done. Documents that could not be indexed are in `failed`, they do not stop the others.
        """
        found = [
            LongDocument(one.node_id, one.get_content(metadata_mode=MetadataMode.NONE), None, one.metadata)
            for one in documents
        ]
        return self._index.add(found, on_too_long=on_too_long, batch_tokens=batch_tokens, progress=progress)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        k = self._similarity_top_k
        hits = self._index.search(
            query_bundle.query_str,
            k,
            mode=self._mode,
            rescore=self._rescore,
            filter=self._filter,
            n_passages=self._n_passages,
        )
        if self._returns == "documents":
            return [found for hit in hits if (found := self._document(hit)) is not None]
        if hits and self._index.modes == ("dense",) and not any(hit.passages for hit in hits):
            raise ValueError(
                f"the index at {self._index.location} holds no passages, as its model gives none, and no words to "
                "choose parts of texts by. Use returns='documents'"
            )
        return sorted((node for hit in hits for node in self._passages(hit)), key=lambda found: -(found.score or 0))[:k]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)

    def _document(self, hit: Hit) -> NodeWithScore | None:
        stored = self._index.get(hit.id)
        if stored is None:  # deleted since it was found
            return None
        passages = [
            {"text": found.text, "start_char_idx": found.start, "end_char_idx": found.end, "score": found.score}
            for found in hit.passages
        ]
        node = self._node(hit, stored.text, passages=passages)
        node.id_, node.start_char_idx, node.end_char_idx = hit.id, 0, len(stored.text)
        return NodeWithScore(node=node, score=hit.score)

    def _passages(self, hit: Hit) -> list[NodeWithScore]:
        nodes = []
        for found in hit.passages:
            node = self._node(hit, found.text)
            node.id_ = f"{hit.id}#{found.start}-{found.end}"
            node.start_char_idx, node.end_char_idx = found.start, found.end
            nodes.append(NodeWithScore(node=node, score=found.score))
        return nodes

    def _node(self, hit: Hit, text: str, **more: Any) -> TextNode:
        technical = {
            "document_score": hit.document_score,
            "n_tokens": hit.n_tokens,
            "truncated": hit.truncated,
            **more,
        }
        title = {} if hit.title is None else {self._prefix + "title": hit.title}
        ours = {self._prefix + name: value for name, value in technical.items()}
        return TextNode(
            text=text,
            metadata={**hit.metadata, **title, **ours},
            excluded_llm_metadata_keys=list(ours),
            excluded_embed_metadata_keys=list(ours),
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=hit.id)},
        )


def conditions(filters: Filters | None) -> dict[str, Any] | None:
    """Filters as the index takes them: fields and what they must be, all of them.

    Raises:
        ValueError: an operator the index does not have, OR, NOT, nested filters, or two filters of one field that are
            not the bounds of a range.
    """
    if filters is None:
        return None
    if not isinstance(filters, MetadataFilters):
        return dict(filters)
    found: dict[str, Any] = {}
    for one in filters.filters:
        if not isinstance(one, MetadataFilter) or one.operator not in _OPERATORS:
            names = ", ".join(operator.name for operator in _OPERATORS)
            raise ValueError(f"the index compares metadata by {names} only, not by {one!r}")
        name = _OPERATORS[one.operator]
        wanted = one.value if name is None else {name: one.value}
        there = found.get(one.key)
        if isinstance(there, dict) and isinstance(wanted, dict) and "in" not in {**there, **wanted}:
            wanted = {**there, **wanted}
        elif one.key in found and there != wanted:
            raise ValueError(f"the index takes one value or range for a field, {one.key!r} has two")
        found[one.key] = wanted
    alone = len(filters.filters) == 1 and filters.condition == FilterCondition.OR
    if filters.condition not in (None, FilterCondition.AND) and not alone:
        raise ValueError(f"the index joins filters by AND only, not by {filters.condition!r}")
    return found
