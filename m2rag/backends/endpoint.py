"""An OpenAI-style API on the network: its address, the key to it, connections, and one request until it is answered."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import httpx

from m2rag.backends.exchange import Broken, Gate, Intake, Reply, RetryPolicy, Send, Wait, lower_case, server_wait
from m2rag.backends.providers import PROVIDERS, Provider, provider_of
from m2rag.backends.wire import Complaint
from m2rag.errors import RemoteError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CONNECT_SECONDS = 10.0
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

Steps = Generator["Send | Wait", "Reply | Broken | None", T]
"""What `exchange` yields, with something made of its answer at the end."""

Hear = Callable[[Send, Callable[[], float]], Intake]
"""Makes what takes in the answer to one try, given the try and the policy's clock."""


@dataclass(frozen=True)
class Done(Generic[T]):
    """The last thing that `run` and `arun` yield: what the steps came to."""

    value: T


class Endpoint:
    """One path of an OpenAI-style API.

    The key is in no representation, log message or pickle. An unpickled endpoint takes it from the environment again.

    Args:
        base_url: "https://host/v1", or the name of a known provider.
        path: what is posted to, below `base_url`: "embeddings".
        api_key: None: from the environment, the provider's own variable for its hosts and for no others,
            `key_variable` for all others, if set.
        key_variable: environment variable of the key for hosts of no known provider.
        retry: tries, waits and deadline.
        concurrency: requests under way at once, for all callers together.

    Raises:
        ValueError: an option is out of its range, or a provider that needs a key has none.
    """

    def __init__(
        self,
        base_url: str,
        path: str,
        *,
        api_key: str | None,
        key_variable: str,
        retry: RetryPolicy,
        concurrency: int,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}, must be at least 1")
        self._base_url = _address(base_url, path)
        self._path = path
        self.provider = provider_of(self._base_url.host)
        self.key_variable = self.provider.key_variable if self.provider else key_variable
        self._key = _Secret(_checked_key(api_key or os.environ.get(self.key_variable)))
        if self.provider and self.provider.needs_key and not self._key.value:
            raise ValueError(f"{self.provider.name} needs an API key: set {self.key_variable}, or pass api_key")
        if self._key.value and self._base_url.scheme == "http" and self._base_url.host not in _LOOPBACK:
            logger.warning("the API key for %s is sent without encryption: use https", self._base_url.host)
        self.retry = retry
        self.concurrency = concurrency
        self._start()

    def _start(self) -> None:
        """What a copy in another process makes anew."""
        self._lock = threading.Lock()
        self.gate = Gate()
        self._client: tuple[int, httpx.Client] | None = None
        self._aclients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, api_key={'set' if self.has_key else 'none'})"

    def __getstate__(self) -> dict[str, Any]:
        made_anew = {"_key", "_lock", "gate", "_client", "_aclients"}
        return {name: value for name, value in vars(self).items() if name not in made_anew}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._key = _Secret(_checked_key(os.environ.get(self.key_variable)))
        self._start()

    @property
    def base_url(self) -> str:
        return str(self._base_url)

    @property
    def host(self) -> str:
        return self._base_url.host

    @property
    def has_key(self) -> bool:
        return bool(self._key.value)

    def explain(self, place: str, reply: Reply, complaint: Complaint, *, instead: str, smaller: str) -> RemoteError:
        """What an answer that is not tried again means, and what to do.

        Args:
            place: model and host, for the message.
            reply: the answer.
            complaint: what it says.
            instead: what to do if the model is not served.
            smaller: what to do if the request is too large.
        """
        said = f"HTTP {reply.status}{': ' + complaint.message if complaint.message else ''}"
        if reply.status in (401, 403) and not complaint.about_model:
            had = "the API key was refused" if self.has_key else "it wants an API key, and there is none"
            message = f"{place}: {had} ({said}): set {self.key_variable}, or pass api_key"
        elif complaint.about_model or reply.status == 404:
            message = f"{place} is not served ({said}). {instead}"
        elif 300 <= reply.status < 400:
            message = f"{place}: redirected ({said}), which is not followed with an API key: correct base_url"
        elif reply.status == 413:
            message = f"{place}: the request is too large ({said}): {smaller}"
        else:
            message = f"{place}: refused ({said})"
        wait = server_wait(reply.headers, self.retry.now) if reply.status == 429 else None
        return RemoteError(message, status=reply.status, retry_after=wait)

    # Two ways of taking the steps of a call, which wait for nothing themselves.

    def call(self, steps: Steps[T]) -> T:
        """Take the steps in this thread."""
        with closing(self.run(steps)) as items:
            *_, last = items
        assert isinstance(last, Done)
        return last.value

    async def acall(self, steps: Steps[T]) -> T:
        """Take the steps in the running event loop."""
        async with aclosing(self.arun(steps)) as items:
            async for item in items:
                last = item
        assert isinstance(last, Done)
        return last.value

    def run(self, steps: Steps[T], hear: Hear = Intake) -> Generator[str | Done[T], None, None]:
        """Take the steps in this thread; yields the text that `hear` makes of an answer while it comes, then `Done`.

        Closing the generator closes the connection.
        """
        outcome: Reply | Broken | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                yield Done(done.value)
                return
            if isinstance(step, Wait):
                self.retry.sleep(step.seconds)
                outcome = None
                continue
            intake = hear(step, self.retry.clock)
            try:
                with self._sync_client().stream("POST", self._url, **self._request(step)) as response:
                    intake.begin(response.status_code, lower_case(response.headers.items()))
                    for part in response.iter_bytes():
                        yield from intake.take(part)
                        if intake.full:
                            break
                outcome = self._masked(intake.end())
            except (httpx.TransportError, httpx.DecodingError) as error:
                outcome = self._masked(intake.broken_off(_broken(error)))

    async def arun(self, steps: Steps[T], hear: Hear = Intake) -> AsyncGenerator[str | Done[T], None]:
        """Take the steps in the running event loop; as `run`."""
        outcome: Reply | Broken | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                yield Done(done.value)
                return
            if isinstance(step, Wait):
                await self.retry.asleep(step.seconds)
                outcome = None
                continue
            intake = hear(step, self.retry.clock)
            try:
                async with self._async_client().stream("POST", self._url, **self._request(step)) as response:
                    intake.begin(response.status_code, lower_case(response.headers.items()))
                    async for part in response.aiter_bytes():
                        for text in intake.take(part):
                            yield text
                        if intake.full:
                            break
                outcome = self._masked(intake.end())
            except (httpx.TransportError, httpx.DecodingError) as error:
                outcome = self._masked(intake.broken_off(_broken(error)))

    def close(self) -> None:
        """Close the connections that calls in threads have left open."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None and client[0] == os.getpid():
            client[1].close()

    async def aclose(self) -> None:
        """Close those of the running event loop, and those of threads."""
        client = self._aclients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()
        self.close()

    def _masked(self, outcome: Reply | Broken) -> Reply | Broken:
        """Some servers repeat the key they refuse, and what they say goes into messages."""
        key = self._key.value
        if not key:
            return outcome
        if isinstance(outcome, Broken):
            return replace(outcome, reason=outcome.reason.replace(key, "***"))
        return replace(outcome, body=outcome.body.replace(key.encode(), b"***"))

    def _request(self, send: Send) -> dict[str, Any]:
        # Waiting for another caller's request to end is no failure of the server.
        pool = max(send.expires - self.retry.clock(), 0.001)
        timeout = httpx.Timeout(send.timeout, connect=min(_CONNECT_SECONDS, send.timeout), pool=pool)
        return {"content": send.body, "timeout": timeout}

    @property
    def _url(self) -> httpx.URL:
        return self._base_url.copy_with(path=f"{self._base_url.path.rstrip('/')}/{self._path}")

    def _sync_client(self) -> httpx.Client:
        with self._lock:
            # A forked process must not speak on its parent's connections.
            if self._client is None or self._client[0] != os.getpid():
                self._client = (os.getpid(), httpx.Client(**self._client_options()))
            return self._client[1]

    def _async_client(self) -> httpx.AsyncClient:
        # Connections belong to the event loop they were opened in.
        loop = asyncio.get_running_loop()
        with self._lock:
            if loop not in self._aclients:
                self._aclients[loop] = httpx.AsyncClient(**self._client_options())
            return self._aclients[loop]

    def _client_options(self) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self._key.value:
            headers["Authorization"] = f"Bearer {self._key.value}"
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        return {"headers": headers, "verify": _ssl_context(), "limits": limits, "follow_redirects": False}


@cache
def _ssl_context() -> ssl.SSLContext:
    """One for all clients: reading the certificates takes tens of milliseconds."""
    return httpx.create_ssl_context()


class _Secret:
    """A value that does not show itself in tracebacks and dumps."""

    __slots__ = ("value",)

    def __init__(self, value: str | None) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "***" if self.value else "None"

    def __reduce__(self) -> Any:
        raise TypeError("an API key is not pickled")


def _checked_key(key: str | None) -> str | None:
    """The key without white space around it; the HTTP library would print an unsendable one."""
    key = (key or "").strip()
    if not key:
        return None
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError("the API key holds characters that no key has (blanks, line breaks, letters beyond ASCII)")
    return key


def _address(base_url: str, path: str) -> httpx.URL:
    named: dict[str, Provider] = {provider.name: provider for provider in PROVIDERS}
    if base_url in named:
        return httpx.URL(named[base_url].base_url)
    try:
        url = httpx.URL(base_url.strip().rstrip("/"))
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url is not an address: {error}") from None
    if url.userinfo or url.query or url.fragment:
        raise ValueError("base_url holds a user name, password, query or fragment: pass the key as api_key")
    if url.scheme not in ("http", "https") or not url.host:
        names = ", ".join(map(repr, named))
        raise ValueError(f"base_url is {base_url!r}, must begin with http:// or https://, or be one of {names}")
    if url.path.endswith(f"/{path}"):
        url = url.copy_with(path=url.path.removesuffix(f"/{path}"))
    return url


def _broken(error: httpx.HTTPError) -> Broken:
    """What the HTTP library could not do, in a line that holds no header."""
    cause: BaseException | None = error
    wrong_certificate = False
    while cause is not None:
        wrong_certificate = wrong_certificate or isinstance(cause, ssl.SSLCertVerificationError)
        cause = cause.__cause__ or cause.__context__
    final = wrong_certificate or isinstance(error, (httpx.LocalProtocolError, httpx.UnsupportedProtocol))
    return Broken(f"{type(error).__name__}: {error}".removesuffix(": "), final=final)


__all__ = ["Done", "Endpoint", "Hear", "Steps"]
