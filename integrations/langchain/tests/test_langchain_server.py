"""LangChain's own clients of OpenAI-style servers, unmodified, against `m2rag serve`: the local embedder's vectors."""

from __future__ import annotations

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langchain_openai import OpenAIEmbeddings
from langchain_together import TogetherEmbeddings
from pydantic import SecretStr
from support.serving import QUERY, TEXTS, bundled_server, local  # noqa: F401

from m2rag import M2Embedder


@pytest.fixture(params=["openai", "together"])
def theirs(request: pytest.FixtureRequest, bundled_server: str) -> Embeddings:  # noqa: F811
    if request.param == "openai":
        return OpenAIEmbeddings(
            model="m2rag-mini", base_url=bundled_server, api_key=SecretStr("none"), check_embedding_ctx_length=False
        )
    return TogetherEmbeddings(model="m2rag-mini", base_url=bundled_server, api_key=SecretStr("none"))


def test_their_vectors_are_the_local_ones(theirs: Embeddings, local: M2Embedder) -> None:  # noqa: F811
    np.testing.assert_allclose(theirs.embed_documents(TEXTS), local.embed_documents(TEXTS).vectors, atol=1e-6)
    np.testing.assert_allclose(theirs.embed_query(QUERY), local.embed_query(QUERY), atol=1e-6)


async def test_the_asynchronous_ones_too(theirs: Embeddings, local: M2Embedder) -> None:  # noqa: F811
    np.testing.assert_allclose(await theirs.aembed_documents(TEXTS), local.embed_documents(TEXTS).vectors, atol=1e-6)
    np.testing.assert_allclose(await theirs.aembed_query(QUERY), local.embed_query(QUERY), atol=1e-6)
