"""The OpenAI-style chat API as bytes: requests written, answers read and checked, whole or as a stream."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from m2rag.answers.results import Completion, Message, Usage
from m2rag.backends.exchange import Broken, Intake, Reply, Send, error_status
from m2rag.backends.wire import AnswerError, Complaint, read_complaint

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTEXT_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error", "string_above_max_length"})
_CONTEXT = re.compile(
    r"context[ _-]?(length|size|window)|(prompt|input|request|messages)\b.{0,60}\b(too long|too large|too many tokens)"
    r"|max_new_tokens|too many (input )?tokens|maximum (input|prompt) length|exceeds?\b.{0,60}\btokens",
    re.IGNORECASE,
)
_FILTER_CODES = frozenset({"content_filter", "content_policy_violation", "responsibleaipolicyviolation"})


def chat_body(model: str, messages: Sequence[Message], options: Mapping[str, Any]) -> bytes:
    """JSON of one request; half of a surrogate pair, which has no UTF-8, becomes a question mark."""
    body = {"model": model, **options, "messages": list(messages)}
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def completion_limit(answer_tokens: int) -> int:
    """More bytes than an honest answer has: in a stream every token comes with some hundred."""
    return 2_000_000 + answer_tokens * 4_000


def about_context(status: int, complaint: Complaint) -> bool:
    """Whether a refusal says that the prompt is longer than the model takes."""
    return status in (400, 413, 422) and (
        complaint.code in _CONTEXT_CODES or status == 413 or bool(_CONTEXT.search(complaint.message))
    )


def about_content(status: int, complaint: Complaint) -> bool:
    """Whether a refusal is a content filter's."""
    return status in (400, 403, 422) and complaint.code.lower() in _FILTER_CODES


def read_completion(answer: Any) -> Completion:
    """What an answer's JSON says; its text may be empty.

    Raises:
        AnswerError: it is no chat completion.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise AnswerError("the answer holds no list of choices (`choices`)")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise AnswerError("the answer's first choice holds no `message`")
    text = _text(message.get("content"))
    if not text.strip() and isinstance(message.get("refusal"), str) and message["refusal"].strip():
        text = message["refusal"]
    model = answer.get("model")
    return Completion(
        text=text,
        finish=str(choices[0].get("finish_reason") or "stop"),
        model=model if isinstance(model, str) else "",
        usage=_usage(answer.get("usage")),
    )


class StreamIntake(Intake):
    """Takes in an answer as server-sent events, and hands on its text as it comes.

    A server that answers all at once in spite of `stream` is fine too. What breaks after text was handed on is final:
    another try would say something else.
    """

    def __init__(self, send: Send, clock: Callable[[], float]) -> None:
        super().__init__(send, clock)
        self._lines = _Lines()
        self._events = False
        self._said: list[str] = []
        self._refusal: list[str] = []
        self._finish: str | None = None
        self._model = ""
        self._usage: Any = None
        self._over = False
        self._failed: Reply | Broken | None = None

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        super().begin(status, headers)
        self._events = 200 <= status < 300 and "event-stream" in headers.get("content-type", "")

    def take(self, part: bytes) -> Iterable[str]:
        super().take(part)
        if not self._events:
            return ()
        return [text for data in self._lines.events(part) if (text := self._event(data))]

    @property
    def full(self) -> bool:
        return super().full or self._over or self._failed is not None

    def end(self) -> Reply | Broken:
        if not self._events:
            return super().end()
        for last in self._lines.rest():
            self._event(last)
        if self._failed is not None:
            return self._failed
        if self._spoiled is not None:
            return self.broken_off(self._spoiled)
        if not self._over and self._finish is None:
            return self.broken_off(Broken("the stream ended before the answer did"))
        message = {"content": "".join(self._said), "refusal": "".join(self._refusal) or None}
        choice = {"message": message, "finish_reason": self._finish}
        data = {"choices": [choice], "model": self._model, "usage": self._usage}
        return Reply(self._status, self._headers, b"", data)

    def broken_off(self, reason: Broken) -> Broken:
        n = sum(map(len, self._said))
        if not n:
            return reason
        return Broken(f"the answer broke off after {n:,} characters ({reason.reason})", final=True)

    def _event(self, data: bytes) -> str:
        """Take in one event; returns its text."""
        if self.full:
            return ""
        if data.strip() == b"[DONE]":
            self._over = True
            return ""
        try:
            event = json.loads(data)
        except (ValueError, RecursionError) as error:
            self._failed = self.broken_off(Broken(f"the stream holds an event that is not JSON ({error})"))
            return ""
        status = error_status(event)
        if status is not None:
            self._failed = self._error(status, data)
            return ""
        return self._chunk(event) if isinstance(event, dict) else ""

    def _error(self, status: int, data: bytes) -> Reply | Broken:
        if not self._said:
            return Reply(status, self._headers, data)
        return self.broken_off(Broken(f"the server says: {read_complaint(status, data).message}"))

    def _chunk(self, event: dict[str, Any]) -> str:
        if isinstance(event.get("model"), str):
            self._model = event["model"]
        self._usage = event.get("usage") or self._usage
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return ""
        self._finish = choices[0].get("finish_reason") or self._finish
        delta = choices[0].get("delta")
        if not isinstance(delta, dict):
            return ""
        if isinstance(delta.get("refusal"), str):
            self._refusal.append(delta["refusal"])
        text = _text(delta.get("content"))
        if text:
            self._said.append(text)
        return text


class _Lines:
    """Cuts bytes into the `data` of server-sent events, however they are divided on the way."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def events(self, part: bytes) -> Iterable[bytes]:
        *lines, self._rest = (self._rest + part).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data = []

    def rest(self) -> Iterable[bytes]:
        """The last event, if nothing ended it."""
        return list(self.events(b"\n\n"))


def _text(content: Any) -> str:
    """Content is a string, or a list of parts of which some are text."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type", "text") == "text"]
        content = "".join(part for part in parts if isinstance(part, str))
    return _SURROGATE.sub("\ufffd", content) if isinstance(content, str) else ""


def _usage(given: Any) -> Usage | None:
    if not isinstance(given, dict):
        return None
    prompt, answer = given.get("prompt_tokens"), given.get("completion_tokens")
    if type(prompt) is not int or type(answer) is not int:
        return None
    return Usage(prompt, answer)
