"""Our server, really listening on loopback, for clients that nobody here wrote."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn

from m2rag import M2Embedder
from m2rag.backends.local import LocalBackend
from m2rag.server.app import Server

# Others' clients give up after five seconds, on a busy machine too.
TEXTS = ["Wheels are named by their tags.", "A meeting about remote controls. " * 100, "ü"]
QUERY = "how are wheels named?"


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The application behind a free port of 127.0.0.1; gives its address and ends it, its lifespan included."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        port = listening.getsockname()[1]
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while not server.started:
                assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.005)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(60)


@pytest.fixture(scope="session")
def bundled_server() -> Iterator[str]:
    """`m2rag serve --dtype float32 --no-page` but for the process: the address of its API, .../v1."""
    with serving(Server(LocalBackend.load(None, device="cpu")).app) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="session")
def local() -> M2Embedder:
    """What serves, in this process: others' clients must get its vectors."""
    return M2Embedder(device="cpu")
