"""What stands in front of every route: who asks, from where, how much; and the headers of every answer."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from m2rag.server.errors import ApiError
from m2rag.server.settings import ServerSettings

# Nothing in them is secret: monitors ask without a key, and the page asks its reader for one.
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/favicon.ico", "/openapi.json"})
OPEN_PREFIX = "/page/"

_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

OnRequest = Callable[[str, int, float], None]


class Guard:
    """Middleware: keys in constant time, names of the host, origins, sizes and slowness of bodies.

    Args:
        app: what is guarded.
        settings: keys and limits.
        on_request: told of each answer (route, status, seconds).
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, on_request: OnRequest) -> None:
        self._app = app
        self._settings = settings
        self._on_request = on_request
        self._keys = [_digest(key.encode()) for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send)
        started = time.perf_counter()
        try:
            headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
            body = _Body(receive, self._settings)
            try:
                self._check(scope, headers)
                body.check_length(headers)
                await self._app(scope, body.receive, answer.send_unless(body))
                if body.error is not None:
                    raise body.error
            except ApiError as error:
                await body.drain()
                await error.response()(scope, receive, answer.send)
        finally:
            route = getattr(scope.get("route"), "path", None) or "none"
            self._on_request(route, answer.status, time.perf_counter() - started)

    def _check(self, scope: Scope, headers: Mapping[str, bytes]) -> None:
        host = headers.get("host", b"").decode("latin-1").lower()
        if not self._keys and self._settings.hosts and _without_port(host) not in self._settings.hosts:
            raise ApiError(
                403,
                f"this server answers to the names {', '.join(self._settings.hosts)} only, as it asks for no key",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            if urlsplit(origin.decode("latin-1")).netloc.lower() != host:
                raise ApiError(403, "pages of other sites may not write here", code="origin_not_allowed")
        path = scope["path"]
        if self._keys and path not in OPEN_PATHS and not path.startswith(OPEN_PREFIX):
            self._check_key(headers.get("authorization", b""))

    def _check_key(self, header: bytes) -> None:
        scheme, _, key = header.partition(b" ")
        given = _digest(key.strip())
        # All of them in any case, so that the time taken says nothing.
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        if scheme.lower() == b"bearer" and any(matches):
            return
        had = "the API key is not one of this server's" if header else "this server asks for an API key"
        raise ApiError(401, f"{had}: send it as 'Authorization: Bearer KEY'", code="invalid_api_key")


class _Answer:
    """The answer on its way out: gets our headers, and its status is noted."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            names = {name for name, _ in message["headers"]}
            added = [header for header in _HEADERS if header[0] not in names]
            message = {**message, "headers": [*message["headers"], *added]}
        await self._send(message)

    def send_unless(self, body: _Body) -> Send:
        """Sends what the application says, but for what it says of a body that was cut off."""

        async def send(message: Message) -> None:
            if body.error is None:
                await self.send(message)

        return send


class _Body:
    """The request's body on its way in: ends with an error where it is too long or too slow."""

    def __init__(self, receive: Receive, settings: ServerSettings) -> None:
        self._receive = receive
        self._limit = settings.max_request_bytes
        self._timeout = settings.body_timeout
        self._size = 0
        self._complete = False
        self.error: ApiError | None = None

    def check_length(self, headers: Mapping[str, bytes]) -> None:
        length = headers.get("content-length", b"")
        if length.isdigit() and int(length[:20]) > self._limit:
            raise self._too_large()

    async def receive(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._timeout)
        except asyncio.TimeoutError:
            self.error = ApiError(408, f"nothing of the body came for {self._timeout:g} seconds", code="body_timeout")
            return {"type": "http.disconnect"}
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._size > self._limit:
                self.error = self._too_large()
                return {"type": "http.disconnect"}
        return message

    async def drain(self) -> None:
        """Read what is still on its way, within bounds: many clients read no answer before they have sent all."""
        left = 2 * self._limit
        while not self._complete and left > 0:
            try:
                message = await asyncio.wait_for(self._receive(), 1.0)
            except asyncio.TimeoutError:
                return
            left -= len(message.get("body", b""))
            self._complete = message["type"] != "http.request" or not message.get("more_body", False)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the request is larger than this server takes ({self._limit:,} bytes): send fewer inputs at once",
            code="request_too_large",
        )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
