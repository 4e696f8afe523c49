"""A question, what a search finds, what is sent and what is made of the answer: at once and while it comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest
from support.chat_server import TEXT, ChatServer, chatting, chunk, event, streamed
from support.embedding_server import Answer as Reply
from support.embedding_server import Request, complaint, first
from support.fake_time import FakeTime

from m2rag.answers import (
    Answer,
    ChatEndpoint,
    Sources,
    aask,
    aretrieve,
    ask,
    astream,
    astream_answer,
    retrieve,
    stream,
    stream_answer,
)
from m2rag.errors import ContextTooLongError, InvalidInputError, RemoteError
from m2rag.index import AsyncLongDocumentIndex, Document, Hit, Passage

TEXTS = {
    "leases": "A lease runs for ninety days. It may be renewed once. Boats are excluded.",
    "fees": "The fee is due in March. A late fee is doubled.",
    "crew": "Every boat has a crew of two.",
}


class FakeIndex:
    """Finds all documents, always in this order, a passage per sentence."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = dict(texts)
        self.asked: list[dict[str, Any]] = []

    def search(self, query: str, k: int = 10, **options: Any) -> list[Hit]:
        self.asked.append({"query": query, "k": k, "thread": threading.current_thread(), **options})
        return [self._hit(id, text, 0.9 - 0.3 * rank) for rank, (id, text) in enumerate(self.texts.items())][:k]

    def get(self, id: str) -> Document | None:
        return Document(id, self.texts[id]) if id in self.texts else None

    def _hit(self, id: str, text: str, score: float) -> Hit:
        passages, start = [], 0
        for sentence in text.split(". "):
            passages.append(Passage(sentence, start, start + len(sentence), score - len(passages) / 100))
            start += len(sentence) + 2
        return Hit(id, score, score - 0.1, f"About {id}", passages, {}, 9, 1, False)


Get = Callable[..., Answer]


def at_once(index: Any, question: str, chat: ChatEndpoint, **options: Any) -> Answer:
    with closing(chat):
        return ask(index, question, chat, **options)


def aat_once(index: Any, question: str, chat: ChatEndpoint, **options: Any) -> Answer:
    async def run() -> Answer:
        try:
            return await aask(index, question, chat, **options)
        finally:
            await chat.aclose()

    return asyncio.run(run())


def wrapped(index: Any, question: str, chat: ChatEndpoint, **options: Any) -> Answer:
    return aat_once(AsyncLongDocumentIndex(index), question, chat, **options)


def told(events: list[Any]) -> Answer:
    """The answer of a stream whose other events belong to it."""
    *others, answer = events
    assert isinstance(answer, Answer)
    sources = [event for event in others if isinstance(event, Sources)]
    pieces = [event for event in others if isinstance(event, str)]
    if answer.model is not None:
        assert "".join(pieces) == answer.text and len(pieces) > 1
        assert sources[-1].sources == answer.sources and others.index(sources[-1]) < others.index(pieces[0])
    return answer


def live(index: Any, question: str, chat: ChatEndpoint, **options: Any) -> Answer:
    with closing(chat):
        return told(list(stream(index, question, chat, **options)))


def alive(index: Any, question: str, chat: ChatEndpoint, **options: Any) -> Answer:
    async def run() -> list[Any]:
        try:
            return [event async for event in astream(index, question, chat, **options)]
        finally:
            await chat.aclose()

    return told(asyncio.run(run()))


every_way = pytest.mark.parametrize("get", [at_once, aat_once, wrapped, live, alive])


def endpoint(server: ChatServer, **options: Any) -> ChatEndpoint:
    return ChatEndpoint("any-model", **{"base_url": server.url, "retry": FakeTime().policy(), **options})


@every_way
def test_an_answer_with_its_citations(get: Get) -> None:
    index = FakeIndex(TEXTS)
    with chatting() as server:
        answer = get(index, "How long is a lease?", endpoint(server), k=2, filter={"year": 2020})
    assert answer.text == TEXT and not answer.unknown and not answer.cut
    assert [(source.number, source.id, source.title, source.text) for source in answer.sources] == [
        (1, "leases", "About leases", TEXTS["leases"]),
        (2, "fees", "About fees", TEXTS["fees"]),
    ]
    assert [citation.number for citation in answer.citations] == [1, 2] and answer.left_out == ()
    assert [answer.text[slice(*citation.at[0])] for citation in answer.citations] == ["[1]", "[2]"]
    assert (answer.model, answer.finish, answer.usage and answer.usage.prompt_tokens) == ("told-model", "stop", 321)
    [asked] = index.asked
    assert (asked["query"], asked["k"], asked["filter"]) == ("How long is a lease?", 2, {"year": 2020})
    assert (asked["thread"] is threading.main_thread()) == (get in (at_once, live))
    [prompt] = server.prompts
    assert (
        TEXTS["leases"] in prompt and TEXTS["crew"] not in prompt and prompt.endswith("Question: How long is a lease?")
    )


