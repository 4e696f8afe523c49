"""Fixtures of the packages that put an embedder behind a framework's own class."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.embedding_server import EmbeddingServer, serving

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LANGSMITH_TRACING"] = "false"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment of who runs the tests says is no matter."""
    for name in ("M2RAG_MODEL", "M2RAG_BASE_URL", "M2RAG_API_KEY", "TOGETHER_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    """An OpenAI-style embedding server."""
    with serving() as running:
        yield running
