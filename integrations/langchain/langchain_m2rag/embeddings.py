"""`M2Embeddings`: the `Embeddings` interface of LangChain on `m2rag.M2Embedder`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from langchain_core.embeddings import Embeddings
from langchain_core.utils import from_env
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from typing_extensions import Self

from m2rag.backends.providers import OTHER_KEY_VARIABLE, PROVIDERS, provider_of
from m2rag.embedder import M2Embedder


def _key_from_env(given: dict[str, Any]) -> SecretStr | None:
    """The key of the provider at `base_url`; a key goes to its own provider only, and none to a model in here."""
    base_url = given.get("base_url")
    if base_url is None:
        return None
    named = next((provider for provider in PROVIDERS if provider.name == base_url), None)
    provider = named or provider_of(urlsplit(base_url).hostname or "")
    key = os.environ.get(provider.key_variable if provider else OTHER_KEY_VARIABLE)
    return SecretStr(key) if key else None


def _make_embedder(given: dict[str, Any]) -> M2Embedder:
    key = given["api_key"]
    options = {name: value for name, value in given.items() if name not in ("model", "api_key")}
    return M2Embedder(given["model"], api_key=key.get_secret_value() if key else None, **options)


class M2Embeddings(BaseModel, Embeddings):
    """One vector for each text, made from all of it, as LangChain takes vectors: lists of Python floats.

    Without arguments: the checkpoint that comes with m2rag, in this process, without network. With `base_url` (or
    `M2RAG_BASE_URL` in the environment): a model behind an OpenAI-style API. The options are those of
    `m2rag.M2Embedder`; `embedder` is the object behind, for what LangChain has no words for: how long each text was,
    what was cut, vectors of passages.

    Example:
        >>> from langchain_m2rag import M2Embeddings
        >>> embeddings = M2Embeddings()
        >>> vector = embeddings.embed_query("who answers for late delivery?")

    Raises:
        m2rag.errors.CheckpointError: no checkpoint at `model`.
        ValueError: an option is unknown or out of its range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, protected_namespaces=())

    model: str | Path | None = Field(default_factory=from_env("M2RAG_MODEL", default=None))
    """Folder, weights file, bundled name or repository id; None: the bundled one. Default: `M2RAG_MODEL`, if set. With
    `base_url`: the name the provider knows the model by."""

    base_url: str | None = Field(default_factory=from_env("M2RAG_BASE_URL", default=None))
    """"https://host/v1", "together" or "openai"; None: the model runs in this process. Default: `M2RAG_BASE_URL`, if
    set."""

    api_key: SecretStr | None = Field(default_factory=_key_from_env)
    """Default, with `base_url`: TOGETHER_API_KEY or OPENAI_API_KEY for these providers, else M2RAG_API_KEY."""

    device: str | None = None
    """"cpu", "cuda", "cuda:1"; None: the GPU if there is one."""

    dtype: str = "float32"
    """Number format of matrix products: "float32", "bfloat16", "auto"."""

    kernels: str = "auto"
    """Implementation of the model's operations."""

    max_tokens: int | None = None
    """A lower limit than the model's; of a remote model that m2rag does not know, its limit."""

    on_too_long: str = "error"
    """Longer texts: "error", "truncate" (their beginning) or "window" (all of them, in overlapping windows)."""

    normalize: bool = True
    """Scale vectors to length 1."""

    dimensions: int | None = None
    """Fewer dimensions, where the model was trained for it; a remote model is asked for so many."""

    batch_tokens: int | None = None
    """Padded tokens per batch, or tokens per request; None: by device or provider."""

    query_prompt: str = ""
    """Text in front of every query."""

    document_prompt: str = ""
    """Text in front of every document."""

    show_progress: bool = False
    """Draw a bar on standard error."""

    embedder: M2Embedder = Field(default_factory=_make_embedder, exclude=True, repr=False)
    """An embedder made elsewhere, instead of all other options."""

    @model_validator(mode="after")
    def _embedder_or_options(self) -> Self:
        others = sorted(self.model_fields_set - {"embedder"})
        if "embedder" in self.model_fields_set and others:
            raise ValueError(f"give embedder, or options ({', '.join(others)}), not both")
        return self

    @property
    def fingerprint(self) -> str:
        """What other embeddings must share to be comparable: a namespace for `CacheBackedEmbeddings`."""
        return self.embedder.fingerprint

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of documents, (N, D).

        Raises:
            m2rag.errors.InputTooLongError: a text exceeds the model's limit under `on_too_long="error"`.
            m2rag.errors.InvalidInputError: a text is empty; names its position.
            m2rag.errors.RemoteError: the remote model failed; `result` and `missing` say what was obtained.
        """
        return _as_lists(self.embedder.embed_documents(texts).vectors)

    def embed_query(self, text: str) -> list[float]:
        """Vector of a query, (D,). Errors as in `embed_documents`."""
        return _as_lists(self.embedder.embed_query(text))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """As `embed_documents`; the event loop stays free, requests to a remote model run in it."""
        return _as_lists((await self.embedder.aembed_documents(texts)).vectors)

    async def aembed_query(self, text: str) -> list[float]:
        """As `embed_query`; the event loop stays free."""
        return _as_lists(await self.embedder.aembed_query(text))


def _as_lists(vectors: np.ndarray) -> list[Any]:
    """An array as (lists of) Python floats.

    Raises:
        ValueError: packed bits, which are no coordinates.
    """
    if vectors.dtype == np.uint8:
        raise ValueError(
            "the embedder's precision is 'binary': LangChain compares floats. Use precision='float32', and let the "
            "vector store quantize"
        )
    lists: list[Any] = vectors.astype(np.float32).tolist()
    return lists
