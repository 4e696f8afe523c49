"""LangChain's suite for vector stores as it is, in a folder and on a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from langchain_m2rag import M2QdrantVectorStore


class TestInAFolder(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:  # type: ignore[override]
        with M2QdrantVectorStore(tmp_path / "index", self.get_embeddings()) as store:
            yield store


class TestOnAServer(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, collection_url: str) -> Iterator[VectorStore]:  # type: ignore[override]
        with M2QdrantVectorStore(collection_url, self.get_embeddings()) as store:
            yield store
