"""A chat model behind an OpenAI-style API, on loopback: every rule in threads and event loops, whole and streamed."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import threading
from collections.abc import Callable
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import pytest
from support.chat_server import EVENTS, TEXT, ChatServer, chatting, chunk, chunks, completion, event, streamed
from support.embedding_server import Answer, Hangup, Request, complaint, first
from support.fake_time import FakeTime

from m2rag.answers import ChatEndpoint, Completion, Usage
from m2rag.errors import ContextTooLongError, RemoteError

KEY = "sk-very-secret-0123456789"
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How long is a lease?"}]

Said = tuple[list[str], Completion]
Say = Callable[[ChatEndpoint], Said]


def whole(chat: ChatEndpoint) -> Said:
    with closing(chat):
        return [], chat.complete(ASKED)


def awhole(chat: ChatEndpoint) -> Said:
    async def run() -> Completion:
        try:
            return await chat.acomplete(ASKED)
        finally:
            await chat.aclose()

    return [], asyncio.run(run())


def live(chat: ChatEndpoint, pieces: list[str] | None = None) -> Said:
    pieces = [] if pieces is None else pieces
    with closing(chat):
        for piece in chat.stream(ASKED):
            if isinstance(piece, Completion):
                return pieces, piece
            pieces.append(piece)
    raise AssertionError("the stream had no end")


def alive(chat: ChatEndpoint, pieces: list[str] | None = None) -> Said:
    pieces = [] if pieces is None else pieces

    async def run() -> Completion:
        try:
            async for piece in chat.astream(ASKED):
                if isinstance(piece, Completion):
                    return piece
                pieces.append(piece)
        finally:
            await chat.aclose()
        raise AssertionError("the stream had no end")

    return pieces, asyncio.run(run())


every_way = pytest.mark.parametrize("say", [whole, awhole, live, alive])
streaming = pytest.mark.parametrize("say", [live, alive])


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOGETHER_API_KEY", "OPENAI_API_KEY", "M2RAG_API_KEY", "M2RAG_CHAT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("M2RAG_CHAT_MODEL", "M2RAG_CHAT_BASE_URL", "M2RAG_CHAT_CONTEXT_TOKENS"):
        monkeypatch.delenv(name, raising=False)


def endpoint(server: ChatServer, time: FakeTime | None = None, **options: Any) -> ChatEndpoint:
    """A model on this server; its retries take no real time."""
    policy = (time or FakeTime()).policy(**options.pop("policy", {}))
    return ChatEndpoint("any-model", **{"base_url": server.url, "api_key": KEY, "retry": policy, **options})


# Right answers


@every_way
def test_the_answer_is_the_servers(say: Say) -> None:
    with chatting() as server:
        pieces, told = say(endpoint(server, answer_tokens=77))
    assert told == Completion(TEXT, "stop", "told-model", Usage(321, 12))
    assert "".join(pieces) == (TEXT if say in (live, alive) else "") and len(pieces) != 1
    [request] = server.requests
    assert request.path == "/v1/chat/completions" and request.headers["authorization"] == f"Bearer {KEY}"
    asked = {"model": "any-model", "messages": ASKED, "max_tokens": 77, "temperature": 0.0}
    if say in (live, alive):
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    assert request.body == asked


@streaming
@pytest.mark.parametrize("form", ["bytes", "crlf", "unended", "comments", "lines", "no DONE", "no finish"])
def test_a_stream_may_be_divided_in_any_way(say: Say, form: str) -> None:
    text = 'Größe: 90 日 [1], 🙂 \\ "so".'
    data = b"".join(chunks(text))
    parts = {
        "bytes": [data[i : i + 1] for i in range(len(data))],
        "crlf": [data.replace(b"\n", b"\r\n")],
        "unended": [data.removesuffix(b"\n\n")],
        "comments": [b": hello\n\nevent: message\nid: 7\n" + data.replace(b"data: {", b": wait\n\nretry: 9\ndata:{")],
        "lines": [data.replace(b'"choices"', b'\ndata: "choices"')],
        "no DONE": [data.removesuffix(b"data: [DONE]\n\n")],
        "no finish": [b"".join(chunks(text, finish=None))],
    }[form]
    with chatting(lambda request: streamed(*parts)) as server:
        pieces, told = say(endpoint(server))
    assert "".join(pieces) == told.text == text
    assert told.finish == "stop" and told.usage == Usage(321, 12)


@streaming
def test_a_server_that_answers_all_at_once_in_spite_of_stream(say: Say) -> None:
    with chatting(lambda request: Answer(body=completion(TEXT))) as server:
        pieces, told = say(endpoint(server))
    assert pieces == [TEXT] and told.text == TEXT and told.usage == Usage(321, 12)


@every_way
def test_what_is_cut_is_told(say: Say) -> None:
    def fault(request: Request) -> Answer:
        if request.body.get("stream"):
            return streamed(*chunks(TEXT, finish="length"))
        return Answer(body=completion(TEXT, finish="length"))

    with chatting(fault) as server:
        assert say(endpoint(server))[1].finish == "length"


@pytest.mark.parametrize("content", [[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"], ids=str)
def test_content_may_come_in_parts(content: Any) -> None:
    with chatting(lambda request: Answer(body=completion(content))) as server:
        assert whole(endpoint(server))[1].text == "ab"


def test_half_of_a_surrogate_pair_harms_nobody() -> None:
    with chatting(lambda request: Answer(body=b'{"choices": [{"message": {"content": "a\\ud83d"}}]}')) as server:
        with closing(endpoint(server)) as chat:
            assert chat.complete([{"role": "user", "content": "b\ud83d"}]).text == "a\ufffd"
    assert server.requests[0].body["messages"][0]["content"] == "b?"


@every_way
def test_usage_may_be_missing(say: Say) -> None:
    def fault(request: Request) -> Answer:
        if request.body.get("stream"):
            return streamed(event(chunk("Yes.")), event(chunk(None, finish="stop")))
        return Answer(body={"choices": [{"message": {"content": "Yes."}}], "usage": {"prompt_tokens": "many"}})

    with chatting(fault) as server:
        told = say(endpoint(server))[1]
    assert told.text == "Yes." and told.usage is None


# Tried again


@every_way
def test_the_servers_wait_is_kept(say: Say) -> None:
    time = FakeTime()
    with chatting(first(2, complaint(429, "slow down", headers={"Retry-After": "7"}))) as server:
        assert say(endpoint(server, time))[1].text == TEXT
    assert time.waits == [7.5, 7.5]


def hang_up(request: Request) -> Answer:
    raise Hangup


FAULTS: dict[str, Any] = {
    "500": complaint(500, "oops"),
    "503 page": Answer(503, b"<html>no</html>"),
    "reset": hang_up,
    "short": Answer(body=b'{"choices": [', headers={"Content-Length": "500"}),
    "not JSON": Answer(body=b'{"choices": ['),
    "error in a good answer": Answer(body={"error": {"message": "upstream is down", "code": 502}}),
    "error without a code": Answer(body={"error": "busy"}),
    "empty stream": streamed(),
    "stream that ends before the text": streamed(event(chunk(""))),
    "error event": streamed(event({"error": {"message": "overloaded", "code": 503}})),
    "bad event": streamed(b"data: {\n\n"),
}


@every_way
@pytest.mark.parametrize("kind", FAULTS)
def test_a_broken_answer_is_asked_for_again(say: Say, kind: str) -> None:
    time = FakeTime()
    with chatting(first(2, FAULTS[kind])) as server:
        pieces, told = say(endpoint(server, time))
    assert told.text == TEXT and time.waits == [0.5, 1.0] and len(server.requests) == 3
    assert "".join(pieces) in ("", TEXT)


@every_way
def test_given_up_in_the_end(say: Say) -> None:
    with chatting(lambda request: complaint(500, "oops")) as server:
        with pytest.raises(
            RemoteError, match=r"any-model at 127.0.0.1: HTTP 500: oops. Given up after 3 tries"
        ) as caught:
            say(endpoint(server, policy={"attempts": 3}))
    assert caught.value.status == 500 and len(server.requests) == 3


@every_way
def test_the_deadline_holds(say: Say) -> None:
    time = FakeTime()
    with chatting(lambda request: complaint(429, "later", headers={"Retry-After": "1000"})) as server:
        with pytest.raises(RemoteError, match="the server asks for 1,000 s more") as caught:
            say(endpoint(server, time))
    assert caught.value.retry_after == 1_000 and not time.waits


@every_way
def test_a_slow_drip_ends_at_the_deadline(say: Say) -> None:
    drip = [b" "] * 200
    with chatting(
        lambda request: streamed(*drip) if request.body.get("stream") else Answer(parts=lambda: (p for p in drip))
    ) as server:
        with pytest.raises(RemoteError, match="deadline is 50 s|not complete in time"):
            say(endpoint(server, FakeTime(tick=5.0), policy={"deadline": 50.0}))


# Broken off


PIECES = [event(chunk("A lease ")), event(chunk("runs"))]
BREAKS = {
    "ends": (PIECES, "the stream ended before the answer did"),
    "error": ([*PIECES, event({"error": {"message": "out of memory", "code": 500}})], "the server says: out of memory"),
    "no JSON": ([*PIECES, b"data: {\n\n"], "not JSON"),
}


@streaming
@pytest.mark.parametrize("kind", BREAKS)
def test_nothing_is_said_twice(say: Callable[[ChatEndpoint, list[str]], Said], kind: str) -> None:
    parts, reason = BREAKS[kind]
    pieces: list[str] = []
    with chatting(lambda request: streamed(*parts)) as server:
        with pytest.raises(RemoteError, match=f"the answer broke off after 12 characters .*{reason}"):
            say(endpoint(server), pieces)
    assert pieces == ["A lease ", "runs"] and len(server.requests) == 1


@streaming
def test_a_chunked_stream_that_is_cut_is_told(say: Callable[[ChatEndpoint, list[str]], Said]) -> None:
    data = event(chunk("A lease "))
    body = b"%x\r\n%s\r\n" % (len(data), data)  # and no last chunk
    headers = {**EVENTS, "Transfer-Encoding": "chunked"}
    with chatting(lambda request: Answer(headers=headers, parts=lambda: (part for part in [body]))) as server:
        with pytest.raises(RemoteError, match="broke off after 8 characters .*RemoteProtocolError"):
            say(endpoint(server), [])
    assert len(server.requests) == 1


@streaming
def test_an_endless_stream_is_ended(say: Say) -> None:
    many = event(chunk("word " * 1_000))
    with chatting(lambda request: streamed(*[many] * 2_000)) as server:
        with pytest.raises(RemoteError, match="broke off after .*the answer exceeds 2,004,000 bytes"):
            say(endpoint(server, answer_tokens=1))
    assert len(server.requests) == 1


@pytest.mark.parametrize("asynchronous", [False, True])
def test_whoever_stops_listening_ends_the_request(asynchronous: bool) -> None:
    ended = threading.Event()
    endless = [event(chunk("word "))] * 100_000
    with chatting(lambda request: streamed(*endless, after=ended.set)) as server:
        chat = endpoint(server)

        async def listen() -> None:
            async with aclosing(chat.astream(ASKED)) as pieces:
                async for piece in pieces:
                    assert piece == "word "
                    break
            await chat.aclose()

        if asynchronous:
            asyncio.run(listen())
        else:
            with closing(chat), closing(chat.stream(ASKED)) as pieces:
                assert next(pieces) == "word "
        assert ended.wait(timeout=20)


# Refused


TOO_LONG = {
    "OpenAI": complaint(
        400,
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
        code="context_length_exceeded",
    ),
    "vLLM": complaint(
        400,
        "'max_tokens' or 'max_completion_tokens' is too large: 1024. The maximum context length is 4096 tokens",
    ),
    "llama.cpp": Answer(
        400,
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size",
                "type": "x",
                "n_ctx": 512,
            }
        },
    ),
    "TGI": Answer(
        422,
        {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193", "type": "validation"},
    ),
    "prompt": complaint(400, "prompt is too long: 210000 tokens > 200000 maximum"),
    "good status": Answer(body={"error": {"code": 400, "message": "exceeds the available context size"}}),
    "413": complaint(413, "Request too large for model: Limit 6000, Requested 9000"),
}


@every_way
@pytest.mark.parametrize("server_kind", TOO_LONG)
def test_too_long_a_prompt_is_known_as_such(say: Say, server_kind: str) -> None:
    with chatting(lambda request: TOO_LONG[server_kind]) as server:
        with pytest.raises(ContextTooLongError, match="smaller context_tokens than 8,192"):
            say(endpoint(server))
    assert len(server.requests) == 1


@streaming
def test_too_long_a_prompt_may_be_told_in_an_event(say: Say) -> None:
    told = {"error": {"code": 400, "message": "exceeds the available context size"}}
    with chatting(lambda request: streamed(event(told))) as server, pytest.raises(ContextTooLongError):
        say(endpoint(server))


REFUSALS = {
    "404": (complaint(404, "no such thing"), "any-model at 127.0.0.1 is not served .* its models are listed at http"),
    "model": (complaint(400, "The model `any-model` does not exist", code="model_not_found"), "is not served"),
    "401": (complaint(401, "Incorrect key"), "the API key was refused .* set M2RAG_CHAT_API_KEY, or pass api_key"),
    "filter": (complaint(400, "Flagged.", code="content_filter"), "content filter refused the question or the sources"),
    "quota": (complaint(429, "You are out of credit", code="insufficient_quota"), "out of credit"),
    "other": (complaint(400, "messages[0].role is wrong"), "refused .HTTP 400: messages.0..role is wrong"),
    "redirect": (Answer(307, headers={"Location": "http://127.0.0.1:9/"}), "redirected"),
    "page": (Answer(body=b"<!doctype html>"), "does not lead to an OpenAI-style API"),
}


@every_way
@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_says_what_to_do(say: Say, kind: str) -> None:
    answer, message = REFUSALS[kind]
    with chatting(lambda request: answer) as server, pytest.raises(RemoteError, match=message) as caught:
        say(endpoint(server))
    assert len(server.requests) == 1 and not isinstance(caught.value, ContextTooLongError)


WRONG: dict[str, tuple[Any, str]] = {
    "list": ([], "no list of choices"),
    "no choices": ({}, "no list of choices"),
    "null choices": ({"choices": None}, "no list of choices"),
    "empty choices": ({"choices": []}, "no list of choices"),
    "numbers": ({"choices": [1]}, "no list of choices"),
    "no message": ({"choices": [{"text": "old"}]}, "no `message`"),
    "null": (completion(None), "the answer is empty"),
    "blank": (completion(" \n"), "the answer is empty"),
    "number": (completion(7), "the answer is empty"),
    "spent": (completion("", finish="length"), "1,024 tokens came without an answer: pass more answer_tokens"),
    "filtered": (completion("", finish="content_filter"), "content filter kept the answer back"),
}


@every_way
@pytest.mark.parametrize("kind", WRONG)
def test_an_answer_of_the_wrong_shape_is_an_error(say: Say, kind: str) -> None:
    body, message = WRONG[kind]
    with chatting(lambda request: Answer(body=json.dumps(body).encode())) as server:
        with pytest.raises(RemoteError, match=message):
            say(endpoint(server))
    assert len(server.requests) == 1


@streaming
def test_events_of_the_wrong_shape_say_nothing(say: Say) -> None:
    odd = [
        [],
        7,
        {},
        {"choices": 1},
        {"choices": [3]},
        {"choices": [{"delta": 2}]},
        {"choices": [{"delta": {"content": 5}}]},
    ]
    with chatting(lambda request: streamed(*map(event, odd), *chunks("Yes."))) as server:
        assert say(endpoint(server))[1].text == "Yes."
    with chatting(lambda request: streamed(*map(event, odd), b"data: [DONE]\n\n")) as server:
        with pytest.raises(RemoteError, match="the answer is empty"):
            say(endpoint(server))


@every_way
def test_a_models_refusal_is_its_answer(say: Say) -> None:
    def fault(request: Request) -> Answer:
        if request.body.get("stream"):
            part = {"choices": [{"delta": {"refusal": "I cannot."}, "finish_reason": "stop"}]}
            return streamed(event(part), b"data: [DONE]\n\n")
        return Answer(body=completion(None, refusal="I cannot."))

    with chatting(fault) as server:
        assert say(endpoint(server))[1].text == "I cannot."


@every_way
def test_options_that_a_server_does_not_know_are_left_out(say: Say) -> None:
    def fault(request: Request) -> Answer | None:
        if "max_tokens" in request.body:
            return complaint(400, "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.")
        if "temperature" in request.body:
            return Answer(422, {"detail": [{"loc": ["body", "temperature"], "msg": "Extra inputs are not permitted"}]})
        if "stream_options" in request.body:
            return complaint(400, "Unrecognized request argument supplied: stream_options")
        return None

    with chatting(fault) as server:
        assert say(endpoint(server, answer_tokens=50))[1].text == TEXT
        last = server.requests[-1].body
    assert last["max_completion_tokens"] == 50
    assert not {"max_tokens", "temperature", "stream_options"} & set(last)


@every_way
def test_a_refusal_that_no_change_helps_ends(say: Say) -> None:
    with chatting(lambda request: complaint(400, "max_tokens must be below 9, temperature too")) as server:
        with pytest.raises(RemoteError, match="max_tokens must be below 9"):
            say(endpoint(server))
    assert len(server.requests) == 1


# Secrets


@every_way
def test_the_key_is_shown_nowhere(say: Say, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def fault(request: Request) -> Answer:
        if request.number == 0:
            return complaint(500, f"key {KEY} crashed")
        if request.body.get("stream"):
            return streamed(event(chunk("A")), event({"error": {"message": f"bad key {KEY}"}}))
        return complaint(401, f"Incorrect API key provided: {KEY}.")

    with chatting(fault) as server:
        chat = endpoint(server)
        with pytest.raises(RemoteError) as caught:
            say(chat)
    assert "***" in str(caught.value) and server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    shown = [repr(chat), str(vars(chat)), str(vars(chat._endpoint)), repr(caught.value), caplog.text]
    assert "httpx" in caplog.text and not any("very-secret" in text for text in shown)


def test_the_key_is_in_no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    with chatting() as server:
        chat = ChatEndpoint("any-model", base_url=server.url, api_key=KEY)
        assert whole(chat)[1].text == TEXT
        data = pickle.dumps(chat)
        assert KEY.encode() not in data
        monkeypatch.setenv("M2RAG_CHAT_API_KEY", "another")
        again = pickle.loads(data)
        assert whole(again)[1].text == TEXT
    assert [request.headers["authorization"] for request in server.requests] == [f"Bearer {KEY}", "Bearer another"]


def test_a_key_goes_to_its_own_provider_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOGETHER_API_KEY", "OPENAI_API_KEY", "M2RAG_API_KEY"):
        monkeypatch.setenv(name, KEY)
    with chatting() as server:
        whole(ChatEndpoint("any-model", base_url=server.url))
        monkeypatch.setenv("M2RAG_CHAT_API_KEY", "mine")
        whole(ChatEndpoint("any-model", base_url=server.url))
        whole(ChatEndpoint("any-model", base_url=server.url + "/chat/completions/"))
    sent = [request.headers.get("authorization") for request in server.requests]
    assert sent == [None, "Bearer mine", "Bearer mine"]


# Settings


def test_openai_needs_a_model_and_its_key_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2RAG_CHAT_API_KEY", KEY)
    with pytest.raises(ValueError, match="openai needs an API key: set OPENAI_API_KEY"):
        ChatEndpoint("gpt-4o-mini")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    chat = ChatEndpoint("gpt-4o-mini")
    assert (chat.base_url, chat.context_tokens) == ("https://api.openai.com/v1", 128_000)
    assert chat.key_variable == "OPENAI_API_KEY"
    assert chat._options["max_completion_tokens"] == 1_024 and "max_tokens" not in chat._options
    assert ChatEndpoint("gpt-4-turbo-2024").context_tokens == 128_000 and ChatEndpoint("gpt-4").context_tokens == 8_192
    assert ChatEndpoint("some-new-model").context_tokens == 8_192


def test_settings_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ChatEndpoint.from_environment() is None
    monkeypatch.setenv("M2RAG_CHAT_BASE_URL", "http://127.0.0.1:1/v1")
    with pytest.raises(ValueError, match="no model: set M2RAG_CHAT_MODEL"):
        ChatEndpoint.from_environment()
    monkeypatch.setenv("M2RAG_CHAT_MODEL", "mine")
    monkeypatch.setenv("M2RAG_CHAT_CONTEXT_TOKENS", "4096")
    chat = ChatEndpoint.from_environment()
    assert chat is not None
    assert (chat.model, chat.base_url, chat.context_tokens) == ("mine", "http://127.0.0.1:1/v1", 4_096)
    assert chat.key_variable == "M2RAG_CHAT_API_KEY"
    given = ChatEndpoint.from_environment(
        model="other", base_url="http://127.0.0.1:2/v1", context_tokens=9_000, answer_tokens=5
    )
    assert given is not None
    assert (given.model, given.base_url, given.context_tokens) == ("other", "http://127.0.0.1:2/v1", 9_000)
    monkeypatch.setenv("M2RAG_CHAT_CONTEXT_TOKENS", "8k")
    with pytest.raises(ValueError, match="'8k', must be a number of tokens"):
        ChatEndpoint.from_environment()


def test_options_out_of_range(tmp_path: Path) -> None:
    here = {"base_url": "http://127.0.0.1:1/v1"}
    for options, message in [
        ({"model": " "}, "model is empty"),
        ({"answer_tokens": 0}, "answer_tokens is 0"),
        ({"context_tokens": 1_024}, "nothing is left for the question"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"base_url": "ftp://host"}, "must begin with http"),
        ({"base_url": "http://user:pw@host/v1"}, "user name, password"),
        ({"tokenizer": tmp_path / "nowhere.json"}, "not a tokenizer.json"),
    ]:
        with pytest.raises(ValueError, match=message):
            ChatEndpoint(**{"model": "m", **here, **options})


def test_tokens_are_counted_by_the_tokenizer_given(tmp_path: Path) -> None:
    import tokenizers
    from tokenizers import models, pre_tokenizers

    words = tokenizers.Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    chat = ChatEndpoint("m", base_url="http://127.0.0.1:1/v1", tokenizer=tmp_path / "tokenizer.json")
    bounded = ChatEndpoint("m", base_url="http://127.0.0.1:1/v1")
    assert chat.counts_exactly and not bounded.counts_exactly
    asked = [{"role": "user", "content": "four words are here"}]
    assert bounded.count(asked) - chat.count(asked) == len("four words are here") + 2 - 4
