"""The guard every test runs under: no network but loopback."""

from __future__ import annotations

import os
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but this machine is a bug of the code under test."""
    connect = socket.socket.connect
    allowed = {"127.0.0.1", "::1", "localhost"}
    if host := urlsplit(os.environ.get("QDRANT_URL", "")).hostname:  # a real server, for who asks for one
        allowed |= {host, *(str(found[4][0]) for found in socket.getaddrinfo(host, None))}

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in allowed:
            raise AssertionError(f"a test tried to reach {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
