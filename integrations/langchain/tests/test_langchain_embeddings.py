"""`M2Embeddings`: LangChain's own suites as they are, and what they do not ask."""

from __future__ import annotations

import asyncio
import json
import pickle
from typing import Any

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import SecretStr, ValidationError
from support.embedding_server import EmbeddingServer, complaint, serving

from langchain_m2rag import M2Embeddings
from m2rag import M2Embedder
from m2rag.errors import CheckpointError, InputTooLongError, InvalidInputError, RemoteError

NOBODY = "http://127.0.0.1:9/v1"
TEXTS = ["A first text.", "A second one, about bread and salt.", "A third one."]


class TestLocalUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return M2Embeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"device": "cpu"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"M2RAG_MODEL": "m2rag-mini"}, {}, {"model": "m2rag-mini", "base_url": None, "api_key": None}


class TestRemoteUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return M2Embeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "any-model", "base_url": NOBODY, "api_key": "secret"}

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        found = {"model": "any-model", "base_url": NOBODY, "api_key": "secret"}
        return {f"M2RAG_{name.upper()}": value for name, value in found.items()}, {}, found


class TestLocalIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return M2Embeddings


class TestRemoteIntegration(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _server(self, server: EmbeddingServer) -> None:
        self.url = server.url

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return M2Embeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "any-model", "base_url": self.url}


def test_vectors_are_those_of_the_embedder(embeddings: M2Embeddings) -> None:
    expected = embeddings.embedder.embed_documents(TEXTS).vectors
    found = embeddings.embed_documents(TEXTS)
    np.testing.assert_array_equal(np.asarray(found, dtype=np.float32), expected)
    assert {type(number) for vector in found for number in vector} == {float}
    assert embeddings.embed_documents([]) == []
    assert embeddings.embed_query("bread") == embeddings.embedder.embed_query("bread").tolist()


async def test_async_gives_the_same(embeddings: M2Embeddings, server: EmbeddingServer) -> None:
    for one in (embeddings, M2Embeddings(model="any-model", base_url=server.url)):
        assert await one.aembed_documents(TEXTS) == one.embed_documents(TEXTS)
        assert await one.aembed_query("bread") == one.embed_query("bread")