@every_way
def test_numbers_that_no_source_has_are_flagged(get: Get) -> None:
    with chatting(text="Ninety days [1]. So says the law [7], [12].") as server:
        answer = get(FakeIndex(TEXTS), "How long?", endpoint(server))
    assert answer.unknown == (7, 12) and [citation.id for citation in answer.citations] == ["leases"]
    assert [source.id for source in answer.sources] == ["leases", "fees", "crew"]


@every_way
def test_nothing_found_asks_nobody(get: Get) -> None:
    with chatting() as server:
        for index, options in ((FakeIndex({}), {}), (FakeIndex(TEXTS), {"min_score": 0.95})):
            answer = get(index, "How long?", endpoint(server), **options)
            assert answer.text.startswith("Nothing was found") and answer.model is None and not answer.sources
    assert not server.requests


@every_way
def test_far_documents_may_be_left_out(get: Get) -> None:
    with chatting() as server:
        answer = get(FakeIndex(TEXTS), "How long?", endpoint(server), min_score=0.6)
    assert [source.id for source in answer.sources] == ["leases", "fees"]


@every_way
def test_a_model_that_takes_less_is_given_half(get: Get) -> None:
    texts = {"long": " ".join(f"Sentence {number}." for number in range(2_000))}
    refusal = complaint(400, "too long", code="context_length_exceeded")
    with chatting(first(1, refusal)) as server:
        chat = endpoint(server, context_tokens=9_000, answer_tokens=1_000)
        answer = get(FakeIndex(texts), "Which?", chat, whole=False)
    assert answer.text == TEXT and len(server.requests) == 2
    sent = [chat.count(request.body["messages"]) for request in server.requests]
    assert 7_500 < sent[0] <= 8_000 and 3_500 < sent[1] <= 4_000
    with chatting(lambda request: refusal) as server:
        with pytest.raises(ContextTooLongError, match="smaller context_tokens than 8,192"):
            get(FakeIndex(TEXTS), "Which?", endpoint(server))
    assert len(server.requests) == 2


@every_way
def test_documents_for_which_there_is_no_room_are_told(get: Get) -> None:
    texts = {"a": "Sentence. " * 100, "b": "word " * 10_000, "c": "Short."}
    with chatting() as server:
        chat = endpoint(server, context_tokens=6_000, answer_tokens=1_000)
        answer = get(FakeIndex(texts), "Which?", chat, whole=True)
    assert [source.id for source in answer.sources] == ["a", "c"] and answer.left_out == ("b",)


@every_way
def test_an_answer_that_was_cut(get: Get) -> None:
    def fault(request: Request) -> Reply:
        body = {"choices": [{"message": {"content": "Ninety d"}, "finish_reason": "length"}]}
        if not request.body.get("stream"):
            return Reply(body=body)
        return streamed(event(chunk("Ninety")), event(chunk(" d")), event(chunk(None, finish="length")))

    with chatting(fault) as server:
        answer = get(FakeIndex(TEXTS), "How long?", endpoint(server))
    assert answer.cut and answer.text == "Ninety d" and answer.citations == ()


@every_way
def test_errors_pass_through(get: Get) -> None:
    with chatting(lambda request: complaint(404, "gone")) as server:
        with pytest.raises(RemoteError, match="is not served"):
            get(FakeIndex(TEXTS), "How long?", endpoint(server))
        with pytest.raises(InvalidInputError, match="the question is empty"):
            get(FakeIndex(TEXTS), " \n", endpoint(server))
    assert len(server.requests) == 1


def test_a_document_deleted_meanwhile_is_left_out() -> None:
    index = FakeIndex(TEXTS)
    get = index.get
    index.get = lambda id: None if id == "fees" else get(id)  # type: ignore[method-assign]
    assert [found.hit.id for found in retrieve(index, "How long?").found] == ["leases", "crew"]


def test_the_index_may_be_closed_before_the_model_is_asked() -> None:
    with chatting() as server:
        retrieved = retrieve(FakeIndex(TEXTS), "How long?")
        with closing(endpoint(server)) as chat:
            assert told(list(stream_answer(retrieved, chat))).text == TEXT

        async def run() -> list[Any]:
            retrieved = await aretrieve(FakeIndex(TEXTS), "How long?")
            return [event async for event in astream_answer(retrieved, chat)]

        assert told(asyncio.run(run())).text == TEXT


def test_what_a_page_needs() -> None:
    """Several answers at once in one event loop, each with its own text."""

    def fault(request: Request) -> Reply:
        number = request.body["messages"][-1]["content"].split()[-1]
        return streamed(event(chunk(f"Answer {number}")), event(chunk(" [1].", finish="stop")))

    async def run(chat: ChatEndpoint) -> list[Answer]:
        async def one(number: int) -> Answer:
            events = [event async for event in astream(FakeIndex(TEXTS), f"Question {number}", chat)]
            return told(events)

        try:
            return await asyncio.gather(*map(one, range(12)))
        finally:
            await chat.aclose()

    with chatting(fault) as server:
        answers = asyncio.run(run(endpoint(server, concurrency=3)))
        assert [answer.text for answer in answers] == [f"Answer {number} [1]." for number in range(12)]
        assert server.most_at_once <= 3
