"""The remote backend against a real HTTP server on loopback: every rule through threads and through an event loop."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
import logging
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
from support.embedding_server import (
    DIMENSION,
    Answer,
    EmbeddingServer,
    Hangup,
    Request,
    complaint,
    first,
    serving,
    vector_of,
)
from support.fake_time import FakeTime

from m2rag import EmbeddingResult, M2Embedder
from m2rag.backends.providers import Caps
from m2rag.backends.remote import RemoteBackend
from m2rag.errors import InputTooLongError, InvalidInputError, NonFiniteError, RemoteError

KEY = "sk-very-secret-0123456789"

Embed = Callable[..., EmbeddingResult]


def documents(embedder: M2Embedder, texts: Any, **options: Any) -> EmbeddingResult:
    try:
        return embedder.embed_documents(texts, **options)
    finally:
        embedder.close()


def adocuments(embedder: M2Embedder, texts: Any, **options: Any) -> EmbeddingResult:
    async def run() -> EmbeddingResult:
        try:
            return await embedder.aembed_documents(texts, **options)
        finally:
            await embedder.aclose()

    return asyncio.run(run())


both_ways = pytest.mark.parametrize("embed", [documents, adocuments])


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOGETHER_API_KEY", "OPENAI_API_KEY", "M2RAG_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    with serving() as running:
        yield running


def remote(server: EmbeddingServer, time: FakeTime | None = None, **options: Any) -> M2Embedder:
    """An embedder on this server; its retries take no real time."""
    settings: dict[str, Any] = {
        "api_key": KEY,
        "base_url": server.url,
        "retry": (time or FakeTime()).policy(**options.pop("policy", {})),
    }
    ours = {name: options.pop(name) for name in ("on_too_long", "document_prompt", "precision") if name in options}
    model = options.pop("model", "any-model")
    return M2Embedder(backend=RemoteBackend(model, **{**settings, **options}), **ours)


def unit(text: str) -> np.ndarray:
    vector = vector_of(text)
    return vector / np.linalg.norm(vector)


TEXTS = [f"text number {number}" for number in range(10)]


# Right answers


@both_ways
def test_vectors_are_the_servers_in_input_order(embed: Embed, server: EmbeddingServer) -> None:
    result = embed(M2Embedder("any-model", base_url=server.url, api_key=KEY), TEXTS)
    np.testing.assert_allclose(result.vectors, [unit(text) for text in TEXTS], atol=1e-6)
    assert result.n_windows.tolist() == [1] * 10 and not result.truncated.any() and not result.errors
    [request] = server.requests
    assert request.path == "/v1/embeddings" and request.headers["authorization"] == f"Bearer {KEY}"
    assert request.body == {"model": "any-model", "encoding_format": "base64", "input": TEXTS}


@both_ways
@pytest.mark.parametrize("kind", ["floats", "base64"])
def test_floats_and_base64_are_the_same_numbers(embed: Embed, kind: str) -> None:
    def fault(request: Request) -> None:
        if kind == "floats":
            for item, text in zip(request.answer["data"], request.inputs, strict=True):
                item["embedding"] = vector_of(text).tolist()

    with serving(fault) as server:
        result = embed(remote(server), TEXTS[:3])
    np.testing.assert_array_equal(result.vectors, [unit(text) for text in TEXTS[:3]])


@both_ways
@pytest.mark.parametrize("numbered", [True, False], ids=["by index", "unnumbered"])
def test_answers_are_put_in_order_by_index(embed: Embed, numbered: bool) -> None:
    def fault(request: Request) -> None:
        if numbered:
            request.answer["data"].reverse()
        else:
            for item in request.answer["data"]:
                del item["index"]

    with serving(fault) as server:
        result = embed(remote(server), TEXTS)
    np.testing.assert_allclose(result.vectors, [unit(text) for text in TEXTS], atol=1e-6)


def test_a_query_is_a_vector(server: EmbeddingServer) -> None:
    embedder = remote(server)
    np.testing.assert_allclose(embedder.embed_query(TEXTS[0]), unit(TEXTS[0]), atol=1e-6)
    assert asyncio.run(embedder.aembed_query(TEXTS[1])).shape == (DIMENSION,)


def test_two_event_loops_one_after_the_other(server: EmbeddingServer) -> None:
    embedder = remote(server)
    for _ in range(2):
        assert asyncio.run(embedder.aembed_documents(["a"])).shape == (1, DIMENSION)


@both_ways
def test_prompt_and_precision(embed: Embed, server: EmbeddingServer) -> None:
    result = embed(remote(server, document_prompt="passage: ", precision="int8"), ["cat"])
    assert server.texts == ["passage: cat"]
    np.testing.assert_array_equal(result[0], np.rint(unit("passage: cat") * 127).astype(np.int8))


@both_ways
def test_letters_that_have_no_utf8_are_replaced(embed: Embed, server: EmbeddingServer) -> None:
    embed(remote(server), ["half a pair \ud83d", "whole \U0001f600 \x00"])
    assert server.texts == ["half a pair \ufffd", "whole \U0001f600 \x00"]


# Dimension


@both_ways
def test_dimension_is_learnt_from_the_first_answer(embed: Embed, server: EmbeddingServer) -> None:
    embedder = remote(server)
    assert "dimension=None" in repr(embedder) and not server.requests
    embed(embedder, ["a"])
    assert embedder.dimension == DIMENSION and len(server.requests) == 1


@both_ways
def test_no_inputs_have_a_dimension(embed: Embed, server: EmbeddingServer) -> None:
    assert embed(remote(server), []).shape == (0, DIMENSION)
    assert embed(remote(server), [""], on_error="skip").shape == (1, DIMENSION)


def test_fingerprint_asks_once(server: EmbeddingServer) -> None:
    embedder = remote(server)
    assert embedder.fingerprint == embedder.fingerprint
    assert "model=any-model dimensions=8" in embedder.fingerprint and len(server.requests) == 1


@both_ways
def test_dimensions_are_asked_for(embed: Embed, server: EmbeddingServer) -> None:
    embedder = M2Embedder("any-model", base_url=server.url, dimensions=4)
    assert embed(embedder, ["a"]).shape == (1, 4) and embedder.dimension == 4
    assert server.requests[0].body["dimensions"] == 4


@both_ways
def test_dimensions_that_are_ignored_are_an_error(embed: Embed) -> None:
    def fault(request: Request) -> None:
        for item in request.answer["data"]:
            item["embedding"] = [1.0] * 16

    with serving(fault) as server, pytest.raises(RemoteError, match="asked for 4 dimensions, it gave 16"):
        embed(remote(server, dimensions=4), ["a"])


@both_ways
def test_an_answer_with_another_dimension_is_refused(embed: Embed) -> None:
    def fault(request: Request) -> None:
        if request.number == 1:
            for item in request.answer["data"]:
                item["embedding"] = [1.0] * 5

    with serving(fault) as server:
        caps = Caps(items=2, tokens=1_000, bytes=10_000)
        with pytest.raises(RemoteError, match="vectors of 5 dimensions came, they have 8") as caught:
            embed(remote(server, caps=caps, concurrency=1), TEXTS[:4])
    assert caught.value.missing == (2, 3)


# Wrong answers


def shift(answer: dict) -> None:
    answer["data"][0]["index"] = 3


def double(answer: dict) -> None:
    answer["data"][1]["index"] = 0


def lose_one(answer: dict) -> None:
    del answer["data"][1]


def one_more(answer: dict) -> None:
    answer["data"].append(dict(answer["data"][0], index=3))


def half_numbered(answer: dict) -> None:
    del answer["data"][0]["index"]


def as_text(answer: dict) -> None:
    answer["data"][0]["index"] = "0"


def uneven(answer: dict) -> None:
    answer["data"][1]["embedding"] = [1.0, 2.0]


def empty(answer: dict) -> None:
    for item in answer["data"]:
        item["embedding"] = []


def odd_bytes(answer: dict) -> None:
    answer["data"][0]["embedding"] = base64.b64encode(b"12345").decode()


def no_base64(answer: dict) -> None:
    answer["data"][0]["embedding"] = "no base64!"


def words(answer: dict) -> None:
    answer["data"][0]["embedding"] = ["a", "b"]


def nested(answer: dict) -> None:
    answer["data"][0]["embedding"] = [[1.0], [2.0]]


def no_list(answer: dict) -> None:
    answer["data"] = {"embedding": [1.0]}


def no_vector(answer: dict) -> None:
    del answer["data"][0]["embedding"]


WRONG = {
    shift: "not numbered 0 to 2",
    double: "not numbered 0 to 2",
    lose_one: "2 vectors came for 3 inputs",
    one_more: "4 vectors came for 3 inputs",
    half_numbered: "not numbered",
    as_text: "not numbered",
    uneven: "2, 8 dimensions",
    empty: "0 dimensions",
    odd_bytes: "5 bytes, not a multiple of 4",
    no_base64: "not base64",
    words: "neither base64 nor a list of numbers",
    nested: "neither base64 nor a list of numbers",
    no_list: "no list of embeddings",
    no_vector: "neither base64 nor a list of numbers",
}


@both_ways
@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_wrong_answers_are_never_vectors(embed: Embed, spoil: Callable[[dict], None]) -> None:
    with serving(lambda request: spoil(request.answer)) as server:
        with pytest.raises(RemoteError, match=WRONG[spoil]) as caught:
            embed(remote(server), TEXTS[:3])
        assert len(server.requests) == 1
    assert caught.value.missing == (0, 1, 2)


@both_ways
@pytest.mark.parametrize("number", [float("nan"), float("inf"), None, 1e300], ids=str)
@pytest.mark.parametrize("kind", ["floats", "base64"])
def test_numbers_that_are_not_finite_are_never_vectors(embed: Embed, number: float | None, kind: str) -> None:
    def fault(request: Request) -> None:
        values = [number, *[1.0] * 7]
        with np.errstate(over="ignore"):
            as_bytes = np.array([np.nan if value is None else value for value in values]).astype("<f4").tobytes()
        request.answer["data"][1]["embedding"] = values if kind == "floats" else base64.b64encode(as_bytes).decode()

    with serving(fault) as server:
        with pytest.raises(NonFiniteError, match="input 1"):
            embed(remote(server), TEXTS[:3])
        result = embed(remote(server), TEXTS[:3], on_error="skip")
    assert list(result.errors) == [1] and not result[1].any()
    np.testing.assert_allclose(result[2], unit(TEXTS[2]), atol=1e-6)


@both_ways
def test_a_web_page_is_no_answer(embed: Embed) -> None:
    with serving(lambda request: Answer(body=b"<!doctype html><title>Sign in</title>")) as server:
        with pytest.raises(RemoteError, match="base_url does not lead to an OpenAI-style API"):
            embed(remote(server), ["a"])
        assert len(server.requests) == 1


@both_ways
@pytest.mark.parametrize("broken", ["truncated", "garbage", "short", "deep"])
def test_broken_answers_are_asked_for_again(embed: Embed, broken: str) -> None:
    def fault(request: Request) -> Answer | None:
        whole = json.dumps(request.answer).encode()
        bodies = {"truncated": whole[: len(whole) // 2], "garbage": b"\xff\xfe\x00", "deep": b"[" * 100_000}
        if broken == "short":
            return Answer(body=whole[:50], headers={"Content-Length": str(len(whole))})
        return Answer(body=bodies[broken])

    time = FakeTime()
    with serving(first(2, fault)) as server:
        result = embed(remote(server, time), TEXTS[:2])
        assert len(server.requests) == 3
    np.testing.assert_allclose(result[1], unit(TEXTS[1]), atol=1e-6)
    assert time.waits == [0.5, 1.0]


@both_ways
def test_an_endless_answer_is_cut_off(embed: Embed) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100_000

    with serving(lambda request: Answer(parts=parts)) as server:
        with pytest.raises(RemoteError, match="exceeds 2,000,000 bytes"):
            embed(remote(server), ["a"])
        assert len(server.requests) == 1


# Packing and concurrency


@both_ways
def test_requests_keep_within_the_caps(embed: Embed, server: EmbeddingServer) -> None:
    sizes = (10, 10, 10, 10, 500, 10, 900, 300, 300, 300)
    # The last one takes six bytes in JSON for each of its own.
    texts = [str(number).rjust(size, "a") for number, size in enumerate(sizes)] + ["\x01" * 150]
    embed(remote(server, caps=Caps(items=3, tokens=800, bytes=2_000)), texts)
    sent = sorted((request.inputs for request in server.requests), key=lambda inputs: texts.index(inputs[0]))
    assert [text for inputs in sent for text in inputs] == texts
    for request in server.requests:
        tokens = sum(len(text.encode()) + 2 for text in request.inputs)
        assert len(request.inputs) <= 3 and len(request.raw) <= 2_000
        assert tokens <= 800 or len(request.inputs) == 1
    assert len(server.requests) == 6


@both_ways
@pytest.mark.parametrize("limit", [1, 3])
def test_so_many_requests_at_once_and_no_more(embed: Embed, limit: int) -> None:
    here = threading.Barrier(limit)

    def fault(request: Request) -> None:
        # Only requests that are there together get past.
        here.wait(timeout=20)

    texts = [f"text {number}" for number in range(4 * limit)]
    with serving(fault) as server:
        result = embed(remote(server, caps=Caps(1, 1_000, 10_000), concurrency=limit), texts)
        assert server.most_at_once == limit and len(server.requests) == 4 * limit
    np.testing.assert_allclose(result.vectors, [unit(text) for text in texts], atol=1e-6)


def test_several_threads_share_the_bound(server: EmbeddingServer) -> None:
    server.fault = lambda request: sleep(0.01)  # long enough for eight at once, if they were let
    embedder = remote(server, caps=Caps(1, 1_000, 10_000), concurrency=2)
    results: dict[int, EmbeddingResult] = {}
    threads = [
        threading.Thread(
            target=lambda n=n: results.update({n: embedder.embed_documents([f"{n} {i}" for i in range(9)])})
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    embedder.close()
    for n in range(4):
        np.testing.assert_allclose(results[n].vectors, [unit(f"{n} {i}") for i in range(9)], atol=1e-6)
    assert server.most_at_once <= 2


@both_ways
def test_progress_is_told(embed: Embed, server: EmbeddingServer) -> None:
    told: list[tuple[int, int]] = []
    embedder = remote(server, caps=Caps(4, 1_000, 10_000))
    embed(embedder, TEXTS, on_batch=lambda docs, tokens: told.append((docs, tokens)))
    assert sorted(docs for docs, _ in told) == [2, 4, 4]
    assert sum(tokens for _, tokens in told) == embedder.count_tokens(TEXTS).sum()


# Too long


@both_ways
def test_too_long_is_an_error_before_a_byte_is_sent(embed: Embed, server: EmbeddingServer) -> None:
    with pytest.raises(InputTooLongError, match="input 1 has 203 tokens, the limit is 100"):
        embed(remote(server, max_tokens=100), ["short", "x" * 201])
    assert not server.requests


@both_ways
@pytest.mark.parametrize("policy", ["truncate", "window"])
@pytest.mark.parametrize("model", ["any-model", "BAAI/bge-base-en-v1.5"], ids=["bytes", "bert"])
def test_what_is_sent_of_long_texts_fits(embed: Embed, server: EmbeddingServer, policy: str, model: str) -> None:
    text = "Ünïversal internationalisation of supercalifragilistic 🦜 words, unbelievable! " * 12
    embedder = remote(server, model=model, dimensions=DIMENSION, max_tokens=50, document_prompt="doc: ")
    result = embed(embedder, ["short", text], on_too_long=policy)
    assert embedder.count_tokens(server.texts).max() <= 50
    windows = [sent.removeprefix("doc: ") for sent in server.texts if sent != "doc: short"]
    assert all(window in text for window in windows) and text.startswith(windows[0])
    assert result.truncated.tolist() == [False, policy == "truncate"]
    assert result.n_windows.tolist() == [1, len(windows)]
    if policy == "window":
        assert len(windows) > 3
        place = 0
        for window in windows:  # nothing is left out between neighbours
            found = text.find(window, max(0, place - 60))
            assert 0 <= found <= place
            place = found + len(window)
        assert text[place:].strip() == ""


def test_a_limit_below_one_letter_is_told(server: EmbeddingServer) -> None:
    with pytest.raises(InvalidInputError, match="no part of it fits into 3 tokens"):
        remote(server, max_tokens=3).embed_documents(["🦜🦜🦜"], on_too_long="window")


# Retries


@both_ways
@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_passing_failures_are_tried_again(embed: Embed, status: int) -> None:
    time = FakeTime()
    with serving(first(3, complaint(status, "try later"))) as server:
        result = embed(remote(server, time), ["a"])
        assert len(server.requests) == 4
    np.testing.assert_allclose(result[0], unit("a"), atol=1e-6)
    assert time.waits == [0.5, 1.0, 2.0]


@both_ways
@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422, 302])
def test_lasting_failures_are_not(embed: Embed, status: int) -> None:
    with serving(lambda request: complaint(status, "no")) as server:
        with pytest.raises(RemoteError, match=rf"HTTP {status}: no") as caught:
            embed(remote(server), ["a"])
        assert all(request.number < 2 for request in server.requests)
    assert caught.value.status == status


@both_ways
@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "7", "x-ratelimit-reset-requests": "50s"}, 7.0),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"x-ratelimit-reset": "11"}, 11.0),
        ({"x-ratelimit-reset-requests": "1m2s", "x-ratelimit-remaining-requests": "0",
          "x-ratelimit-reset-tokens": "90s", "x-ratelimit-remaining-tokens": "4000"}, 62.0),
    ],
    ids=["Retry-After", "first", "ms", "reset", "openai"],
)  # fmt: skip
def test_the_servers_word_on_waiting_is_kept(embed: Embed, headers: dict[str, str], wait: float) -> None:
    time = FakeTime()
    fault = first(1, complaint(429, "slow down", headers=headers))
    with serving(fault) as server:
        embed(remote(server, time, policy={"draw": lambda: 0.0}), ["a"])
        assert len(server.requests) == 2
    assert time.waits == [wait]


@both_ways
def test_a_wait_beyond_the_deadline_is_not_begun(embed: Embed) -> None:
    time = FakeTime()
    with serving(lambda request: complaint(429, "come back tomorrow", headers={"Retry-After": "86400"})) as server:
        with pytest.raises(RemoteError, match=r"come back tomorrow.*86,400 s more: the deadline is 300 s") as caught:
            embed(remote(server, time), ["a"])
        assert len(server.requests) == 1
    assert caught.value.retry_after == 86_400 and caught.value.status == 429 and not time.waits


@both_ways
def test_no_credit_is_no_reason_to_wait(embed: Embed) -> None:
    fault = lambda request: complaint(429, "You exceeded your quota", code="insufficient_quota")  # noqa: E731
    with serving(fault) as server:
        with pytest.raises(RemoteError, match="exceeded your quota"):
            embed(remote(server), ["a"])
        assert len(server.requests) == 1


@both_ways
def test_tries_are_counted(embed: Embed) -> None:
    with serving(lambda request: complaint(503, "overloaded")) as server:
        with pytest.raises(RemoteError, match=r"HTTP 503: overloaded. Given up after 3 tries in 1.5 s") as caught:
            embed(remote(server, policy={"attempts": 3}), ["a"])
        assert len(server.requests) == 3
    assert caught.value.status == 503


@both_ways
def test_the_deadline_holds_for_all_tries_together(embed: Embed) -> None:
    time = FakeTime()
    with serving(lambda request: complaint(500, "oops")) as server:
        with pytest.raises(RemoteError, match="the deadline is 10 s"):
            embed(remote(server, time, policy={"deadline": 10.0, "attempts": 100}), ["a"])
        assert len(server.requests) == 5
    assert sum(time.waits) <= 10


@both_ways
def test_an_answer_that_drips_ends_at_the_deadline(embed: Embed) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(10_000):
            yield b" " * 100

    time = FakeTime(tick=1.0)  # every look at the clock takes a second
    with serving(lambda request: Answer(parts=parts)) as server:
        with pytest.raises(RemoteError, match="not complete in time"):
            embed(remote(server, time, policy={"deadline": 20.0}), ["a"])
        assert len(server.requests) == 1


@both_ways
def test_connections_that_break_are_tried_again(embed: Embed) -> None:
    def hang_up(request: Request) -> None:
        raise Hangup

    time = FakeTime()
    with serving(first(2, hang_up)) as server:
        result = embed(remote(server, time), ["a"])
    np.testing.assert_allclose(result[0], unit("a"), atol=1e-6)
    assert time.waits == [0.5, 1.0]


@both_ways
def test_a_server_that_is_not_there(embed: Embed) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        time = FakeTime()
        backend = RemoteBackend(
            "any-model", base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1", retry=time.policy(attempts=4)
        )
        with pytest.raises(RemoteError, match=r"any-model at 127.0.0.1 \(2 inputs\): ConnectError.*4 tries") as caught:
            embed(M2Embedder(backend=backend), ["a", "b"])
    assert caught.value.status is None and caught.value.missing == (0, 1)
    assert time.waits == [0.5, 1.0, 2.0]


@both_ways
def test_a_silent_server_is_given_up(embed: Embed) -> None:
    quiet = threading.Event()

    def fault(request: Request) -> None:
        quiet.wait(timeout=20)

    with serving(fault) as server:
        with pytest.raises(RemoteError, match="ReadTimeout"):
            embed(remote(server, policy={"timeout": 0.05, "attempts": 2}), ["a"])
        quiet.set()


# Partial failure


@both_ways
def test_what_was_obtained_comes_with_the_error(embed: Embed) -> None:
    def fault(request: Request) -> Answer | None:
        return complaint(500, "broken shard") if "text number 4" in request.inputs else None

    with serving(fault) as server:
        embedder = remote(server, caps=Caps(2, 1_000, 10_000), concurrency=2, policy={"attempts": 2})
        with pytest.raises(RemoteError) as caught:
            embed(embedder, TEXTS)
    error = caught.value
    assert error.result is not None
    have = [index for index in range(10) if index not in error.missing]
    assert {4, 5} <= set(error.missing) and {0, 1} <= set(have)
    assert f"{len(error.missing)} of 10 inputs have no vector: {error.missing[0]}, " in str(error)
    np.testing.assert_allclose(error.result[have], [unit(TEXTS[index]) for index in have], atol=1e-6)
    assert not error.result[list(error.missing)].any()
    assert list(error.result.errors) == list(error.missing)
    assert error.result.n_windows.tolist() == [int(index in have) for index in range(10)]


@both_ways
def test_the_failure_of_the_server_is_raised_under_skip_too(embed: Embed) -> None:
    with serving(lambda request: complaint(401, "bad key")) as server:
        with pytest.raises(RemoteError, match="the API key was refused"):
            embed(remote(server), TEXTS, on_error="skip")


@both_ways
def test_a_document_with_a_window_missing_has_no_vector(embed: Embed) -> None:
    fault = lambda request: complaint(500, "no") if request.number == 1 else None  # noqa: E731
    with serving(fault) as server:
        backend = {"caps": Caps(1, 1_000, 10_000), "concurrency": 1, "max_tokens": 52, "policy": {"attempts": 1}}
        with pytest.raises(RemoteError) as caught:
            embed(remote(server, **backend), ["x" * 90], on_too_long="window")
    assert caught.value.missing == (0,) and not caught.value.result.vectors.any()


@both_ways
@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_input_is_found_and_named(embed: Embed, status: int) -> None:
    def fault(request: Request) -> Answer | None:
        return complaint(status, "input is too long") if TEXTS[6] in request.inputs else None

    with serving(fault) as server:
        result = embed(remote(server), TEXTS, on_error="skip")
        assert len(server.requests) <= 10  # halves of ten, and one question whether it takes anything
        with pytest.raises(RemoteError, match="input 6: .*input is too long") as caught:
            embed(remote(server), TEXTS)
    assert list(result.errors) == [6] and isinstance(result.errors[6], RemoteError) and result.errors[6].refused
    good = [index for index in range(10) if index != 6]
    np.testing.assert_allclose(result[good], [unit(TEXTS[index]) for index in good], atol=1e-6)
    assert 6 in caught.value.missing


@both_ways
def test_requests_too_large_together_are_divided(embed: Embed) -> None:
    def fault(request: Request) -> Answer | None:
        return complaint(400, "too many tokens in the request") if len(request.inputs) > 3 else None

    with serving(fault) as server:
        result = embed(remote(server), TEXTS)
    np.testing.assert_allclose(result.vectors, [unit(text) for text in TEXTS], atol=1e-6)


@both_ways
def test_a_refusal_of_everything_is_not_tried_on_every_input(embed: Embed) -> None:
    with serving(lambda request: complaint(400, "this API wants another field")) as server:
        with pytest.raises(RemoteError, match="wants another field"):
            embed(remote(server), TEXTS, on_error="skip")
        assert len(server.requests) == 2


@both_ways
def test_a_server_without_base64_is_asked_for_numbers(embed: Embed) -> None:
    def fault(request: Request) -> Answer | None:
        if "encoding_format" in request.body:
            return complaint(422, "extra fields not permitted: encoding_format")
        return None

    with serving(fault) as server:
        embedder = remote(server)
        result = embed(embedder, TEXTS[:2])
        embed(embedder, TEXTS[2:4])
        assert len(server.requests) == 3
    np.testing.assert_allclose(result[1], unit(TEXTS[1]), atol=1e-6)


# Models that are gone

GONE = [
    complaint(404, "The model `m` does not exist or you do not have access to it.", code="model_not_found"),
    complaint(400, "Unable to access model m. Please visit the list of supported models."),
    complaint(400, "Unable to access non-serverless model m."),
    complaint(404, "model 'm' not found, try pulling it first"),
    complaint(400, "m is not a valid model ID"),
    complaint(422, "Model baai/bge-v1.5 is no longer supported"),
    Answer(404, b'{"detail": "Not Found"}'),
]


@both_ways
@pytest.mark.parametrize("answer", GONE, ids=range(len(GONE)))
def test_a_model_that_is_gone_says_what_to_use_instead(embed: Embed, answer: Answer) -> None:
    with serving(lambda request: answer) as server:
        with pytest.raises(RemoteError, match=r"(?s)some-model at .* is not served.*may have retired.*/v1/models") as e:
            embed(remote(server, model="some-model"), TEXTS)
        assert len(server.requests) == 1 and e.value.status == answer.status
        name = "togethercomputer/m2-bert-80M-32k-retrieval"
        with pytest.raises(
            RemoteError, match=rf"same weights in this process, M2Embedder\('{name}'\) without base_url"
        ):
            embed(remote(server, model=name), TEXTS)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens, however you requested 9001 tokens",
        "Invalid 'input[0]': the model takes strings of at most 8192 tokens",
        "This model does not support specifying dimensions.",
    ],
)
def test_other_complaints_about_a_model_are_not_taken_for_that(message: str) -> None:
    with serving(lambda request: complaint(400, message)) as server:
        with pytest.raises(RemoteError) as caught:
            documents(remote(server), ["a"])
    assert "retired" not in str(caught.value) and message in str(caught.value)


# Cancellation


def test_a_cancelled_call_lets_go_of_everything() -> None:
    arrived, release = threading.Event(), threading.Event()

    def fault(request: Request) -> None:
        arrived.set()
        release.wait(timeout=20)

    async def run(embedder: M2Embedder) -> None:
        call = asyncio.create_task(embedder.aembed_documents(TEXTS))
        await asyncio.to_thread(arrived.wait, 20)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert asyncio.all_tasks() == {asyncio.current_task()}
        release.set()
        # And it can be used again.
        assert (await embedder.aembed_documents(["a"])).shape == (1, DIMENSION)
        await embedder.aclose()

    with serving(fault) as server:
        asyncio.run(run(remote(server, caps=Caps(2, 1_000, 10_000), concurrency=2)))
        assert len(server.requests) <= 3


def test_the_event_loop_stays_free_while_waiting() -> None:
    release = threading.Event()

    async def run(embedder: M2Embedder) -> None:
        call = asyncio.create_task(embedder.aembed_documents(["a"]))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not call.done()
        release.set()
        await call
        await embedder.aclose()

    def fault(request: Request) -> None:
        release.wait(timeout=20)

    with serving(fault) as server:
        asyncio.run(run(remote(server)))


# Secrets


def everything_shown(embedder: M2Embedder) -> str:
    backend = embedder._backend
    shown = [repr(embedder), repr(backend), str(vars(backend)), embedder.fingerprint, json.dumps(embedder.info())]
    return "\n".join(shown)


@both_ways
def test_the_key_is_shown_nowhere(
    embed: Embed, server: EmbeddingServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    server.fault = first(1, complaint(500, f"key {KEY} crashed"))
    embedder = remote(server)
    embed(embedder, ["a"])
    server.fault = lambda request: complaint(401, f"Incorrect API key provided: {KEY}.")
    with pytest.raises(RemoteError) as caught:
        embed(embedder, ["a"])
    assert "***" in str(caught.value) and KEY in server.requests[0].headers["authorization"]
    shown = everything_shown(embedder) + str(caught.value) + repr(caught.value) + caplog.text
    assert "httpx" in caplog.text  # the library's own messages were looked at too
    assert KEY not in shown and "very-secret" not in shown


def test_the_key_is_in_no_pickle(server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = M2Embedder("any-model", base_url=server.url, api_key=KEY)
    embedder.embed_query("a")
    data = pickle.dumps(embedder)
    assert KEY.encode() not in data
    monkeypatch.setenv("M2RAG_API_KEY", "another")
    for again in (pickle.loads(data), copy.deepcopy(embedder)):
        np.testing.assert_array_equal(again.embed_query("a"), embedder.embed_query("a"))
        assert again.dimension == DIMENSION and again.fingerprint == embedder.fingerprint
        again.close()
    sent = [request.headers["authorization"].removeprefix("Bearer ") for request in server.requests]
    assert sent == [KEY, "another", KEY, "another", KEY]
    embedder.close()


def test_errors_survive_a_pickle() -> None:
    with serving(first(1, complaint(401, "no"))) as server, pytest.raises(RemoteError) as caught:
        documents(remote(server), ["a"])
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and again.status == 401 and again.missing == (0,)
    assert again.result.shape == caught.value.result.shape


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_keys_that_cannot_be_sent_are_refused_unseen(key: str) -> None:
    with pytest.raises(ValueError) as caught:
        RemoteBackend("m", base_url="http://127.0.0.1:1/v1", api_key=key)
    assert key not in str(caught.value)


def test_a_key_goes_to_its_own_provider_only(server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOGETHER_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, KEY)
    documents(M2Embedder("any-model", base_url=server.url), ["a"])
    assert "authorization" not in server.requests[0].headers


@both_ways
def test_a_redirect_is_not_followed(embed: Embed, server: EmbeddingServer) -> None:
    with serving(lambda request: Answer(307, headers={"Location": f"{server.url}/embeddings"})) as other:
        with pytest.raises(RemoteError, match="redirected"):
            embed(remote(other), ["a"])
    assert not server.requests


def test_a_missing_key_is_told_as_such() -> None:
    with serving(lambda request: complaint(401, "who are you")) as server:
        with pytest.raises(RemoteError, match="there is none.*set M2RAG_API_KEY, or pass api_key"):
            documents(remote(server, api_key=None), ["a"])


def test_a_key_in_clear_text_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    RemoteBackend("m", base_url="http://gpu-box.example/v1", api_key=KEY)
    assert "without encryption" in caplog.text and KEY not in caplog.text


# Options


def test_together_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = M2Embedder("BAAI/bge-base-en-v1.5", api_key=KEY)._backend
    assert isinstance(backend, RemoteBackend) and backend.base_url == "https://api.together.xyz/v1"
    monkeypatch.setenv("TOGETHER_API_KEY", KEY)
    embedder = M2Embedder("togethercomputer/m2-bert-80M-32k-retrieval", base_url="together")
    assert (embedder.dimension, embedder.max_tokens, embedder.model_source) == (768, 32_768, None)
    assert embedder.count_tokens(["unbelievable"]).tolist() == [3]
    assert embedder.fingerprint.startswith("remote=together model=togethercomputer/m2-bert-80M-32k-retrieval ")


def test_providers_need_their_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, variable in (("together", "TOGETHER_API_KEY"), ("openai", "OPENAI_API_KEY")):
        with pytest.raises(ValueError, match=f"set {variable}, or pass api_key"):
            RemoteBackend("m", base_url=name)
        monkeypatch.setenv(variable, KEY)
        assert "api_key=set" in repr(RemoteBackend("m", base_url=name))


def test_caps_are_the_providers() -> None:
    openai = RemoteBackend("text-embedding-3-small", base_url="openai", api_key=KEY)
    assert (openai.info()["max_items"], openai.batch_tokens) == (2_048, 300_000)
    same = RemoteBackend("m", base_url="https://eu.api.openai.com/v1", api_key=KEY)
    assert same.info()["max_items"] == 2_048 and same.identity()["remote"] == "openai"
    other = RemoteBackend("m", base_url="https://notopenai.com/v1")
    assert other.info()["max_items"] == 64 and other.identity()["remote"] == "notopenai.com"


def test_the_address_may_be_the_whole_one(server: EmbeddingServer) -> None:
    for address in (server.url, server.url + "/", server.url + "/embeddings"):
        documents(M2Embedder("m", base_url=address), ["a"])
    assert {request.path for request in server.requests} == {"/v1/embeddings"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "host/v1"}, "must begin with http"),
        ({"base_url": "ftp://host/v1"}, "must begin with http"),
        ({"base_url": f"https://user:{KEY}@host/v1"}, "pass the key as api_key"),
        ({"base_url": f"https://host/v1?key={KEY}"}, "pass the key as api_key"),
        ({"base_url": "https://host:port/v1"}, "not an address"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"dimensions": 0}, "dimensions is 0"),
        ({"device": "cpu"}, "for a model in this process"),
        ({"kernels": "naive"}, "for a model in this process"),
        ({"model": None}, "must be the name"),
        ({"model": " "}, "model is empty"),
        ({"model": "text-embedding-3-small", "max_tokens": 9_000}, "9,000, text-embedding-3-small takes at most 8,191"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        M2Embedder(**{"model": "m", "base_url": "http://127.0.0.1:1/v1", **options})
    assert KEY not in str(caught.value)


def test_backend_and_address_exclude_each_other(server: EmbeddingServer) -> None:
    backend = RemoteBackend("m", base_url=server.url)
    with pytest.raises(ValueError, match="not both"):
        M2Embedder(backend=backend, base_url=server.url)
    with pytest.raises(ValueError, match="give it dimensions=4"):
        M2Embedder(backend=backend, dimensions=4)
    with pytest.raises(ValueError, match="concurrency is 0"):
        RemoteBackend("m", base_url=server.url, concurrency=0)
    with pytest.raises(ValueError, match="caps: items is 0"):
        Caps(0, 1, 1)


# Passages


@both_ways
def test_passages_are_refused_before_anything_is_sent(embed: Embed, server: EmbeddingServer) -> None:
    embedder = remote(server)
    assert embedder.has_passages is False
    with pytest.raises(ValueError, match=r"any-model gives one vector per input and no passages.*has_passages"):
        embed(embedder, ["a"], passages=True)
    with pytest.raises(ValueError, match="no passages"):
        embedder.embed_passages("a")
    assert not server.requests


# The process around it


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def test_no_torch_is_needed(server: EmbeddingServer) -> None:
    code = (
        "import sys; from m2rag import M2Embedder; M2Embedder('m', base_url=sys.argv[1]).embed_query('a'); "
        "print([name for name in ('torch', 'transformers', 'qdrant_edge') if name in sys.modules])"
    )
    assert child(code, server.url).communicate(timeout=60)[0].strip() == "[]"


def test_an_interrupt_does_not_wait_for_the_server() -> None:
    """Two requests hang in threads of their own; neither keeps the process."""
    together, release = threading.Barrier(3), threading.Event()

    def fault(request: Request) -> None:
        together.wait(timeout=60)
        release.wait(timeout=60)

    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from m2rag import M2Embedder; from m2rag.backends.remote import Caps, RemoteBackend\n"
        "backend = RemoteBackend('m', base_url=sys.argv[1], caps=Caps(1, 9999, 9999), concurrency=2)\n"
        "try: M2Embedder(backend=backend).embed_documents('abcd')\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    ).replace("'abcd'", "list('abcd')")
    with serving(fault) as server:
        process = child(code, server.url)
        together.wait(timeout=60)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20)[0].strip() == "interrupted"
        release.set()


def test_a_forked_process_opens_connections_of_its_own(
    server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = RemoteBackend("m", base_url=server.url)._endpoint
    ours = endpoint._sync_client()
    assert endpoint._sync_client() is ours
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert endpoint._sync_client() is not ours


def test_the_readme_example_runs(server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## Remote models\n")[1].split("\n## ")[0]
    [code] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    scope: dict[str, Any] = {"M2Embedder": M2Embedder, "texts": TEXTS}
    exec(code.replace("https://host/v1", server.url), scope)
    assert scope["result"].shape == (10, DIMENSION)
    scope["embedder"].close()
