"""The page at `/`, and the API behind it: documents in and out, progress of indexing, search."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from html import escape
from importlib.resources import files
from typing import Annotated, Any, Literal, TypeVar

import anyio
import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, Json, StrictBool, StrictFloat, StrictInt, StrictStr
from starlette.requests import ClientDisconnect

from m2rag.errors import InvalidInputError, M2RagError, RemoteError, StoreError
from m2rag.index.filters import MAX_VALUES
from m2rag.index.modes import Mode
from m2rag.server.errors import ApiError
from m2rag.server.library import MAX_ID_CHARACTERS, Library, check_name
from m2rag.server.presentation import Presentation

T = TypeVar("T")

MAX_HITS = 100
MAX_PASSAGES = 50
MAX_LISTED = 200
MAX_QUERY_CHARACTERS = 100_000
_RECEIVE_SECONDS = 300  # for one upload
_READERS_AT_ONCE = 8
_DELETERS_AT_ONCE = 2

# URL -> file and type: nothing else of the folder, or of any other, can be asked for.
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/page/api.js": ("api.js", "text/javascript; charset=utf-8"),
    "/page/dom.js": ("dom.js", "text/javascript; charset=utf-8"),
    "/page/filters.js": ("filters.js", "text/javascript; charset=utf-8"),
    "/page/hits.js": ("hits.js", "text/javascript; charset=utf-8"),
    "/page/minimap.js": ("minimap.js", "text/javascript; charset=utf-8"),
    "/page/reader.js": ("reader.js", "text/javascript; charset=utf-8"),
    "/page/text.js": ("text.js", "text/javascript; charset=utf-8"),
    "/page/uploads.js": ("uploads.js", "text/javascript; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(_Model):
    """What is wrong and what to do."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(_Model):
    """An answer that is not the one asked for."""

    error: ErrorDetail


class FieldInfo(_Model):
    """A metadata field, with some of its values."""

    name: str
    values: list[str | int | float | bool]


class FacetValue(_Model):
    """A value of a facet, and how many documents have it."""

    value: str | int | float | bool
    documents: int


class FacetInfo(_Model):
    """A metadata field to choose a value of; `label` is what it is called."""

    name: str
    label: str
    values: list[FacetValue]


class IndexInfo(_Model):
    """The index, and what can be done with it."""

    location: str
    temporary: bool
    documents: int
    tokens: int
    model: str | None
    max_tokens: int | None
    modes: list[str]
    suffixes: list[str]
    packings: list[str]
    max_upload_bytes: int
    fields: list[FieldInfo]
    facets: list[FacetInfo]
    questions: list[str]


class UploadAnswer(_Model):
    """The upload waits to be indexed; `/api/indexing` tells what becomes of it."""

    id: str
    state: Literal["queued"]


class DocumentInfo(_Model):
    """What is known of a document besides its text; lengths in tokens and characters (code points)."""

    id: str
    title: str | None
    metadata: dict[str, Any]
    n_tokens: int
    n_characters: int
    n_windows: int
    truncated: bool


class FullDocument(DocumentInfo):
    """A document with all of its text."""

    text: str


class DocumentList(_Model):
    """Some of the documents, in the order of their ids, and how many there are in all."""

    total: int
    documents: list[DocumentInfo]


class Deleted(_Model):
    """The document is gone."""

    id: str
    deleted: Literal[True]


class FailureInfo(_Model):
    """A document that was not indexed, and why."""

    id: str
    error: str
    message: str


class ProgressInfo(_Model):
    """Where indexing stands; counts are since it last began, `failures` the latest ones."""

    active: bool
    queued: int
    indexing: int
    done: int
    added: int
    replaced: int
    unchanged: int
    failed: int
    failures: list[FailureInfo]
    tokens: int
    seconds: float
    documents_per_second: float
    tokens_per_second: float
    eta_seconds: float | None
    current: str


_Integer = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
_Number = Annotated[StrictFloat, Field(allow_inf_nan=False)]
_Scalar = StrictStr | StrictBool | _Integer | _Number
_Range = Annotated[dict[Literal["gte", "gt", "lte", "lt"], StrictStr | _Integer | _Number], Field(min_length=1)]
_OneOf = Annotated[
    dict[Literal["in"], Annotated[list[_Scalar], Field(min_length=1, max_length=MAX_VALUES)]], Field(min_length=1)
]


