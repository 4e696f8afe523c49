"""The application: routes, errors, and what is started and stopped with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from m2rag import __version__
from m2rag.backends import Backend
from m2rag.embedder import M2Embedder
from m2rag.errors import (
    InputTooLongError,
    InvalidInputError,
    InvalidInputTypeError,
    M2RagError,
    OutOfMemoryError,
)
from m2rag.index import LongDocumentIndex
from m2rag.server.batching import ServerStoppedError, SharedBackend
from m2rag.server.embeddings import EmbeddingService, embedding_routes
from m2rag.server.errors import ApiError, json_response
from m2rag.server.guard import Guard
from m2rag.server.library import Library
from m2rag.server.metrics import Metrics
from m2rag.server.page import page_router
from m2rag.server.presentation import Presentation
from m2rag.server.settings import ServerSettings
from m2rag.stores import VectorStore

logger = logging.getLogger(__name__)

# What a short answer says about a library error: status and code.
_STATUSES: tuple[tuple[type[M2RagError], int, str], ...] = (
    (InputTooLongError, 400, "context_length_exceeded"),
    (InvalidInputError, 400, "invalid_input"),
    (InvalidInputTypeError, 400, "invalid_input"),
    (OutOfMemoryError, 413, "out_of_memory"),
    (ServerStoppedError, 503, "stopping"),
)


class _ErrorDetails(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class _ErrorBody(BaseModel):
    error: _ErrorDetails


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": _ErrorBody, "description": description}
    for status, description in {
        400: "Something in the request is wrong",
        401: "No API key, or a wrong one",
        403: "Not from there",
        404: "There is no such thing",
        408: "The body came too slowly",
        413: "Too large",
        429: "Busy: again after Retry-After seconds",
        503: "Stopping, or out of time",
    }.items()
}


class Health(BaseModel):
    """Whether the server works."""

    status: str


class Server:
    """One model, one index, and the application that serves them.

    Args:
        backend: the model.
        settings: keys and limits.
        index: folder, URL or open store of the documents behind the page; None: neither page nor documents.
        temporary: whether the documents go when the server does; the page says so.
        presentation: the page's title, facets and questions; default: it is called m2rag.
        api_key: of the server that `index` is a URL of.
        options: of `M2Embedder`: `max_tokens`, `query_prompt`, `document_prompt`, `normalize`.

    Raises:
        IndexMismatchError, IndexLockedError, StoreError: the index cannot be opened with this model.
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        settings: ServerSettings | None = None,
        index: str | Path | VectorStore | None = None,
        temporary: bool = False,
        presentation: Presentation | None = None,
        api_key: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.settings = settings or ServerSettings()
        self.metrics = Metrics(lambda: self.backend.waiting_tokens)
        self.backend = SharedBackend(backend, on_batch=self.metrics.batch)
        self.embeddings = EmbeddingService(self.backend, self.settings, self.metrics, options or {})
        self.library: Library | None = None
        self._presentation = presentation or Presentation()
        self._index: LongDocumentIndex | None = None
        self._state = "starting"
        try:
            if index is not None:
                embedder = M2Embedder(backend=self.backend.in_background(), **(options or {}))
                self._index = LongDocumentIndex(index, embedder, api_key=api_key)
                self.library = Library(
                    self._index,
                    max_tokens=embedder.max_tokens,
                    facets=tuple(self._presentation.facets),
                    temporary=temporary,
                    max_upload_bytes=self.settings.max_request_bytes,
                )
        except BaseException:
            self.backend.stop()
            raise
        self.app = self._application()

    async def start(self) -> None:
        """Run the model once, so that the first client does not wait for what is made then."""
        await self.embeddings.embedder.aembed_query("ready")
        self._state = "ready"

    async def stop(self) -> None:
        """Finish the documents being stored, close the index, end the lanes."""
        self._state = "stopping"
        if self.library is not None:
            await asyncio.to_thread(self.library.stop)
        self.backend.stop()
        if self._index is not None:
            await asyncio.to_thread(self._index.close)

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    def _application(self) -> FastAPI:
        app = FastAPI(
            title="m2rag",
            version=__version__,
            description="Embeddings of whole long documents, and search in them.",
            lifespan=self._lifespan,
            docs_url=None,  # they fetch scripts from elsewhere
            redoc_url=None,
        )
        app.include_router(embedding_routes(self.embeddings, _ERRORS))
        if self.library is not None:
            app.include_router(page_router(self.library, self._presentation))
        self._add_monitoring(app)
        _add_error_handlers(app)
        app.add_middleware(Guard, settings=self.settings, on_request=self.metrics.request)
        app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
        return app

    def _add_monitoring(self, app: FastAPI) -> None:
        @app.get("/health", response_model=Health, tags=["monitoring"])
        async def health() -> Response:
            """The process answers."""
            return json_response({"status": "ok"})

        @app.get("/ready", response_model=Health, responses={503: {"model": Health}}, tags=["monitoring"])
        async def ready() -> Response:
            """The model is loaded and the server is not stopping."""
            return json_response({"status": self._state}, 200 if self._state == "ready" else 503)

        @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **_ERRORS}, tags=["monitoring"])
        async def metrics() -> Response:
            """Counters for Prometheus."""
            return Response(self.metrics.render(), media_type=Metrics.content_type)


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = [str(part) for part in first["loc"] if part != "body"]
        field = ".".join(where)[:200] if first["type"] != "json_invalid" else ""
        told = first["msg"].removeprefix("Value error, ")
        message = f"{field}: {told}" if field else f"the body is not what this route takes: {told}"
        return ApiError(400, message, param=where[0] if field else None, code="invalid_value").response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        told = {404: f"there is nothing at {request.url.path[:200]!r}", 405: f"{request.method} is not for this path"}
        response = ApiError(error.status_code, told.get(error.status_code, str(error.detail))).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(M2RagError)
    async def library_error(request: Request, error: M2RagError) -> Response:
        for kind, status, code in _STATUSES:
            if isinstance(error, kind):
                return ApiError(status, str(error), param="input" if status == 400 else None, code=code).response()
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return ApiError(500, f"{type(error).__name__}: the server's log has the details").response()

    @app.exception_handler(ClientDisconnect)
    async def client_left(request: Request, error: ClientDisconnect) -> Response:
        # Nobody reads it; the number is for the log and the counters.
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:
        return ApiError(500, "an error of the server: its log has the details").response()


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description, with what the framework says about wrong requests replaced by what this server does."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            schema.get("components", {}).get("schemas", {}).pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema
