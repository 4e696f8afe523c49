"""The embeddings of our server through OpenAI's own client, and what it says to wrong requests."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from support.serving import bundled_server, serving  # noqa: F401
from tiny_models import TOKENIZER, FakeBackend, sentence

from m2rag import M2Embedder
from m2rag.backends import PieceOutput
from m2rag.backends.remote import RemoteBackend, RetryPolicy
from m2rag.batching import Piece
from m2rag.errors import RemoteError
from m2rag.server.app import Server
from m2rag.server.settings import ServerSettings

TEXTS = [sentence(9), "Wheels are named by their tags, and nothing else.", sentence(700, seed=1), "ü"]


def client(base_url: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=base_url, api_key=options.pop("api_key", "none"), max_retries=0, **options)


@contextmanager
def fake_server(backend: FakeBackend | None = None, **options: Any) -> Iterator[tuple[str, Server]]:
    settings = ServerSettings(**options.pop("settings", {}))
    server = Server(backend or FakeBackend(), settings=settings, options=options)
    with serving(server.app) as address:
        yield address, server


@pytest.fixture(scope="module")
def fake_url() -> Iterator[str]:
    with fake_server(FakeBackend(matryoshka=(4,))) as (address, _):
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def local() -> M2Embedder:
    return M2Embedder(device="cpu")


# The right answers


@pytest.mark.parametrize("encoding", ["base64", "float", None])
def test_openais_client_gets_the_local_vectors(bundled_server: str, local: M2Embedder, encoding: Any) -> None:  # noqa: F811
    options = {} if encoding is None else {"encoding_format": encoding}
    answer = client(bundled_server).embeddings.create(model="m2rag-mini", input=TEXTS, **options)
    given: list[Any] = [item.embedding for item in answer.data]
    if encoding == "base64":  # asked for in words, it is not decoded
        given = [np.frombuffer(base64.b64decode(text), dtype="<f4") for text in given]
    np.testing.assert_allclose(given, local.embed_documents(TEXTS).vectors, atol=1e-6)
    assert [item.index for item in answer.data] == [0, 1, 2, 3]
    assert answer.model == "m2rag-mini"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == local.count_tokens(TEXTS).sum()


def test_its_asynchronous_client_too(bundled_server: str, local: M2Embedder) -> None:  # noqa: F811
    async def embed() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=bundled_server, api_key="none", max_retries=0) as asynchronous:
            calls = [asynchronous.embeddings.create(model="m2rag-mini", input=text) for text in TEXTS]
            return [answer.data[0].embedding for answer in await asyncio.gather(*calls)]

    np.testing.assert_allclose(asyncio.run(embed()), local.embed_documents(TEXTS).vectors, atol=1e-6)


def test_our_own_client_gets_them_too(bundled_server: str, local: M2Embedder) -> None:  # noqa: F811
    remote = M2Embedder("m2rag-mini", base_url=bundled_server)
    result = remote.embed_documents(TEXTS)
    np.testing.assert_allclose(result.vectors, local.embed_documents(TEXTS).vectors, atol=1e-6)
    assert remote.max_tokens == local.max_tokens
    remote.close()


@pytest.mark.parametrize("many", [False, True])
def test_token_ids_instead_of_text(fake_url: str, many: bool) -> None:
    ids = [TOKENIZER.encode(text).ids.tolist() for text in TEXTS[:2]]
    given: Any = ids if many else ids[0]
    answer = client(fake_url).embeddings.create(model="fake", input=given)
    expected = client(fake_url).embeddings.create(model="fake", input=TEXTS[:2] if many else TEXTS[:1])
    assert [item.embedding for item in answer.data] == [item.embedding for item in expected.data]
    assert answer.usage == expected.usage


def test_fewer_dimensions_where_the_model_has_them(fake_url: str) -> None:
    answer = client(fake_url).embeddings.create(model="fake", input="text", dimensions=4)
    expected = M2Embedder(backend=FakeBackend(matryoshka=(4,)), dimensions=4).embed_query("text")
    np.testing.assert_allclose(answer.data[0].embedding, expected, atol=1e-6)


def test_queries_and_documents_have_their_prompts() -> None:
    prompts = {"query_prompt": "ask: ", "document_prompt": "text: "}
    local = M2Embedder(backend=FakeBackend(), **prompts)
    with fake_server(**prompts) as (address, _):
        for kind, expected in (
            ("query", local.embed_query("wheels")),
            ("document", local.embed_documents(["wheels"])[0]),
            (None, local.embed_documents(["wheels"])[0]),
        ):
            body = {"input_type": kind} if kind else {}
            answer = client(f"{address}/v1").embeddings.create(model="fake", input="wheels", extra_body=body)
            np.testing.assert_allclose(answer.data[0].embedding, expected, atol=1e-6)


@pytest.mark.parametrize("policy", ["truncate", "window"])
def test_longer_inputs_as_the_request_says(fake_url: str, policy: str) -> None:
    text = sentence(150)
    body = {"model": "fake", "input": [text, "short"], "on_too_long": policy}
    answer = httpx.post(f"{fake_url}/embeddings", json=body).json()
    expected = M2Embedder(backend=FakeBackend(), on_too_long=policy).embed_documents([text, "short"])
    np.testing.assert_allclose([item["embedding"] for item in answer["data"]], expected.vectors, atol=1e-6)
    assert [item["n_tokens"] for item in answer["data"]] == expected.n_tokens.tolist()
    assert [item["truncated"] for item in answer["data"]] == expected.truncated.tolist()
    assert [item["n_windows"] for item in answer["data"]] == [1 if policy == "truncate" else expected.n_windows[0], 1]
    assert answer["usage"]["prompt_tokens"] == expected.n_used.sum(), "tokens that were cut are not counted"


def test_the_model_is_listed_and_known_by_two_names() -> None:
    with fake_server(settings={"name": "org/our-model"}) as (address, _):
        ours = client(f"{address}/v1")
        (listed,) = ours.models.list().data
        assert listed.id == "org/our-model"
        assert ours.models.retrieve("org/our-model").id == "org/our-model"
        for name in ("org/our-model", "fake"):
            assert ours.embeddings.create(model=name, input="text").model == "org/our-model"
        facts = httpx.get(f"{address}/v1/models").json()["data"][0]
        own = M2Embedder(backend=FakeBackend())
        assert (facts["dimension"], facts["max_tokens"], facts["fingerprint"]) == (8, 64, own.fingerprint)


# The wrong requests


@pytest.mark.parametrize(
    ("options", "error", "code", "param", "message"),
    [
        ({"input": sentence(150)}, openai.BadRequestError, "context_length_exceeded", "input", "167 tokens"),
        ({"input": ["fine", " "]}, openai.BadRequestError, "invalid_input", "input", "input 1 holds only white"),
        ({"input": ""}, openai.BadRequestError, "invalid_input", "input", "input 0 is empty"),
        ({"input": []}, openai.BadRequestError, "invalid_value", "input", "not empty"),
        ({"input": ["a", 1]}, openai.BadRequestError, "invalid_value", "input", "must be a string"),
        ({"input": {"text": "a"}}, openai.BadRequestError, "invalid_value", "input", "must be a string"),
        ({"input": None}, openai.BadRequestError, "invalid_value", "input", "must be a string"),
        ({"input": [True]}, openai.BadRequestError, "invalid_value", "input", "must be a string"),
        ({"input": [279]}, openai.BadRequestError, "invalid_input", "input", "another tokenizer"),
        ({"input": [10**30]}, openai.BadRequestError, "invalid_input", "input", "token id"),
        ({"input": "a", "dimensions": 3}, openai.BadRequestError, "invalid_value", "dimensions", "trained for 4, 8"),
        ({"input": "a", "dimensions": 0}, openai.BadRequestError, "invalid_value", "dimensions", "greater than"),
        ({"input": "a", "encoding_format": "int8"}, openai.BadRequestError, "invalid_value", "encoding_format", ""),
        ({"input": "a", "extra_body": {"input_type": "x"}}, openai.BadRequestError, "invalid_value", "input_type", ""),
        ({"input": "a", "extra_body": {"on_too_long": 1}}, openai.BadRequestError, "invalid_value", "on_too_long", ""),
        ({"input": "a", "model": "gpt"}, openai.NotFoundError, "model_not_found", "model", "'fake' is"),
        ({"input": ["a"] * 2_049}, openai.BadRequestError, "too_many_inputs", "input", "2,049 inputs, at most 2,048"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_requests_are_told_what_is_wrong(
    fake_url: str, options: dict[str, Any], error: type[openai.APIStatusError], code: str, param: str, message: str
) -> None:
    with pytest.raises(error) as caught:
        client(fake_url).embeddings.create(**{"model": "fake", **options})
    assert (caught.value.code, caught.value.param) == (code, param)
    assert message in caught.value.message
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b'{"input":"a"}'],
    ids=lambda body: str(body)[:20],
)
def test_bodies_that_are_no_request(fake_url: str, body: bytes) -> None:
    answer = httpx.post(f"{fake_url}/embeddings", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert len(answer.content) < 2_000


def test_letters_without_utf8_and_numbers_without_end(fake_url: str) -> None:
    def post(body: str) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return httpx.post(f"{fake_url}/embeddings", content=body.encode(), headers=headers)

    # Half a surrogate pair is dropped by the tokenizer, whatever the field it stands in is not.
    assert post('{"model": "fake", "input": "wheel \\ud800"}').status_code == 200
    assert post('{"model": "\\ud800", "input": "a"}').status_code == 404
    assert post('{"model": "fake", "input": "a", "dimensions": NaN}').status_code == 400
    assert post('{"model": "fake", "input": "a", "dimensions": 1' + "0" * 400 + "}").status_code == 400
    assert post('{"model": "fake", "input": "\\u0000\\u0001"}').status_code == 400


def test_unknown_paths_and_methods_answer_as_the_api_does(fake_url: str) -> None:
    root = fake_url.removesuffix("/v1")
    for method, path, status in (("GET", "/v1/chat", 404), ("GET", "/v1/embeddings", 405), ("GET", "/etc/passwd", 404)):
        answer = httpx.request(method, root + path)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]


def test_models_that_give_nan_are_an_error_of_the_server() -> None:
    def spoil(piece: Piece, vector: np.ndarray) -> np.ndarray:
        return vector * np.nan

    backend = FakeBackend()
    with fake_server(backend) as (address, _):
        backend._spoil = spoil
        answer = httpx.post(f"{address}/v1/embeddings", json={"model": "fake", "input": "a"})
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"


# Too much at once, too long, nobody there


class Slow(FakeBackend):
    """Holds every batch until `go`."""

    def __init__(self) -> None:
        super().__init__(max_tokens=4_096)
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Semaphore(0)

    def run(self, batch: Sequence[Piece]) -> list[PieceOutput]:
        self.entered.release()
        assert self.go.wait(30)
        return super().run(batch)

    def hold(self) -> None:
        """From now on."""
        while self.entered.acquire(blocking=False):
            pass
        self.go.clear()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(call())
        except httpx.HTTPError as error:
            answers.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, answers


def test_a_full_server_says_when_to_come_back() -> None:
    backend = Slow()
    with fake_server(backend, settings={"max_waiting_tokens": 1_000}) as (address, server):
        backend.hold()
        long = {"model": "fake", "input": sentence(900)}
        first, answers = in_thread(lambda: httpx.post(f"{address}/v1/embeddings", json=long, timeout=30))
        assert backend.entered.acquire(timeout=20)
        with pytest.raises(openai.RateLimitError) as caught:
            client(f"{address}/v1").embeddings.create(model="fake", input=sentence(900))
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        assert caught.value.response.headers["x-ratelimit-reset"] == caught.value.response.headers["retry-after"]
        assert caught.value.type == "rate_limit_error"
        backend.go.set()
        first.join(20)
        assert answers[0].status_code == 200
        # Our own client keeps the wait and gets its vectors in the end.
        backend.hold()
        first, answers = in_thread(lambda: httpx.post(f"{address}/v1/embeddings", json=long, timeout=30))
        assert backend.entered.acquire(timeout=20)
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            backend.go.set()
            first.join(20)

        remote = RemoteBackend("fake", base_url=f"{address}/v1", max_tokens=8_192, retry=RetryPolicy(sleep=sleep))
        assert M2Embedder(backend=remote).embed_query(sentence(900)).shape == (8,)
        assert waits[0] >= 1
        remote.close()


def test_a_request_that_takes_too_long_is_given_up() -> None:
    backend = Slow()
    with fake_server(backend, settings={"timeout": 0.2}) as (address, server):
        backend.hold()
        answer = httpx.post(f"{address}/v1/embeddings", json={"model": "fake", "input": "a"}, timeout=30)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "timeout"
        backend.go.set()
        until(lambda: server.backend.waiting_tokens == 0)


def test_work_for_a_client_that_left_is_dropped() -> None:
    backend = Slow()
    with fake_server(backend) as (address, server):
        backend.hold()
        first, _ = in_thread(
            lambda: httpx.post(f"{address}/v1/embeddings", json={"model": "fake", "input": "a b"}, timeout=30)
        )
        assert backend.entered.acquire(timeout=20)
        waiting = server.backend.waiting_tokens
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/embeddings", json={"model": "fake", "input": [sentence(60)] * 50}, timeout=0.3)
        until(lambda: server.backend.waiting_tokens == waiting)
        seen = len(backend.batches)
        backend.go.set()
        first.join(20)
        until(lambda: server.backend.waiting_tokens == 0)
        assert len(backend.batches) == seen + 1, "what nobody waited for was computed"
        assert 'status="499"' in httpx.get(f"{address}/metrics").text


def test_a_server_that_ends_finishes_what_it_has_begun() -> None:
    backend = Slow()
    with fake_server(backend) as (address, _):
        backend.hold()
        thread, answers = in_thread(
            lambda: httpx.post(f"{address}/v1/embeddings", json={"model": "fake", "input": "a"}, timeout=30)
        )
        assert backend.entered.acquire(timeout=20)
        threading.Timer(0.5, backend.go.set).start()
    thread.join(20)
    assert answers[0].status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


# Watching it


def test_health_readiness_and_counters(fake_url: str) -> None:
    root = fake_url.removesuffix("/v1")
    assert httpx.get(f"{root}/health").json() == {"status": "ok"}
    assert httpx.get(f"{root}/ready").json() == {"status": "ready"}

    def tokens() -> float:
        lines = httpx.get(f"{root}/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith("m2rag_tokens_total")).split()[1])

    before = tokens()
    used = client(fake_url).embeddings.create(model="fake", input=["a b c", "d"]).usage.total_tokens
    assert tokens() - before == used == 8
    text = httpx.get(f"{root}/metrics").text
    assert 'm2rag_requests_total{route="/v1/embeddings",status="200"}' in text
    assert 'm2rag_batch_seconds_count{lane="short"}' in text


def test_base64_is_little_endian_floats_of_32_bits(fake_url: str) -> None:
    body = {"model": "fake", "input": "a", "encoding_format": "base64"}
    answer = httpx.post(f"{fake_url}/embeddings", json=body)
    given = np.frombuffer(base64.b64decode(answer.json()["data"][0]["embedding"]), dtype="<f4")
    np.testing.assert_array_equal(given, M2Embedder(backend=FakeBackend()).embed_query("a"))


def test_the_description_names_what_the_routes_take(fake_url: str) -> None:
    described = json.loads(httpx.get(fake_url.removesuffix("/v1") + "/openapi.json").content)
    assert {"/v1/embeddings", "/v1/models", "/health", "/ready", "/metrics"} <= set(described["paths"])
    assert "422" not in described["paths"]["/v1/embeddings"]["post"]["responses"]


def test_our_client_is_told_what_the_server_says_of_a_text(fake_url: str) -> None:
    remote = M2Embedder("fake", base_url=fake_url, max_tokens=8_192)
    with pytest.raises(RemoteError, match="167 tokens, the limit is 64"):
        remote.embed_documents(["fine", sentence(150)])
    remote.close()
