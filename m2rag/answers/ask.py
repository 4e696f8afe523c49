"""A question, the documents that a search finds for it, and what a model makes of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any, Protocol

from m2rag.answers.chat import ChatEndpoint
from m2rag.answers.citations import read_citations
from m2rag.answers.prompt import Prompt, compose
from m2rag.answers.results import Answer, Completion, Found, Sources
from m2rag.errors import ContextTooLongError, InvalidInputError
from m2rag.index import AsyncLongDocumentIndex, Document, Hit
from m2rag.index.asynchronous import in_thread
from m2rag.index.filters import MetadataFilter

NOTHING_FOUND = "Nothing was found for this question; no model was asked."

K = 5
"""Documents to answer from."""

# All that a document has: they divide it into parts.
_ALL_PASSAGES = 100_000
# Of the room for a prompt, tried one after the other: a server may take less than it was said to.
_SHARES = (1.0, 0.5)


class Index(Protocol):
    """What answers need of an index. `LongDocumentIndex` is one."""

    def search(
        self, query: str, k: int = ..., *, filter: MetadataFilter | None = ..., n_passages: int = ...
    ) -> list[Hit]:
        """The `k` documents that fit a query best, best first."""
        ...

    def get(self, id: str) -> Document | None:
        """The document with this id."""
        ...


@dataclass(frozen=True)
class Retrieved:
    """A question and the documents found for it, best first."""

    question: str
    found: tuple[Found, ...]


def retrieve(
    index: Index,
    question: str,
    *,
    k: int = K,
    filter: MetadataFilter | None = None,
    min_score: float | None = None,
) -> Retrieved:
    """What an answer is to be made of: the first half of `ask`, for callers that close the index meanwhile.

    Raises what `search` of the index does.
    """
    _check(question)
    hits = _near(index.search(question, k, filter=filter, n_passages=_ALL_PASSAGES), min_score)
    return _retrieved(question, hits, [index.get(hit.id) for hit in hits])


async def aretrieve(
    index: Index | AsyncLongDocumentIndex[Any],
    question: str,
    *,
    k: int = K,
    filter: MetadataFilter | None = None,
    min_score: float | None = None,
) -> Retrieved:
    """As `retrieve`; the event loop stays free."""
    _check(question)
    if not isinstance(index, AsyncLongDocumentIndex):
        return await in_thread(retrieve, index, question, k=k, filter=filter, min_score=min_score)
    hits = _near(await index.search(question, k, filter=filter, n_passages=_ALL_PASSAGES), min_score)
    return _retrieved(question, hits, [await index.get(hit.id) for hit in hits])


def ask(
    index: Index,
    question: str,
    chat: ChatEndpoint,
    *,
    k: int = K,
    filter: MetadataFilter | None = None,
    min_score: float | None = None,
    whole: bool | None = None,
) -> Answer:
    """Answer a question from the documents of an index.

    Args:
        index: where to search.
        question: in any words.
        chat: the model that answers.
        k: from at most how many documents.
        filter: as in `search`.
        min_score: leave out documents of which neither the whole nor a passage has this cosine to the question. What
            is far from a question depends on the embedder: by default none is left out.
        whole: give the model whole documents (True), passages and what stands around them (False), or whole documents
            where they fit (None).

    Raises:
        InvalidInputError: the question is empty, an argument is out of range, or the question leaves no room for
            sources in the model's context.
        ContextTooLongError: half of `chat.context_tokens` was still too long.
        RemoteError: the model did not answer, or not rightly.
    """
    return _answer(
        stream_answer(retrieve(index, question, k=k, filter=filter, min_score=min_score), chat, whole=whole, live=False)
    )


async def aask(
    index: Index | AsyncLongDocumentIndex[Any],
    question: str,
    chat: ChatEndpoint,
    *,
    k: int = K,
    filter: MetadataFilter | None = None,
    min_score: float | None = None,
    whole: bool | None = None,
) -> Answer:
    """As `ask`; the event loop stays free."""
    retrieved = await aretrieve(index, question, k=k, filter=filter, min_score=min_score)
    async with aclosing(astream_answer(retrieved, chat, whole=whole, live=False)) as events:
        return [event async for event in events][-1]  # type: ignore[return-value]


def stream(
    index: Index,
    question: str,
    chat: ChatEndpoint,
    *,
    k: int = K,
    filter: MetadataFilter | None = None,
    min_score: float | None = None,
    whole: bool | None = None,
) -> Generator[Sources | str | Answer, None, None]:
    """As `ask`, while it happens: the sources, the answer piece by piece, and all of it at the end.

    Sources come again if the model took fewer than it was said to. Raises what `ask` does; after the first piece of
    text nothing is tried again. Closing the generator ends the request.
    """
    yield from stream_answer(retrieve(index, question, k=k, filter=filter, min_score=min_score), chat, whole=whole)


async def astream(
    index: Index | AsyncLongDocumentIndex[Any],
    question: str,
    chat: ChatEndpoint,
    *,
    k: int = K,
    filter: MetadataFilter | None = None,
    min_score: float | None = None,
    whole: bool | None = None,
) -> AsyncGenerator[Sources | str | Answer, None]:
    """As `stream`; close it (`contextlib.aclosing`) to end the request early."""
    retrieved = await aretrieve(index, question, k=k, filter=filter, min_score=min_score)
    async with aclosing(astream_answer(retrieved, chat, whole=whole)) as events:
        async for event in events:
            yield event


def stream_answer(
    retrieved: Retrieved, chat: ChatEndpoint, *, whole: bool | None = None, live: bool = True
) -> Generator[Sources | str | Answer, None, None]:
    """The second half of `stream`; with `live` False the answer comes in one piece, and a broken one is tried again."""
    for share in _SHARES if retrieved.found else ():
        prompt = compose(retrieved.question, retrieved.found, chat, share=share, whole=whole)
        yield prompt.sources
        try:
            if not live:
                yield _finished(chat.complete(prompt.messages), prompt)
                return
            with closing(chat.stream(prompt.messages)) as pieces:
                for piece in pieces:
                    yield piece if isinstance(piece, str) else _finished(piece, prompt)
            return
        except ContextTooLongError:
            if share == _SHARES[-1]:
                raise
    yield Answer(NOTHING_FOUND)


async def astream_answer(
    retrieved: Retrieved, chat: ChatEndpoint, *, whole: bool | None = None, live: bool = True
) -> AsyncGenerator[Sources | str | Answer, None]:
    """As `stream_answer`; close it (`contextlib.aclosing`) to end the request early."""
    for share in _SHARES if retrieved.found else ():
        prompt = compose(retrieved.question, retrieved.found, chat, share=share, whole=whole)
        yield prompt.sources
        try:
            if not live:
                yield _finished(await chat.acomplete(prompt.messages), prompt)
                return
            async with aclosing(chat.astream(prompt.messages)) as pieces:
                async for piece in pieces:
                    yield piece if isinstance(piece, str) else _finished(piece, prompt)
            return
        except ContextTooLongError:
            if share == _SHARES[-1]:
                raise
    yield Answer(NOTHING_FOUND)


def _check(question: str) -> None:
    if not question.strip():
        raise InvalidInputError("the question is empty")


def _near(hits: list[Hit], min_score: float | None) -> list[Hit]:
    if min_score is None:
        return hits
    return [hit for hit in hits if max(hit.document_score, *(p.score for p in hit.passages), -1.0) >= min_score]


def _retrieved(question: str, hits: list[Hit], documents: list[Document | None]) -> Retrieved:
    # A document may have been deleted in the meantime.
    both = zip(hits, documents, strict=True)
    return Retrieved(question, tuple(Found(hit, document.text) for hit, document in both if document is not None))


def _finished(completion: Completion, prompt: Prompt) -> Answer:
    sources = prompt.sources
    citations, unknown = read_citations(completion.text, sources.sources)
    return Answer(
        text=completion.text,
        citations=citations,
        sources=sources.sources,
        unknown=unknown,
        left_out=sources.left_out,
        finish=completion.finish,
        model=completion.model,
        usage=completion.usage,
    )


def _answer(events: Generator[Sources | str | Answer, None, None]) -> Answer:
    *_, answer = events
    assert isinstance(answer, Answer)
    return answer
