"""An OpenAI-style chat server on loopback whose every answer a test can spoil: whole, or as a stream of events."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

from support.embedding_server import Answer, EmbeddingServer, Fault, Request

TEXT = "A lease runs for ninety days [1]. It may be renewed once [2]."
USAGE = {"prompt_tokens": 321, "completion_tokens": 12, "total_tokens": 333}
EVENTS = {"Content-Type": "text/event-stream; charset=utf-8"}


class ChatServer(EmbeddingServer):
    """Answers `POST /v1/chat/completions` with `text`, as a stream if asked for one, unless `fault` says otherwise."""

    def __init__(self, fault: Fault | None = None, text: str = TEXT) -> None:
        self.text = text
        super().__init__(fault)

    def right(self, request: Request) -> Answer:
        if not request.body.get("stream"):
            request.answer = completion(self.text)
            return Answer(body=request.answer)
        return streamed(*chunks(self.text))

    @property
    def prompts(self) -> list[str]:
        """What the user's message said in each request."""
        return [request.body["messages"][-1]["content"] for request in self.requests]


def completion(text: Any, *, finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    """A whole answer."""
    said = {"role": "assistant", "content": text, **message}
    choices = [{"index": 0, "message": said, "finish_reason": finish}]
    return {"object": "chat.completion", "model": "told-model", "choices": choices, "usage": USAGE}


def chunk(text: str | None, *, finish: str | None = None) -> dict[str, Any]:
    """One event's JSON of a stream."""
    delta = {} if text is None else {"content": text}
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"object": "chat.completion.chunk", "model": "told-model", "choices": choices}


def chunks(text: str, *, finish: str | None = "stop") -> list[bytes]:
    """The events of a whole stream, a word each."""
    words = [text[:1], *(word for word in text[1:].split(" "))]
    pieces = [words[0], words[1], *(f" {word}" for word in words[2:])] if len(words) > 1 else words
    parts = [chunk(""), *map(chunk, pieces), chunk(None, finish=finish), {"choices": [], "usage": USAGE}]
    return [*(event(part) for part in parts), b"data: [DONE]\n\n"]


def event(data: Any) -> bytes:
    """One event as bytes."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def streamed(*parts: bytes, after: Callable[[], None] | None = None) -> Answer:
    """A stream of these bytes; `after` is called when it ends, read or not."""

    def send() -> Generator[bytes, None, None]:
        try:
            yield from parts
        finally:
            if after is not None:
                after()

    return Answer(headers=EVENTS, parts=send)


@contextmanager
def chatting(fault: Fault | None = None, text: str = TEXT) -> Iterator[ChatServer]:
    server = ChatServer(fault, text)
    try:
        yield server
    finally:
        server.stop()
