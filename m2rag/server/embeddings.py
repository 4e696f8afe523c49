"""`/v1/embeddings` and `/v1/models`, as OpenAI's clients speak them."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr, WithJsonSchema
from starlette.responses import Response

from m2rag.embedder import M2Embedder
from m2rag.results import EmbeddingResult
from m2rag.server.batching import SharedBackend
from m2rag.server.errors import ApiError, json_response
from m2rag.server.metrics import Metrics
from m2rag.server.settings import ServerSettings
from m2rag.server.waiting import Admission, patiently
from m2rag.tokenizer import TokenIds

# Of English. An estimate is enough to know what fits, and is made before anything is tokenised.
_CHARS_PER_TOKEN = 4
# Above this many numbers an answer is written in a thread: others need not wait for it.
_MANY = 50_000

_INPUT_SCHEMA = {
    "description": "A text, several texts, a text as token ids of the model's own tokenizer, or several of these.",
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
        {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        {
            "type": "array",
            "minItems": 1,
            "items": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}},
        },
    ],
}


def _inputs(given: Any) -> list[str | TokenIds]:
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if all(isinstance(item, str) for item in given):
            return given
        if all(type(item) is int for item in given):
            return [TokenIds(given)]
        if all(isinstance(item, list) and all(type(id) is int for id in item) for item in given):
            return [TokenIds(item) for item in given]
    raise ValueError("must be a string, a list of strings, a list of token ids, or a list of such lists; not empty")


class EmbeddingRequest(BaseModel):
    """What to embed; fields that other servers know and this one does not are passed over."""

    model_config = ConfigDict(extra="ignore")

    input: Annotated[Any, AfterValidator(_inputs), WithJsonSchema(_INPUT_SCHEMA)]
    model: StrictStr = Field(description="As `/v1/models` lists it.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: little-endian 32-bit floats. Default: float."
    )
    dimensions: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="Fewer numbers, where the model was trained for that."
    )
    user: StrictStr | None = Field(None, description="Not used.")
    input_type: Literal["query", "document"] | None = Field(
        None, description="Which prompt goes in front, for models with prompts. Default: document."
    )
    on_too_long: Literal["error", "truncate", "window"] | None = Field(
        None, description="What becomes of inputs longer than the model takes. Default: as the server was started."
    )


class Embedding(BaseModel):
    """One vector, and what was done to its input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    n_tokens: int = Field(description="Length of the input.")
    n_windows: int = Field(description="Windows it was embedded in; 1 unless it was too long.")
    truncated: bool = Field(description="Whether some of its tokens are not in the vector.")


class Usage(BaseModel):
    """Tokens that went into vectors."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """Vectors in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class ServedModel(BaseModel):
    """The model of this server."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    dimension: int
    max_tokens: int
    fingerprint: str


class ModelList(BaseModel):
    """One model, as a list."""

    object: Literal["list"]
    data: list[ServedModel]


class EmbeddingService:
    """The model as clients see it.

    Args:
        backend: shared by all requests.
        settings: names and limits.
        metrics: counts inputs and tokens.
        options: of `M2Embedder`, such as prompts.
    """

    def __init__(
        self, backend: SharedBackend, settings: ServerSettings, metrics: Metrics, options: Mapping[str, Any]
    ) -> None:
        self._backend = backend
        self._settings = settings
        self._metrics = metrics
        self._options = options
        self._created = int(time.time())
        self._embedders: dict[int | None, M2Embedder] = {}
        self._admission = Admission(
            settings.max_waiting_tokens, settings.max_waiting_requests, lambda: backend.tokens_per_second
        )
        self.embedder = self._embedder(None)
        self.name = settings.name or backend.model_name

    def _embedder(self, dimensions: int | None) -> M2Embedder:
        """One for each number of dimensions; they share the model."""
        if dimensions not in self._embedders:
            try:
                made = M2Embedder(
                    backend=self._backend,
                    dimensions=dimensions,
                    on_too_long=self._settings.on_too_long,
                    **self._options,
                )
            except ValueError as error:
                if dimensions is None:
                    raise
                raise ApiError(400, str(error), param="dimensions", code="invalid_value") from error
            self._embedders[dimensions] = made
        return self._embedders[dimensions]

    def check_model(self, name: str) -> None:
        """Raise `ApiError` (404) unless this is the model served."""
        if name not in (self.name, self._backend.model_name):
            shown = name if len(name) <= 100 else f"{name[:100]}..."
            raise ApiError(
                404,
                f"the model {shown!r} is not served here, {self.name!r} is: see /v1/models",
                param="model",
                code="model_not_found",
            )

    def model(self) -> dict[str, Any]:
        """The entry of `/v1/models`."""
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "m2rag",
            "dimension": self.embedder.dimension,
            "max_tokens": self.embedder.max_tokens,
            "fingerprint": self.embedder.fingerprint,
        }

    async def embed(self, request: Request, body: EmbeddingRequest) -> Response:
        """The answer to a request for embeddings."""
        self.check_model(body.model)
        texts: list[str | TokenIds] = body.input
        if len(texts) > self._settings.max_inputs:
            raise ApiError(
                400,
                f"{len(texts):,} inputs, at most {self._settings.max_inputs:,} at once: send them in parts",
                param="input",
                code="too_many_inputs",
            )
        embedder = self._embedder(body.dimensions)
        embed: Any = embedder.aembed_queries if body.input_type == "query" else embedder.aembed_documents
        with self._admission.reserve(sum(map(_estimate, texts))):
            work = embed(texts, on_too_long=body.on_too_long)
            result: EmbeddingResult = await patiently(request, work, self._settings.timeout)
            self._metrics.inputs.inc(len(result))
            self._metrics.tokens.inc(int(result.n_used.sum()))
            as_base64 = body.encoding_format == "base64"
            if result.vectors.size > _MANY and not as_base64:
                return await asyncio.to_thread(self._answer, result, as_base64)
            return self._answer(result, as_base64)

    def _answer(self, result: EmbeddingResult, as_base64: bool) -> Response:
        used = int(result.n_used.sum())
        truncated = result.truncated
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": _base64(vector) if as_base64 else vector.tolist(),
                "n_tokens": int(result.n_tokens[index]),
                "n_windows": int(result.n_windows[index]),
                "truncated": bool(truncated[index]),
            }
            for index, vector in enumerate(result.vectors)
        ]
        usage = {"prompt_tokens": used, "total_tokens": used}
        return json_response({"object": "list", "data": data, "model": self.name, "usage": usage})


def embedding_routes(service: EmbeddingService, errors: Mapping[int | str, dict[str, Any]]) -> APIRouter:
    """The routes under /v1.

    Args:
        errors: descriptions of the answers with an error, by status.
    """
    routes = APIRouter(prefix="/v1", tags=["OpenAI"])

    @routes.post("/embeddings", response_model=EmbeddingList, responses={**errors})
    async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
        """Vectors of texts."""
        return await service.embed(request, body)

    @routes.get("/models", response_model=ModelList, responses={**errors})
    async def models() -> Response:
        """The model of this server, as a list of one."""
        return json_response({"object": "list", "data": [service.model()]})

    # Names of models have slashes.
    @routes.get("/models/{model:path}", response_model=ServedModel, responses={**errors})
    async def model(model: str) -> Response:
        """The model of this server by its name."""
        service.check_model(model)
        return json_response(service.model())

    return routes


def _estimate(text: str | TokenIds) -> int:
    return len(text.ids) if isinstance(text, TokenIds) else len(text) // _CHARS_PER_TOKEN + 2


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