class SearchRequest(_Model):
    """What is looked for.

    `mode`: null for the best the index has. `rescore`: weight of a document's best passage in its score; null for the
    mode's own. `filter`: metadata fields and the values they must have, a range (`{"gte": 1, "lt": 2}`) or a list
    (`{"in": ["a", "b"]}`), all of them. `n_passages`: at most how many per hit.
    """

    query: Annotated[StrictStr, Field(min_length=1, max_length=MAX_QUERY_CHARACTERS)]
    k: Annotated[StrictInt, Field(ge=1, le=MAX_HITS)] = 10
    mode: Mode | None = None
    filter: Annotated[dict[str, _Scalar | _Range | _OneOf], Field(max_length=32)] | None = None
    rescore: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] | None = None
    n_passages: Annotated[StrictInt, Field(ge=0, le=MAX_PASSAGES)] = 3


class SearchAnswer(_Model):
    """Hits, best first, as `m2rag search --json` gives them, each with `n_characters` of its text."""

    query: str
    hits: list[dict[str, Any]]


class ListQuery(_Model):
    """Which documents to list; `having`: a JSON object of facets and the value each must have."""

    offset: Annotated[int, Field(ge=0, lt=2**31)] = 0
    limit: Annotated[int, Field(ge=1, le=MAX_LISTED)] = 50
    prefix: Annotated[str, Field(max_length=MAX_ID_CHARACTERS)] = ""
    having: Annotated[Json[dict[str, _Scalar]] | None, Field(max_length=32)] = None


def page_router(library: Library, presentation: Presentation) -> APIRouter:
    """The routes of the page and of its API.

    Errors are raised as `ApiError`, and as FastAPI's `RequestValidationError` for a body or query of a wrong form.
    """
    router = APIRouter()
    reading = anyio.CapacityLimiter(_READERS_AT_ONCE)
    deleting = anyio.CapacityLimiter(_DELETERS_AT_ONCE)
    _add_files(router, presentation)

    @router.get("/api/index", response_model=IndexInfo, responses=_errors(503), tags=["page"])
    async def index() -> Any:
        """The index, and what can be done with it."""
        return await _in_thread(reading, _index_info, library, presentation)

    @router.get("/api/indexing", response_model=ProgressInfo, responses=_errors(), tags=["page"])
    async def indexing() -> Any:
        """Where indexing stands."""
        return asdict(library.progress())

    @router.put(
        "/api/documents/{id:path}",
        status_code=202,
        response_model=UploadAnswer,
        responses=_errors(400, 404, 408, 413, 415, 429, 503),  # 404: a name with a line break is no path
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": "All bytes of the file.",
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
        tags=["page"],
    )
    async def upload(id: str, request: Request) -> Any:
        """Hand in a file; `id` is its name, a relative path whose suffix tells the kind of file."""
        check_name(id)
        data = await _received(id, request, library)
        return {"id": id, "state": library.upload(id, data)}

    @router.get("/api/documents", response_model=DocumentList, responses=_errors(400, 503), tags=["page"])
    async def documents(query: Annotated[ListQuery, Query()]) -> Any:
        """List documents by id."""
        found, total = await _in_thread(
            reading, library.documents, query.offset, query.limit, query.prefix, query.having
        )
        return {"total": total, "documents": [asdict(stored) for stored in found]}

    @router.get("/api/documents/{id:path}", response_model=FullDocument, responses=_errors(404, 503), tags=["page"])
    async def document(id: str) -> Any:
        """A whole document."""
        _check_id(id)
        found = await _in_thread(reading, library.get, id)
        if found is None:
            raise _not_found(library, id)
        return {**asdict(found[1]), "text": found[0].text}

    @router.delete("/api/documents/{id:path}", response_model=Deleted, responses=_errors(404, 503), tags=["page"])
    async def delete(id: str) -> Any:
        """Remove a document."""
        _check_id(id)
        if not await _in_thread(deleting, library.delete, id):
            raise _not_found(library, id)
        return {"id": id, "deleted": True}

    @router.post("/api/search", response_model=SearchAnswer, responses=_errors(400, 503), tags=["page"])
    async def search(wanted: SearchRequest) -> Any:
        """Find documents, best first."""
        if wanted.mode is not None and wanted.mode not in library.modes:
            has = ", ".join(library.modes)
            raise ApiError(400, f"this index cannot be searched with mode {wanted.mode!r}: it has {has}", param="mode")
        hits = await _in_thread(
            reading,
            library.search,
            wanted.query,
            wanted.k,
            mode=wanted.mode,
            rescore=wanted.rescore,
            filter=wanted.filter,
            n_passages=wanted.n_passages,
        )
        found = [{**asdict(hit), "n_characters": n_characters} for hit, n_characters in hits]
        return {"query": wanted.query, "hits": found}

    return router


