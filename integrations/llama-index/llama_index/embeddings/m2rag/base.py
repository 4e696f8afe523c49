"""`M2Embedding`: the `BaseEmbedding` interface of LlamaIndex on `m2rag.M2Embedder`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from pydantic import SecretStr
from typing_extensions import Self

from llama_index.embeddings.m2rag.cache import ModelCache
from m2rag.embedder import M2Embedder
from m2rag.errors import M2RagError
from m2rag.results import EmbeddingResult

_START = 60  # characters of a text that tell a person which one it is


class TextsNotEmbeddedError(M2RagError, ValueError):
    """Some texts of a batch have no vector, so that LlamaIndex is given none.

    Attributes:
        failures: position in the batch -> cause.
    """

    def __init__(self, failures: Mapping[int, M2RagError], texts: Sequence[str]) -> None:
        some = "; ".join(f"{str(texts[i])[:_START]!r}... ({cause})" for i, cause in list(failures.items())[:3])
        more = "; ..." if len(failures) > 3 else ""
        super().__init__(f"{len(failures)} of {len(texts)} texts cannot be embedded: {some}{more}")
        self.failures = dict(failures)


class M2Embedding(BaseEmbedding):
    """One vector for each text, made from all of it.

    Without arguments: the checkpoint that comes with m2rag, in this process, without network. With `base_url`: a model
    behind an OpenAI-style API. LlamaIndex cuts documents to 1,024 tokens unless it is told not to: see
    `WholeDocumentNodeParser`.

    What it is made of survives `to_dict` / `from_dict`, JSON and pickling, but for the API key, which is no field: a
    copy takes it from the environment.

    Example:
        >>> from llama_index.embeddings.m2rag import M2Embedding
        >>> vector = M2Embedding().get_text_embedding("all of a long contract ...")

    Args:
        model_name: folder, weights file, bundled name or repository id; with `base_url` the provider's name for it.
        api_key: without `base_url`, of Together. None: from the environment, TOGETHER_API_KEY, OPENAI_API_KEY, for
            other hosts M2RAG_API_KEY.
        options: the fields below, and those of `BaseEmbedding`.

    Raises:
        m2rag.errors.CheckpointError: no checkpoint at `model_name`.
        ValueError: an option is unknown or out of its range.
    """

    model_config = ConfigDict(extra="forbid")

    # Frozen: what the embedder is made of; it would change nothing afterwards. The rest LlamaIndex sets itself.
    model_name: str = Field(
        default="m2rag-mini", frozen=True, description="Folder, weights file, bundled name or repository id."
    )
    embed_batch_size: int = Field(
        default=64, gt=0, le=2048, description="Texts handed over at once; batches are made by tokens."
    )
    base_url: str | None = Field(
        default=None,
        frozen=True,
        description='"https://host/v1", "together" or "openai"; None: the model runs in this process.',
    )
    device: str | None = Field(
        default=None, frozen=True, description='"cpu", "cuda", "cuda:1"; None: the GPU if there is one.'
    )
    dtype: str = Field(default="float32", frozen=True, description='Matrix products: "float32", "bfloat16" or "auto".')
    kernels: str = Field(default="auto", frozen=True, description="Implementation of the model's operations.")
    max_tokens: int | None = Field(default=None, frozen=True, description="A lower limit than the model's.")
    on_too_long: str = Field(default="error", frozen=True, description='Longer texts: "error", "truncate" or "window".')
    normalize: bool = Field(default=True, frozen=True, description="Scale vectors to length 1.")
    dimensions: int | None = Field(default=None, frozen=True, description="Fewer, where the model was trained for it.")
    batch_tokens: int | None = Field(
        default=None, frozen=True, description="Padded tokens per batch, or tokens per request."
    )
    query_prompt: str = Field(default="", frozen=True, description="Text in front of every query.")
    document_prompt: str = Field(default="", frozen=True, description="Text in front of every document.")
    made_for: str | None = Field(
        default=None,
        frozen=True,
        description="Fingerprint of the embedder it was made around by `from_embedder`; not to be given.",
    )
    embeddings_cache: Any | None = Field(
        default=None, frozen=True, exclude=True, description="Cache of embeddings, by model; it stays with this object."
    )

    _embedder: M2Embedder = PrivateAttr()

    def __init__(
        self,
        model_name: str = "m2rag-mini",
        *,
        api_key: str | SecretStr | None = None,
        **options: Any,
    ) -> None:
        if api_key is not None and options.get("base_url") is None:
            options["base_url"] = "together"  # as M2Embedder has it; a copy, which has no key, must know
        super().__init__(model_name=model_name, **options)
        if self.made_for is not None:
            raise ValueError(
                "an M2Embedding that from_embedder made has no copies: its fields do not tell all of the embedder\n  "
                f"{self.made_for}\nMake it anew with from_embedder"
            )
        key = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
        embedder = M2Embedder(
            self.model_name,
            device=self.device,
            dtype=self.dtype,
            kernels=self.kernels,
            max_tokens=self.max_tokens,
            on_too_long=self.on_too_long,
            normalize=self.normalize,
            dimensions=self.dimensions,
            batch_tokens=self.batch_tokens,
            query_prompt=self.query_prompt,
            document_prompt=self.document_prompt,
            base_url=self.base_url,
            api_key=key,
        )
        self._use(embedder)

    @classmethod
    def from_embedder(cls, embedder: M2Embedder, **options: Any) -> Self:
        """Around an embedder made elsewhere, for options that only it has.

        It cannot be copied by `from_dict`, JSON or pickling: that is an error, not another model.

        Args:
            embedder: makes the vectors.
            options: fields of `BaseEmbedding`.

        Raises:
            ValueError: an option of the model, which the embedder has already, or a cache, for which its prompts would
                have to be known.
        """
        if refused := sorted(set(options) - (set(BaseEmbedding.model_fields) - {"model_name", "embeddings_cache"})):
            raise ValueError(f"from_embedder takes no {', '.join(refused)}: give what BaseEmbedding has, but no cache")
        name = embedder.model_source or embedder.model_name
        made = cls.__new__(cls)
        BaseEmbedding.__init__(made, model_name=name, **{"made_for": embedder.fingerprint, **options})
        made._use(embedder)
        return made

    def _use(self, embedder: M2Embedder) -> None:
        self._embedder = embedder
        cache = self.embeddings_cache
        if cache is None:
            return
        if self.query_prompt != self.document_prompt:
            raise ValueError(
                "with an embeddings_cache LlamaIndex gives queries the vectors of documents with the same text: leave "
                "it out, or give query_prompt and document_prompt the same text"
            )
        store = cache.store if isinstance(cache, ModelCache) else cache
        self.__dict__["embeddings_cache"] = ModelCache(store, lambda: embedder.fingerprint)

    @classmethod
    def class_name(cls) -> str:
        """As it is written into a dump."""
        return "M2Embedding"

    @property
    def embedder(self) -> M2Embedder:
        """What makes the vectors, for what LlamaIndex has no words for: tokens and cuts of each text, passages."""
        return self._embedder

    def to_payload(self) -> dict[str, Any]:
        """What events tell of this model; no key is in it."""
        return {**super().to_payload(), "base_url": self.base_url, "max_tokens": self._embedder.max_tokens}

    def __getstate__(self) -> dict[str, Any]:
        # Without LlamaIndex's warnings about what it drops: the embedder is made anew.
        state = {name: value for name, value in self.__dict__.items() if name in _KEPT}
        return {"__dict__": state, "__pydantic_fields_set__": self.model_fields_set, "__pydantic_private__": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["__dict__"])  # type: ignore[misc]  # as LlamaIndex does it, and its errors are seen

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.model_copy()  # within a process copies share the weights

    def _get_query_embedding(self, query: str) -> list[float]:
        return _floats(self._embedder.embed_query(query))

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return _floats(await self._embedder.aembed_query(query))

    def _get_text_embedding(self, text: str) -> list[float]:
        return _floats(self._embedder.embed_documents([text]).vectors[0])

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return _floats((await self._embedder.aembed_documents([text])).vectors[0])

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return _all(self._embedder.embed_documents(texts, on_error="skip"), texts)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return _all(await self._embedder.aembed_documents(texts, on_error="skip"), texts)


_KEPT = frozenset(
    name
    for name, field in M2Embedding.model_fields.items()
    if not field.exclude  # callbacks and limiters stay here
)


def _all(result: EmbeddingResult, texts: list[str]) -> list[list[float]]:
    """The vectors, if every text has one."""
    if result.errors:
        raise TextsNotEmbeddedError(result.errors, texts) from next(iter(result.errors.values()))
    return _floats(result.vectors)


def _floats(vectors: np.ndarray) -> list[Any]:
    """An array as (lists of) Python floats."""
    if vectors.dtype == np.uint8:
        raise ValueError(
            "the embedder's precision is 'binary': LlamaIndex compares floats. Use precision='float32', and let the "
            "vector store quantize"
        )
    lists: list[Any] = vectors.astype(np.float32).tolist()
    return lists
