"""One request until it is answered: when to try again, how long to wait, when to give up. Nothing here waits itself.

`exchange` is a generator: it yields `Send` and `Wait`, and whoever drives it, with threads or an event loop, sends back
what became of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any

from m2rag.backends.wire import read_complaint
from m2rag.errors import RemoteError

logger = logging.getLogger(__name__)

_RETRIED = frozenset({408, 409, 429})
# Answered with 429 too, but no waiting helps.
_OUT_OF_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "credit_limit_exceeded"})

_UNIT_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in _UNIT_SECONDS))
# Larger numbers are not seconds from now but since 1970.
_EPOCH = 1e9


@dataclass(frozen=True)
class RetryPolicy:
    """How long to go on with a server that does not answer.

    Tried again are 408, 409, 429, 5xx, broken connections and broken answers. The server's own word on when to come
    back is kept; otherwise the wait before try n + 1 is drawn evenly from 0 to `first_wait` * 2**(n - 1) seconds, at
    most `longest_wait`.

    Attributes:
        attempts: tries per request.
        timeout: seconds without a byte from the server after which a try has failed.
        deadline: seconds for a request, with all tries and waits.
        first_wait, longest_wait: seconds.
        clock, sleep, asleep, draw: time in seconds; waits; a number from 0 to 1. `now` is the time of day in seconds.
    """

    attempts: int = 8
    timeout: float = 60.0
    deadline: float = 300.0
    first_wait: float = 0.5
    longest_wait: float = 30.0
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    asleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    draw: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts is {self.attempts}, must be at least 1")
        for name in ("timeout", "deadline"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)} s, must be above 0")


@dataclass(frozen=True)
class Send:
    """Post this, and read no more than `limit` bytes and not beyond `expires` of the policy's clock."""

    body: bytes = field(repr=False)
    timeout: float
    expires: float
    limit: int


@dataclass(frozen=True)
class Wait:
    """Let so much time go by."""

    seconds: float


@dataclass(frozen=True)
class Reply:
    """An HTTP answer; names of headers in lower case. `data` is the JSON of a good one."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    data: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Broken:
    """No answer, and why; `final` if another try would meet the same."""

    reason: str
    final: bool = False


Steps = Generator["Send | Wait", "Reply | Broken | None", Reply]


class Gate:
    """When requests may go out again after the server asked to wait: one for all requests to it."""

    def __init__(self) -> None:
        self.opens = float("-inf")

    def shut_until(self, time: float) -> None:
        self.opens = max(self.opens, time)


class Intake:
    """Takes an answer's bytes as they come, and stops at the size or the time that no honest answer needs.

    Args:
        send: what is being answered.
        clock: time in seconds.
    """

    def __init__(self, send: Send, clock: Callable[[], float]) -> None:
        self._send, self._clock = send, clock
        self._parts: list[bytes] = []
        self._size = 0
        self._spoiled: Broken | None = None
        self._status = 0
        self._headers: Mapping[str, str] = {}

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer's first lines came; names of headers in lower case."""
        self._status, self._headers = status, headers

    def take(self, part: bytes) -> Iterable[str]:
        """Some bytes came; returns text that can be shown before the whole answer is there: none, here."""
        self._parts.append(part)
        self._size += len(part)
        if self._size > self._send.limit:
            self._spoiled = Broken(f"the answer exceeds {self._send.limit:,} bytes", final=True)
        elif self._clock() > self._send.expires:
            self._spoiled = Broken("the answer was not complete in time")
        return ()

    @property
    def full(self) -> bool:
        """Whether no more bytes are wanted."""
        return self._spoiled is not None

    def end(self) -> Reply | Broken:
        """The answer, after its last byte."""
        return self._spoiled or Reply(self._status, self._headers, b"".join(self._parts))

    def broken_off(self, reason: Broken) -> Broken:
        """What to make of a connection that failed."""
        return reason