async def test_async_requests_are_under_way_together() -> None:
    """Native coroutines: two calls wait for the server at once, in one thread, and others run meanwhile."""
    both, seen = asyncio.Event(), 0
    loop = asyncio.get_running_loop()

    def until_both_are_here(request: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            loop.call_soon_threadsafe(both.set)
        asyncio.run_coroutine_threadsafe(both.wait(), loop).result(20)

    with serving(until_both_are_here) as server:
        embeddings = M2Embeddings(model="any-model", base_url=server.url)
        found = await asyncio.gather(embeddings.aembed_query("one"), embeddings.aembed_query("two"))
        assert server.most_at_once == 2 and found[0] != found[1]
        await embeddings.embedder.aclose()


def test_the_key_is_sent_and_shown_nowhere(server: EmbeddingServer) -> None:
    embeddings = M2Embeddings(model="any-model", base_url=server.url, api_key=SecretStr("very-secret"))
    embeddings.embed_query("bread")
    assert server.requests[0].headers["authorization"] == "Bearer very-secret"
    shown = [repr(embeddings), str(embeddings), embeddings.model_dump_json(), repr(embeddings.model_dump())]
    assert not [text for text in shown if "very-secret" in text]
    assert "any-model" in shown[0]


@pytest.mark.parametrize("base_url, variable", [("together", "TOGETHER_API_KEY"), ("openai", "OPENAI_API_KEY")])
def test_a_key_goes_to_its_own_provider_only(monkeypatch: pytest.MonkeyPatch, base_url: str, variable: str) -> None:
    monkeypatch.setenv("M2RAG_API_KEY", "for-others")
    with pytest.raises(ValueError, match=variable):
        M2Embeddings(model="any-model", base_url=base_url)
    monkeypatch.setenv(variable, "its-own")
    for url in (base_url, f"https://api.{base_url}.{'xyz' if base_url == 'together' else 'com'}/v1"):
        key = M2Embeddings(model="any-model", base_url=url).api_key
        assert key is not None and key.get_secret_value() == "its-own"
    others = M2Embeddings(model="any-model", base_url=NOBODY).api_key
    assert others is not None and others.get_secret_value() == "for-others"


def test_a_key_in_the_environment_does_not_make_a_model_remote(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("M2RAG_API_KEY", "TOGETHER_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "secret")
    assert M2Embeddings().embedder.has_passages


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2RAG_BASE_URL", NOBODY)
    monkeypatch.setenv("M2RAG_MODEL", "other")
    embeddings = M2Embeddings(model="m2rag-mini", base_url=None)
    assert embeddings.embedder.has_passages and embeddings.embedder.model_name == "m2rag-mini"


def test_every_option_reaches_the_embedder(server: EmbeddingServer) -> None:
    options = {"dtype": "bfloat16", "max_tokens": 512, "on_too_long": "truncate", "normalize": False}
    info = M2Embeddings(device="cpu", kernels="cpu", batch_tokens=1024, query_prompt="q: ", **options).embedder.info()
    assert {name: info[name] for name in options} == {**options}
    assert (info["device"], info["kernels"], info["batch_tokens"]) == ("cpu", "cpu", 1024)
    remote = M2Embeddings(model="any-model", base_url=server.url, dimensions=4, document_prompt="doc: ")
    assert len(remote.embed_documents(["bread"])[0]) == 4
    assert server.texts == ["doc: bread"] and server.requests[0].body["dimensions"] == 4


def test_an_embedder_made_elsewhere(embeddings: M2Embeddings) -> None:
    embedder = M2Embedder(query_prompt="query: ")
    assert M2Embeddings(embedder=embedder).embed_query("bread") == embedder.embed_query("bread").tolist()
    with pytest.raises(ValidationError, match="give embedder, or options"):
        M2Embeddings(embedder=embedder, model="m2rag-mini")
    with pytest.raises(ValueError, match="precision is 'binary'"):
        M2Embeddings(embedder=M2Embedder(precision="binary")).embed_query("bread")


def test_unknown_options_and_bad_values_are_refused(tmp_path: Any) -> None:
    with pytest.raises(ValidationError, match="chunk_size"):
        M2Embeddings(chunk_size=512)
    with pytest.raises(ValueError, match="on_too_long is 'cut', must be one of"):
        M2Embeddings(on_too_long="cut")
    with pytest.raises(CheckpointError, match="nothing-here"):
        M2Embeddings(model=tmp_path / "nothing-here")
    with pytest.raises(ValidationError, match="frozen"):
        M2Embeddings(model="any-model", base_url=NOBODY).model = "other"  # would change nothing


def test_errors_name_the_text(embeddings: M2Embeddings) -> None:
    with pytest.raises(InvalidInputError, match="input 1"):
        embeddings.embed_documents(["fine", "   "])
    short = M2Embeddings(max_tokens=16)
    with pytest.raises(InputTooLongError, match="input 1 has .* the limit is 16.*on_too_long='window'"):
        short.embed_documents(["fine", "much too long " * 20])


def test_a_refusing_server_is_an_error_with_its_words() -> None:
    with serving(lambda _: complaint(404, "the model `any-model` does not exist")) as server:
        embeddings = M2Embeddings(model="any-model", base_url=server.url)
        with pytest.raises(RemoteError, match="does not exist") as caught:
            embeddings.embed_documents(TEXTS)
    assert caught.value.status == 404 and caught.value.missing == (0, 1, 2)


def test_a_remote_model_in_another_process() -> None:
    remote = M2Embeddings(model="any-model", base_url=NOBODY, dimensions=8)
    assert pickle.loads(pickle.dumps(remote)).fingerprint == remote.fingerprint


def test_a_cache_keyed_by_the_fingerprint(embeddings: M2Embeddings) -> None:
    """The fingerprint is a namespace for LangChain's cache: JSON-safe, and another model has another."""
    other = M2Embeddings(normalize=False)
    assert embeddings.fingerprint != other.fingerprint
    assert json.loads(json.dumps(embeddings.fingerprint)) == M2Embeddings(device="cpu").fingerprint
