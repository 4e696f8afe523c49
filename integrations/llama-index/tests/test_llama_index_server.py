"""LlamaIndex' own clients of OpenAI-style servers, unmodified, against `m2rag serve`: the local embedder's vectors."""

from __future__ import annotations

import numpy as np
import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.together import TogetherEmbedding
from support.serving import QUERY, TEXTS, bundled_server, local  # noqa: F401

from m2rag import M2Embedder


@pytest.fixture(params=[OpenAILikeEmbedding, TogetherEmbedding])
def theirs(request: pytest.FixtureRequest, bundled_server: str) -> BaseEmbedding:  # noqa: F811
    return request.param(model_name="m2rag-mini", api_base=bundled_server, api_key="none")


def test_their_vectors_are_the_local_ones(theirs: BaseEmbedding, local: M2Embedder) -> None:  # noqa: F811
    np.testing.assert_allclose(theirs.get_text_embedding_batch(TEXTS), local.embed_documents(TEXTS).vectors, atol=1e-6)
    np.testing.assert_allclose(theirs.get_query_embedding(QUERY), local.embed_query(QUERY), atol=1e-6)


async def test_the_asynchronous_ones_too(theirs: BaseEmbedding, local: M2Embedder) -> None:  # noqa: F811
    given = await theirs.aget_text_embedding_batch(TEXTS)
    np.testing.assert_allclose(given, local.embed_documents(TEXTS).vectors, atol=1e-6)
    np.testing.assert_allclose(await theirs.aget_query_embedding(QUERY), local.embed_query(QUERY), atol=1e-6)
