"""An OpenAI-style embedding server on loopback whose every answer a test can spoil."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

DIMENSION = 8


def vector_of(text: str, dimension: int = DIMENSION) -> np.ndarray:
    """(D,) float32 that only this text has."""
    return np.random.default_rng(list(text.encode("utf-8", "replace"))).standard_normal(dimension).astype(np.float32)


@dataclass
class Request:
    """What the server got, and what it would answer: `answer` may be changed in place."""

    number: int
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    raw: bytes
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> list[str]:
        return self.body["input"]


@dataclass
class Answer:
    """An answer instead of the right one. `parts` are sent one after the other."""

    status: int = 200
    body: bytes | dict[str, Any] = b""
    headers: dict[str, str] = field(default_factory=dict)
    parts: Callable[[], Generator[bytes, None, None]] | None = None


class Hangup(Exception):
    """Raised by a fault: the connection is closed without an answer."""


Fault = Callable[[Request], "Answer | None"]


class EmbeddingServer:
    """Answers `POST /v1/embeddings` rightly, unless `fault` says otherwise for this request.

    Attributes:
        url: base URL.
        requests: what came, in order.
        most_at_once: how many requests were under way together at most.
    """

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault
        self.requests: list[Request] = []
        self.most_at_once = 0
        self._under_way = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server._handle(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def texts(self) -> list[str]:
        """All inputs of all requests."""
        return [text for request in self.requests for text in request.inputs]

    def right(self, request: Request) -> Answer:
        """The answer that a fault may spoil through `request.answer`."""
        request.answer = right_answer(request.body)
        return Answer(body=request.answer)

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        with self._lock:
            request = Request(len(self.requests), handler.path, headers, json.loads(raw), raw)
            self.requests.append(request)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        try:
            right = self.right(request)
            given = self.fault(request) if self.fault else None
            with self._lock:
                # Before the answer is out: the client may send the next request while this thread still ends.
                self._under_way -= 1
            _send(handler, given or right)
        except Hangup:
            with self._lock:
                self._under_way -= 1
            handler.close_connection = True
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True


def right_answer(body: dict[str, Any]) -> dict[str, Any]:
    dimension = body.get("dimensions", DIMENSION)
    data = []
    for index, text in enumerate(body["input"]):
        vector = vector_of(text, dimension)
        coded: Any = vector.tolist()
        if body.get("encoding_format") == "base64":
            coded = base64.b64encode(vector.tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": coded})
    return {"object": "list", "model": body["model"], "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def complaint(status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None) -> Answer:
    """An error as OpenAI writes it."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    return Answer(status, body, headers or {})


def first(n: int, answer: Callable[[Request], Answer | None] | Answer) -> Fault:
    """The fault for the first `n` requests, the right answer for the others."""

    def fault(request: Request) -> Answer | None:
        if request.number >= n:
            return None
        return answer if isinstance(answer, Answer) else answer(request)

    return fault


def _send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
    handler.send_response(answer.status)
    for name, value in {"Content-Type": "application/json", **answer.headers}.items():
        handler.send_header(name, value)
    if answer.parts is not None:
        handler.send_header("Connection", "close")
        handler.end_headers()
        with closing(answer.parts()) as parts:
            for part in parts:
                handler.wfile.write(part)
                handler.wfile.flush()
        handler.close_connection = True
        return
    if "Content-Length" not in answer.headers:
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
    if "Content-Length" in answer.headers:
        handler.close_connection = True


@contextmanager
def serving(fault: Fault | None = None) -> Iterator[EmbeddingServer]:
    server = EmbeddingServer(fault)
    try:
        yield server
    finally:
        server.stop()
