"""What a server is told: who may ask, and how much."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

MEBIBYTE = 2**20


@dataclass(frozen=True)
class ServerSettings:
    """Limits and keys of a server.

    Attributes:
        keys: whoever sends one of these as `Authorization: Bearer KEY` is served; none: everybody is.
        hosts: names by which requests may address the server when there are no keys; empty: any name. The names of
            this machine only keep a page that was loaded from elsewhere from reading documents through a name it has
            pointed here.
        name: by which clients know the model; None: its own name. Its own name is always understood too.
        on_too_long: what becomes of longer inputs, where a request does not say.
        max_request_bytes: of one body.
        max_inputs: of one request for embeddings.
        max_waiting_tokens: of all requests being served, estimated; more are told to come back later.
        max_waiting_requests: the same, in requests.
        timeout: seconds until a request is given up.
        body_timeout: seconds between two parts of a body.
    """

    keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    name: str | None = None
    on_too_long: str = "error"
    max_request_bytes: int = 64 * MEBIBYTE
    max_inputs: int = 2_048
    max_waiting_tokens: int = 4_000_000
    max_waiting_requests: int = 1_000
    timeout: float = 300.0
    body_timeout: float = 30.0

    def __post_init__(self) -> None:
        for limit in ("max_request_bytes", "max_inputs", "max_waiting_tokens", "max_waiting_requests"):
            if getattr(self, limit) < 1:
                raise ValueError(f"{limit} is {getattr(self, limit)}, must be at least 1")
        for limit in ("timeout", "body_timeout"):
            if getattr(self, limit) <= 0:
                raise ValueError(f"{limit} is {getattr(self, limit)}, must be above 0")
        for key in self.keys:
            if not key.isascii() or not key.isprintable() or " " in key or not key:
                raise ValueError("a key of the server is empty, or holds blanks or letters that no header can carry")

    def __repr__(self) -> str:
        shown = {name: value for name, value in vars(self).items() if name != "keys"}
        return f"ServerSettings(keys=<{len(self.keys)}>, {', '.join(f'{n}={v!r}' for n, v in shown.items())})"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
