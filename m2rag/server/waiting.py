"""How much a server takes on at once, and how long it works for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from m2rag.server.errors import ApiError

T = TypeVar("T")


class Admission:
    """Bounds what is being served: beyond it a client is told to come back, instead of waiting in vain.

    Args:
        max_tokens: of all requests together, as estimated. A request larger than that is taken when it is alone.
        max_requests: at once.
        rate: gives the tokens worked off in a second, for when to come back.
    """

    def __init__(self, max_tokens: int, max_requests: int, rate: Callable[[], float]) -> None:
        self._max_tokens = max_tokens
        self._max_requests = max_requests
        self._rate = rate
        self.tokens = 0
        self.requests = 0

    @contextmanager
    def reserve(self, tokens: int) -> Iterator[None]:
        """Count a request while it is served; for the event loop's thread.

        Raises:
            ApiError: 429, with the seconds after which there is room by present speed.
        """
        full = self.tokens + tokens > self._max_tokens or self.requests >= self._max_requests
        if full and self.requests:
            excess = max(self.tokens + tokens - self._max_tokens, self.tokens // self.requests, 1)
            raise ApiError(
                429,
                f"the server is busy: {self.requests:,} requests of about {self.tokens:,} tokens are waiting, it takes "
                f"{self._max_requests:,} requests and {self._max_tokens:,} tokens",
                code="server_busy",
                retry_after=min(max(excess / self._rate(), 1.0), 60.0),
            )
        self.tokens += tokens
        self.requests += 1
        try:
            yield
        finally:
            self.tokens -= tokens
            self.requests -= 1


async def patiently(request: Request, work: Coroutine[Any, Any, T], timeout: float) -> T:
    """The result of `work`, which is cancelled when the client leaves or the time is up.

    Args:
        request: whose body has been read.
        timeout: seconds.

    Raises:
        ApiError: 503 after `timeout`.
        ClientDisconnect: the client has left; nobody reads an answer.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientDisconnect
        raise ApiError(
            503, f"it took more than {timeout:g} seconds: send less at once, or later", code="timeout", retry_after=5
        )
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
