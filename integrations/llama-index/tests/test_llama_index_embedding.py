"""`M2Embedding`: every public method of `BaseEmbedding`, sync and async alike, copies, events, cache."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding, SimilarityMode
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, TokenCountingHandler
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.rate_limiter import TokenBucketRateLimiter
from llama_index.core.schema import Document, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from pydantic import SecretStr, ValidationError
from support.embedding_server import EmbeddingServer, complaint, serving

from llama_index.embeddings.m2rag import M2Embedding, TextsNotEmbeddedError
from m2rag import M2Embedder
from m2rag.errors import CheckpointError, InputTooLongError, InvalidInputError, RemoteError

NOBODY = "http://127.0.0.1:9/v1"
TEXTS = ["A first text.", "A second one, about bread and salt.", "A third one.", "The fourth."]

Make = Callable[..., M2Embedding]


@pytest.fixture(params=["local", "remote"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "local":
        return M2Embedding
    url = request.getfixturevalue("server").url
    return lambda **options: M2Embedding("any-model", base_url=url, api_key="very-secret", **options)


def reference(embedding: M2Embedding, texts: list[str], prompt: str = "document") -> np.ndarray:
    embed = embedding.embedder.embed_documents if prompt == "document" else embedding.embedder.embed_queries
    return embed(texts).vectors


def assert_vectors(found: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, atol=2e-6)
    flat = found if isinstance(found[0], float) else [number for vector in found for number in vector]
    assert {type(number) for number in flat} == {float}


# What BaseEmbedding has in public, and the tests below call: a method that is added there needs a test here.
PUBLIC = {
    *("get_query_embedding", "aget_query_embedding", "get_text_embedding", "aget_text_embedding"),
    *("get_text_embedding_batch", "aget_text_embedding_batch", "similarity", "to_payload", "acall"),
    *("get_agg_embedding_from_queries", "aget_agg_embedding_from_queries", "check_base_embeddings_class"),
}


def test_no_public_method_is_forgotten_or_overridden() -> None:
    own = {name for name, _ in inspect.getmembers(BaseEmbedding, inspect.isfunction) if name in vars(BaseEmbedding)}
    assert {name for name in own if not name.startswith("_")} == PUBLIC
    overridden = {name for name in PUBLIC if name in vars(M2Embedding)}
    assert overridden == {"to_payload"}, "LlamaIndex's events and cache come with its own methods"
    assert isinstance(M2Embedding(), BaseEmbedding) and M2Embedding.class_name() == "M2Embedding"


async def test_queries(make: Make) -> None:
    embedding = make(query_prompt="query: ")
    expected = reference(embedding, TEXTS[:2], "query")
    assert_vectors(embedding.get_query_embedding(TEXTS[0]), expected[0])
    assert_vectors(await embedding.aget_query_embedding(TEXTS[0]), expected[0])
    assert np.abs(expected[0] - reference(embedding, TEXTS[:1])[0]).max() > 1e-3, "prompts make a difference"
    mean = expected.mean(axis=0)
    assert_vectors(embedding.get_agg_embedding_from_queries(TEXTS[:2]), mean)
    assert_vectors(await embedding.aget_agg_embedding_from_queries(TEXTS[:2]), mean)
    assert embedding.get_agg_embedding_from_queries(TEXTS[:2], lambda found: [float(len(found))]) == [2.0]


async def test_texts(make: Make) -> None:
    embedding = make(embed_batch_size=3, document_prompt="document: ")
    expected = reference(embedding, TEXTS)
    assert_vectors(embedding.get_text_embedding(TEXTS[1]), expected[1])
    assert_vectors(await embedding.aget_text_embedding(TEXTS[1]), expected[1])
    for options in ({}, {"show_progress": True}):
        assert_vectors(embedding.get_text_embedding_batch(TEXTS, **options), expected)
        assert_vectors(await embedding.aget_text_embedding_batch(TEXTS, **options), expected)
    assert embedding.get_text_embedding_batch([]) == [] == await embedding.aget_text_embedding_batch([])
    two_workers = make(embed_batch_size=1, num_workers=2)
    assert_vectors(await two_workers.aget_text_embedding_batch(TEXTS[:3]), reference(make(), TEXTS[:3]))


async def test_nodes(make: Make) -> None:
    embedding = make()
    expected = reference(embedding, ["n: 1\n\nBread.", "Salt."])
    nodes = [TextNode(text="Bread.", metadata={"n": 1}), Document(text="Salt.")]
    assert_vectors([node.embedding for node in embedding(nodes)], expected)
    assert_vectors([node.embedding for node in await embedding.acall(copy.deepcopy(nodes))], expected)


def test_similarity() -> None:
    embedding = M2Embedding()
    one, other = embedding.get_text_embedding_batch(["Bread and salt.", "Bread and butter."])
    cosine = float(np.dot(one, other))
    assert embedding.similarity(one, one) == pytest.approx(1)
    assert 0 < embedding.similarity(one, other) == pytest.approx(cosine, abs=1e-6)
    assert embedding.similarity(one, other, SimilarityMode.DOT_PRODUCT) == pytest.approx(cosine)
    distance = -float(np.linalg.norm(np.subtract(one, other)))
    assert embedding.similarity(one, other, SimilarityMode.EUCLIDEAN) == pytest.approx(distance)


def test_a_batch_is_one_call(server: EmbeddingServer) -> None:
    """Real batches: 64 texts at once by default, and only as many requests as tokens ask for."""
    embedding = M2Embedding("any-model", base_url=server.url)
    embedding.get_text_embedding_batch([f"text {i}" for i in range(64)])
    assert [len(request.inputs) for request in server.requests] == [64]


async def test_requests_of_coroutines_are_under_way_together() -> None:
    both, seen, loop = asyncio.Event(), 0, asyncio.get_running_loop()

    def until_both_are_here(request: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            loop.call_soon_threadsafe(both.set)
        asyncio.run_coroutine_threadsafe(both.wait(), loop).result(20)

    with serving(until_both_are_here) as server:
        embedding = M2Embedding("any-model", base_url=server.url, embed_batch_size=1)
        assert len(await embedding.aget_text_embedding_batch(TEXTS[:2])) == 2 and server.most_at_once == 2
        await embedding.embedder.aclose()


async def test_a_model_in_here_leaves_the_event_loop_free() -> None:
    embedding = M2Embedding()
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.001)
            turns += 1

    other = asyncio.create_task(turn())
    await embedding.aget_text_embedding_batch(["A long text about bread and salt. " * 300])
    other.cancel()
    assert turns > 5


# Copies


def test_copies_give_the_same_vectors() -> None:
    embedding = M2Embedding(
        device="cpu", max_tokens=512, on_too_long="truncate", query_prompt="q: ", embed_batch_size=7, num_workers=2
    )
    expected = embedding.get_query_embedding("bread")
    copies = [
        M2Embedding.from_dict(embedding.to_dict()),
        M2Embedding.from_json(embedding.to_json()),
        pickle.loads(pickle.dumps(embedding)),
        copy.copy(embedding),
        copy.deepcopy(embedding),
        embedding.model_copy(),
    ]
    for found in copies:
        assert type(found) is M2Embedding and found.to_dict() == embedding.to_dict()
        assert found.get_query_embedding("bread") == expected


def test_no_dump_holds_the_key(server: EmbeddingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = M2Embedding("any-model", base_url=server.url, api_key=SecretStr("very-secret"))
    embedding.get_query_embedding("bread")
    assert server.requests[0].headers["authorization"] == "Bearer very-secret"
    dumps = [
        *(repr(embedding), str(embedding), embedding.to_json(), str(embedding.to_dict()), str(embedding.to_payload())),
        *(embedding.model_dump_json(), json.dumps(M2Embedding.model_json_schema()), repr(pickle.dumps(embedding))),
    ]
    assert not [dump for dump in dumps if "very-secret" in dump]
    monkeypatch.setenv("M2RAG_API_KEY", "from-the-environment")
    for found in (M2Embedding.from_dict(embedding.to_dict()), pickle.loads(pickle.dumps(embedding))):
        found.get_query_embedding("bread")
        assert server.requests[-1].headers["authorization"] == "Bearer from-the-environment"


def test_a_key_alone_means_together_in_copies_too(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = M2Embedding("any-model", api_key="very-secret", dimensions=8)
    with pytest.raises(ValueError, match="TOGETHER_API_KEY"):
        M2Embedding.from_dict(embedding.to_dict())  # not a model in this process
    monkeypatch.setenv("TOGETHER_API_KEY", "its-own")
    assert M2Embedding.from_dict(embedding.to_dict()).embedder.fingerprint == embedding.embedder.fingerprint


def test_around_an_embedder_made_elsewhere() -> None:
    embedder = M2Embedder(query_prompt="query: ")
    embedding = M2Embedding.from_embedder(embedder, embed_batch_size=3)
    assert embedding.embedder is embedder and embedding.embed_batch_size == 3
    assert_vectors(embedding.get_query_embedding("bread"), embedder.embed_query("bread"))
    assert copy.deepcopy(embedding).embedder is embedder
    for make_copy in (
        lambda: M2Embedding.from_dict(embedding.to_dict()),
        lambda: pickle.loads(pickle.dumps(embedding)),
    ):
        with pytest.raises(ValueError, match="(?s)from_embedder made has no copies.*document_prompt"):
            make_copy()
    with pytest.raises(ValueError, match="takes no max_tokens"):
        M2Embedding.from_embedder(embedder, max_tokens=5)
    with pytest.raises(ValueError, match="takes no embeddings_cache"):
        M2Embedding.from_embedder(embedder, embeddings_cache=SimpleKVStore())
    with pytest.raises(ValueError, match="precision is 'binary'"):
        M2Embedding.from_embedder(M2Embedder(precision="binary")).get_text_embedding("bread")


# Events, callbacks, limits


class Seen(BaseCallbackHandler):
    def __init__(self) -> None:
        super().__init__([], [])
        self.started: list[tuple[CBEventType, Any]] = []
        self.ended: list[tuple[CBEventType, Any]] = []

    def on_event_start(self, event_type: CBEventType, payload: Any = None, *_: Any, **__: Any) -> str:
        self.started.append((event_type, payload))
        return ""

    def on_event_end(self, event_type: CBEventType, payload: Any = None, *_: Any, **__: Any) -> None:
        self.ended.append((event_type, payload))

    def start_trace(self, trace_id: str | None = None) -> None: ...

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None: ...


class Events(BaseEventHandler):
    seen: list[Any] = []

    def handle(self, event: Any, **_: Any) -> None:
        self.seen.append(event)


async def test_callbacks_and_events(make: Make) -> None:
    seen, events = Seen(), Events()
    embedding = make(callback_manager=CallbackManager([seen]), embed_batch_size=2)
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(events)
    try:
        embedding.get_query_embedding(TEXTS[0])
        await embedding.aget_text_embedding(TEXTS[0])
        embedding.get_text_embedding_batch(TEXTS)
        await embedding.aget_text_embedding_batch(TEXTS)
    finally:
        dispatcher.event_handlers.remove(events)
    assert {kind for kind, _ in seen.started + seen.ended} == {CBEventType.EMBEDDING}
    chunks = [payload[EventPayload.CHUNKS] for _, payload in seen.ended]
    assert chunks == [TEXTS[:1], TEXTS[:1], TEXTS[:2], TEXTS[2:], TEXTS[:2], TEXTS[2:]]
    assert [len(payload[EventPayload.EMBEDDINGS]) for _, payload in seen.ended] == [1, 1, 2, 2, 2, 2]
    assert len(seen.started) == 6 and "very-secret" not in repr(seen.started)
    assert len([one for one in events.seen if isinstance(one, EmbeddingEndEvent)]) == 6
    started = [one for one in events.seen if isinstance(one, EmbeddingStartEvent)]
    assert started[0].model_dict["class_name"] == "M2Embedding" and "max_tokens" in started[0].model_dict


def test_the_token_counter_of_llama_index() -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    M2Embedding(callback_manager=CallbackManager([counter])).get_text_embedding_batch(TEXTS)
    assert counter.total_embedding_token_count == sum(len(text.split()) for text in TEXTS)


async def test_the_rate_limiter_is_asked(make: Make) -> None:
    asked = 0

    class Limiter(TokenBucketRateLimiter):
        def acquire(self, num_tokens: int = 0) -> None:
            nonlocal asked
            asked += 1

        async def async_acquire(self, num_tokens: int = 0) -> None:
            nonlocal asked
            asked += 1

    embedding = make(rate_limiter=Limiter(requests_per_minute=60), embed_batch_size=2)
    embedding.get_query_embedding("bread")
    embedding.get_text_embedding_batch(TEXTS)
    await embedding.aget_text_embedding_batch(TEXTS)
    assert asked == 5 and "rate_limiter" not in embedding.to_dict()


# The cache


async def test_the_cache_of_llama_index_is_kept_by_model(server: EmbeddingServer) -> None:
    store = SimpleKVStore()
    one = M2Embedding("one", base_url=server.url, embeddings_cache=store)
    first = one.get_text_embedding_batch(TEXTS)
    assert one.get_text_embedding_batch(TEXTS) == first == await one.aget_text_embedding_batch(TEXTS)
    assert one.get_text_embedding(TEXTS[0]) == first[0] == await one.aget_text_embedding(TEXTS[0])
    assert len([text for text in server.texts if text in TEXTS]) == 4, "the second time nothing was asked for"
    other = M2Embedding("one", base_url=server.url, dimensions=5, embeddings_cache=store)
    assert len(other.get_query_embedding(TEXTS[0])) == 5, "not the vector of the other model"
    assert len(one.embeddings_cache.get_all("embeddings")) == 4
    assert one.embeddings_cache.delete(TEXTS[0], "embeddings")
    assert not await one.embeddings_cache.adelete(TEXTS[0], "embeddings")
    assert len(await one.embeddings_cache.aget_all("embeddings")) == 3
    assert len(other.embeddings_cache.get_all("embeddings")) == 1
    assert "embeddings_cache" not in one.to_dict() and json.loads(one.to_json())
    with pytest.raises(ValueError, match="the same text: leave it out, or give"):
        M2Embedding(query_prompt="query: ", embeddings_cache=store)


# What cannot be


def test_unknown_options_and_bad_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="chunk_size"):
        M2Embedding(chunk_size=512)
    with pytest.raises(ValidationError, match="embed_batch_size"):
        M2Embedding(embed_batch_size=0)
    with pytest.raises(ValueError, match="on_too_long is 'cut', must be one of"):
        M2Embedding(on_too_long="cut")
    embedding = M2Embedding()
    for name, value in (("max_tokens", 512), ("model_name", "other"), ("embeddings_cache", SimpleKVStore())):
        with pytest.raises(ValidationError, match="frozen"):  # it would change nothing
            setattr(embedding, name, value)
    embedding.embed_batch_size = 3
    with pytest.raises(CheckpointError, match="nothing-here"):
        M2Embedding(str(tmp_path / "nothing-here"))
    with pytest.raises(ValueError, match="TOGETHER_API_KEY"):
        M2Embedding("any-model", base_url="together")


async def test_errors_name_the_texts() -> None:
    embedding = M2Embedding(max_tokens=16)
    texts = ["fine", "   ", "too long " * 30, "fine too"]
    for call in (embedding.get_text_embedding_batch, embedding.aget_text_embedding_batch):
        with pytest.raises(TextsNotEmbeddedError, match="2 of 4 .*too long too long.* the limit is 16") as caught:
            found = call(texts)
            await found if inspect.isawaitable(found) else None
        assert set(caught.value.failures) == {1, 2} and isinstance(caught.value.failures[2], InputTooLongError)
    with pytest.raises(InvalidInputError):
        embedding.get_text_embedding(" ")
    with pytest.raises(InputTooLongError):
        embedding.get_query_embedding("too long " * 30)
    assert len(M2Embedding(max_tokens=16, on_too_long="window").get_text_embedding("too long " * 30)) == 384


def test_a_refusing_server_is_an_error_with_its_words() -> None:
    with serving(lambda _: complaint(404, "the model `any-model` does not exist")) as server:
        with pytest.raises(RemoteError, match="does not exist") as caught:
            M2Embedding("any-model", base_url=server.url).get_text_embedding_batch(TEXTS)
    assert caught.value.status == 404 and caught.value.missing == (0, 1, 2, 3)
