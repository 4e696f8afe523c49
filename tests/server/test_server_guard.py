"""Who is let in, and how much of what they send."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.serving import serving
from tiny_models import FakeBackend

from m2rag.server.app import Server
from m2rag.server.guard import OPEN_PATHS
from m2rag.server.settings import ServerSettings, is_loopback

KEYS = ("first-key", "second-key")
LIMIT = 100_000


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = ServerSettings(max_request_bytes=LIMIT, body_timeout=0.3)
    index = tmp_path_factory.mktemp("open") / "index"
    with serving(Server(FakeBackend(), settings=settings, index=index).app) as address:
        yield address


@pytest.fixture(scope="module")
def locked_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    index = tmp_path_factory.mktemp("locked") / "index"
    with serving(Server(FakeBackend(), settings=ServerSettings(keys=KEYS, hosts=()), index=index).app) as address:
        yield address


def embed(address: str, **options: Any) -> httpx.Response:
    return httpx.post(f"{address}/v1/embeddings", json={"model": "fake", "input": "a"}, **options)


# Keys


@pytest.mark.parametrize("key", KEYS)
def test_every_key_opens(locked_server: str, key: str) -> None:
    assert embed(locked_server, headers={"authorization": f"Bearer {key}"}).status_code == 200
    assert embed(locked_server, headers={"authorization": f"bearer {key}"}).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", "Bearer first-ke", "Bearer first-keyy", "Basic first-key", "first-key",
        "Bearer first-key,second-key", "Bearer FIRST-KEY", b"Bearer \xff\xfe",
    ],
)  # fmt: skip
def test_nothing_else_does(locked_server: str, header: str | bytes | None) -> None:
    answer = embed(locked_server, headers={} if header is None else {"authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert "first-key" not in answer.text


def test_every_route_but_the_open_ones_asks_for_a_key(locked_server: str) -> None:
    described = httpx.get(f"{locked_server}/openapi.json").json()
    asked = 0
    for path, operations in described["paths"].items():
        for method in operations:
            status = httpx.request(method, locked_server + path.replace("{", "").replace("}", "")).status_code
            assert (status == 401) == (path not in OPEN_PATHS), (method, path, status)
            asked += status == 401
    assert asked >= 8
    for path in ("/nothing", "/v1", "//v1/embeddings", "/page/../v1/models", "/health/../metrics"):
        with socket.create_connection(("127.0.0.1", int(locked_server.rpartition(":")[2]))) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            status_line = raw.makefile("rb").readline()
        assert status_line.split()[1] in (b"401", b"404"), (path, status_line)


def test_keys_are_shown_nowhere() -> None:
    settings = ServerSettings(keys=KEYS)
    assert "first-key" not in repr(settings) and "first-key" not in str(vars(Server(FakeBackend(), settings=settings)))
    for wrong in ("", "two words", "schlüssel", "line\nbreak"):
        with pytest.raises(ValueError) as caught:
            ServerSettings(keys=(wrong,))
        assert not wrong or wrong not in str(caught.value)


# Where a request comes from


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000", "LOCALHOST"])
def test_this_machines_names_are_answered(open_server: str, host: str) -> None:
    assert embed(open_server, headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "", "[::2]"])
def test_names_that_were_pointed_here_are_not(open_server: str, host: str) -> None:
    answer = httpx.get(f"{open_server}/api/documents", headers={"host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host_not_allowed"


def test_pages_of_other_sites_may_not_write(open_server: str, locked_server: str) -> None:
    for address in (open_server, locked_server):
        key = {"authorization": f"Bearer {KEYS[0]}"}
        for origin in ("https://evil.example", "null", address + "0", address.replace("http", "ftp") + ".evil"):
            answer = httpx.put(f"{address}/api/documents/a.txt", content=b"x", headers={**key, "origin": origin})
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "origin_not_allowed"
        allowed = httpx.delete(f"{address}/api/documents/a.txt", headers={**key, "origin": address})
        assert allowed.status_code == 404, "there is no such document, and its own page may ask"


# How much, how slowly


def test_bodies_beyond_the_limit(open_server: str) -> None:
    body = json.dumps({"model": "fake", "input": "a " * LIMIT}).encode()
    for content in (body, (body[at : at + 10_000] for at in range(0, len(body), 10_000))):
        answer = httpx.post(
            f"{open_server}/v1/embeddings", content=content, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
    upload = httpx.put(f"{open_server}/api/documents/a.txt", content=b"a " * LIMIT)
    assert upload.status_code == 413
    assert embed(open_server).status_code == 200


@pytest.mark.parametrize("length", ["1" * 30, "-5", "ten", "1e3"])
def test_lengths_that_are_none(open_server: str, length: str) -> None:
    with socket.create_connection(("127.0.0.1", int(open_server.rpartition(":")[2]))) as raw:
        raw.settimeout(10)
        raw.sendall(f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode())
        assert raw.makefile("rb").readline().split()[1] in (b"400", b"413")
    assert embed(open_server).status_code == 200


def test_a_body_that_does_not_come(open_server: str) -> None:
    with socket.create_connection(("127.0.0.1", int(open_server.rpartition(":")[2]))) as raw:
        raw.settimeout(20)
        raw.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 50\r\n\r\n{"
        )
        answer = raw.makefile("rb")
        assert answer.readline().split()[1] == b"408"


def test_the_headers_of_every_answer(open_server: str) -> None:
    for path in ("/", "/health", "/v1/models", "/nothing", "/openapi.json"):
        headers = httpx.get(open_server + path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/page/..%2f..%2fapp.py", "/page/%2e%2e/errors.py", "/..%2f..%2fetc/passwd"])
def test_no_path_leads_out_of_the_page(open_server: str, path: str) -> None:
    answer = httpx.get(open_server + path)
    assert answer.status_code == 404
    assert "import" not in answer.text


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True), ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True),
        ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("example.org", False), ("", False),
    ],
)  # fmt: skip
def test_which_addresses_are_this_machine_only(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    "wrong", [{"timeout": 0}, {"max_inputs": 0}, {"max_request_bytes": -1}, {"body_timeout": -1.0}], ids=str
)
def test_limits_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ServerSettings(**wrong)