def _add_files(router: APIRouter, presentation: Presentation) -> None:
    folder = files("m2rag.server") / "static"
    for url, (name, media_type) in _FILES.items():
        content = (folder / name).read_bytes()
        if name == "index.html":
            content = _presented(content.decode("utf-8"), presentation).encode("utf-8")
        router.add_api_route(
            url, _file_route(content, media_type), methods=["GET", "HEAD"], include_in_schema=False, name=name
        )


def _presented(html: str, presentation: Presentation) -> str:
    """The page under its name: in the file itself, so that no other is seen first."""
    title, placeholder = escape(presentation.title), escape(presentation.placeholder)
    for mark, put in (
        ("<title>m2rag</title>", f"<title>{title}</title>"),
        ("<span>m2rag</span>", f"<span>{title}</span>"),
        ('placeholder="Ask in your own words"', f'placeholder="{placeholder}"'),
    ):
        html = html.replace(mark, put)
    return html


def _file_route(content: bytes, media_type: str) -> Callable[[Request], Response]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    # Asked for anew each time, sent only if changed: after an update nobody has a page of one version and a script of
    # another.
    headers = {"ETag": tag, "Cache-Control": "no-cache"}

    def route(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if known == "*" or tag in [item.strip().removeprefix("W/") for item in known.split(",")]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return route


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers that are no success, for the description of a route; those of every route come by themselves."""
    meanings = {
        400: "The request is wrong.",
        401: "The key is missing or wrong.",
        404: "There is no such document.",
        408: "The file did not come in time.",
        413: "The file is too large.",
        415: "The index does not read this kind of file.",
        429: "Too much at once: try again later, as Retry-After says.",
        503: "The index cannot be reached or written, or the server is shutting down.",
    }
    return {status: {"model": ErrorBody, "description": meanings[status]} for status in sorted({401, *statuses})}


async def _received(id: str, request: Request, library: Library) -> bytes:
    """The body of an upload, for which room is kept while it comes."""
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isascii() and declared.isdigit() else library.max_upload_bytes
    data = bytearray()
    try:
        with library.room(id, size), anyio.fail_after(_RECEIVE_SECONDS):
            async for chunk in request.stream():
                data += chunk
                if len(data) > library.max_upload_bytes:
                    raise library.too_large()
    except TimeoutError as error:
        raise ApiError(408, f"the file did not come within {_RECEIVE_SECONDS} s: send it again") from error
    except ClientDisconnect as error:
        raise ApiError(400, "the client left before all of the file had come") from error
    return bytes(data)


def _index_info(library: Library, presentation: Presentation) -> dict[str, Any]:
    info = library.index.info()
    return {
        "location": info["path"],
        "temporary": library.temporary,
        "documents": info["documents"],
        "tokens": info["tokens"],
        "model": info["model"],
        "max_tokens": library.max_tokens,
        "modes": library.modes,
        "suffixes": library.suffixes,
        "packings": library.packings,
        "max_upload_bytes": library.max_upload_bytes,
        "fields": [{"name": name, "values": values} for name, values in library.fields().items()],
        "facets": [
            {
                "name": name,
                "label": presentation.facets[name],
                "values": [{"value": value, "documents": count} for value, count in values.items()],
            }
            for name, values in library.facets().items()
        ],
        "questions": list(presentation.questions),
    }


async def _in_thread(limit: anyio.CapacityLimiter, call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """A call that blocks, in a worker thread; what it raises on purpose as an `ApiError`."""
    try:
        return await anyio.to_thread.run_sync(partial(call, *args, **kwargs), limiter=limit)
    except InvalidInputError as error:
        raise ApiError(400, str(error)) from error
    except StoreError as error:
        raise ApiError(503, str(error), code="store_error", retry_after=5) from error
    except RemoteError as error:
        raise ApiError(503, str(error), code="model_error", retry_after=error.retry_after or 5) from error
    except M2RagError as error:
        raise ApiError(500, str(error)) from error


def _check_id(id: str) -> None:
    """No document has an id that is not valid Unicode, and the store takes none."""
    try:
        id.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ApiError(404, "there is no document with this id: it is not valid Unicode", param="id") from error


def _not_found(library: Library, id: str) -> ApiError:
    if library.is_pending(id):
        return ApiError(404, f"the document {id!r} is not indexed yet", param="id", code="pending", retry_after=2)
    return ApiError(404, f"there is no document {id!r}", param="id", code="not_found")
