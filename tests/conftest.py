"""Shared by all tests: no network but loopback, and where the golden data lies."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
if not torch.cuda.is_available():
    # Before any kernel is defined: Triton's interpreter then runs it on a CPU.
    os.environ["TRITON_INTERPRET"] = "1"

GOLDEN = Path(__file__).parent / "golden"


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


@pytest.fixture(scope="session")
def golden_cases() -> dict[str, dict[str, Any]]:
    """Name of a golden case -> its configuration, shape and lengths."""
    return json.loads((GOLDEN / "index.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tiny_config(golden_cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Keys of a published `config.json` with the sizes of a toy: 2 layers, width 64, 256 positions."""
    return golden_cases["tiny"]["config"]