def exchange(body: bytes, limit: int, policy: RetryPolicy, gate: Gate, what: str) -> Steps:
    """Send a request until there is an answer that another try would not better.

    Args:
        body: what to post.
        limit: bytes an answer may have.
        policy: how often, how long.
        gate: shared by the requests to one server.
        what: names the request in messages.

    Returns:
        The answer: a good one with its JSON, or one with a status that is not tried again.

    Raises:
        RemoteError: there was none within the policy.
    """
    started = policy.clock()
    expires = started + policy.deadline
    reason, status, asked, tries = "not sent", None, None, 0

    def given_up(why: str = "") -> RemoteError:
        spent = f"{tries} {'try' if tries == 1 else 'tries'} in {policy.clock() - started:,.1f} s"
        return RemoteError(f"{what}: {reason}. Given up after {spent}{why}", status=status, retry_after=asked)

    def too_late() -> RemoteError:
        asks = f", the server asks for {asked:,.0f} s more" if asked else ""
        return given_up(f"{asks}: the deadline is {policy.deadline:,.0f} s")

    while True:
        shut = gate.opens - policy.clock()
        if gate.opens > expires and shut > 0:
            asked = shut
            raise too_late()
        if shut > 0:
            yield Wait(shut)
        left = expires - policy.clock()
        if tries and left <= 0:
            raise too_late()
        tries += 1
        outcome = yield Send(body, min(policy.timeout, max(left, 0.001)), expires, limit)
        if isinstance(outcome, Reply):
            outcome = _read(outcome)
        if isinstance(outcome, Reply):
            if not _worth_retrying(outcome):
                return outcome
            status, asked = outcome.status, server_wait(outcome.headers, policy.now)
        else:
            status, asked = None, None
        reason = _reason(outcome)
        spread = policy.draw() * min(policy.longest_wait, policy.first_wait * 2 ** min(tries - 1, 30))
        pause = spread if asked is None else asked + min(spread, policy.first_wait)
        now = policy.clock()
        if asked:
            gate.shut_until(now + asked)
        if tries >= policy.attempts or isinstance(outcome, Broken) and outcome.final:
            raise given_up()
        if now + pause > expires:
            raise too_late()
        logger.warning("%s: %s. Try %d in %.1f s", what, reason, tries + 1, pause)
        yield Wait(pause)


def server_wait(headers: Mapping[str, str], now: Callable[[], float]) -> float | None:
    """Seconds that the server asks to wait, None if it does not say.

    `Retry-After` (seconds or a date) counts before rate-limit resets. Of several resets the longest counts, among those
    whose `remaining` is used up if that is said.

    Args:
        headers: names in lower case.
        now: the time of day in seconds, for dates in answers that hold none themselves.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1_000)
    if "retry-after" in headers:
        value = headers["retry-after"].strip()
        seconds = _number(value)
        if seconds is None:
            date = _date(value)
            seconds = None if date is None else date - (_date(headers.get("date", "")) or now())
        if seconds is not None:
            return max(0.0, seconds)
    waits: list[tuple[bool, float]] = []
    for name, value in headers.items():
        if not re.fullmatch(r"(x-)?ratelimit-reset(-\w+)?", name):
            continue
        wait = _seconds(value, now)
        if wait is not None:
            left = _number(headers.get(name.replace("reset", "remaining"), ""))
            waits.append((left is not None and left > 0, max(0.0, wait)))
    used_up = [wait for has_left, wait in waits if not has_left]
    return max(used_up or [wait for _, wait in waits], default=None)


def _read(reply: Reply) -> Reply | Broken:
    """A good answer with its JSON; one without is a broken one, and one that holds an error is that error."""
    if not 200 <= reply.status < 300 or reply.data is not None:
        return reply
    try:
        data = json.loads(reply.body)
    except (ValueError, RecursionError) as error:
        if reply.body.lstrip()[:1] == b"<":
            return Broken("the answer is a web page: base_url does not lead to an OpenAI-style API", final=True)
        return Broken(f"the answer is not JSON ({error})")
    status = error_status(data)
    return Reply(reply.status, reply.headers, reply.body, data) if status is None else replace(reply, status=status)


def error_status(data: Any) -> int | None:
    """The HTTP status of an error that came with a good one, as from servers in front of others; None: no error."""
    error = data.get("error") if isinstance(data, dict) else None
    if not isinstance(error, (dict, str)) or not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 502


def _worth_retrying(reply: Reply) -> bool:
    if reply.status == 429:
        return read_complaint(reply.status, reply.body).code not in _OUT_OF_CREDIT
    return reply.status in _RETRIED or reply.status >= 500


def _reason(outcome: Reply | Broken | None) -> str:
    if not isinstance(outcome, Reply):
        return outcome.reason if outcome else "no answer"
    message = read_complaint(outcome.status, outcome.body).message
    return f"HTTP {outcome.status}{': ' + message if message else ''}"


def _seconds(value: str, now: Callable[[], float]) -> float | None:
    """Seconds from now of "12", "12.5", "6m0s", "20ms", or a time since 1970 in seconds or milliseconds."""
    value = value.strip().lower()
    number = _number(value)
    if number is not None:
        if number > 1_000 * _EPOCH:
            number /= 1_000
        return number - now() if number > _EPOCH else number
    match = _DURATION.fullmatch(value)
    if not match or not any(match.groups()):
        return None
    parts = zip(match.groups(), _UNIT_SECONDS.values(), strict=True)
    return sum(float(part) * seconds for part, seconds in parts if part)


def _number(value: str) -> float | None:
    return float(value) if re.fullmatch(r"\s*\d{1,15}(\.\d{0,9})?\s*", value) else None


def _date(value: str) -> float | None:
    try:
        return parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def lower_case(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers with their names in lower case."""
    return {name.lower(): value for name, value in headers}
