"""`m2rag serve` as a process, ended by signals; and what it refuses to do."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from support.serving import serving
from tiny_models import sentence

from m2rag.server.app import Server

KEY = "s3cr3t-key"
Start = Callable[..., "Process"]


class Process:
    """A running server: its address, and what it has said so far."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "m2rag", "serve", "--port", "0", "--device", "cpu", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment},
        )  # fmt: skip
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        deadline = time.monotonic() + 90
        while "Ctrl-C ends it" not in self.said:
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                pytest.fail(f"the server did not start: {self.said}")
            time.sleep(0.02)
        self.url = re.search(r"http://\S+:\d+", self.said)[0]

    def _read(self) -> None:
        for line in self.process.stdout:
            self.said += line

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join(10)
        return code


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Process] = []

    def begin(*arguments: object, **environment: str) -> Process:
        started.append(Process(*arguments, **environment))
        return started[-1]

    yield begin
    for one in started:
        one.process.kill()
        one.process.wait(10)


def test_a_server_with_a_key_indexes_searches_and_ends(start: Start, run, data, model: Path, tmp_path: Path) -> None:
    place = tmp_path / "index"
    server = start("--model", model, "--name", "ours", "--index", place, M2RAG_SERVER_KEYS=f"other, {KEY}")
    assert KEY not in server.said and "ours at http://127.0.0.1" in server.said and str(place) in server.said
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
        answer = client.post("/v1/embeddings", json={"model": "ours", "input": ["a", "b"]})
        assert answer.status_code == 200 and len(answer.json()["data"]) == 2
        for number in range(5):
            text = f"Document {number}. {sentence(50, seed=number)}"
            assert client.put(f"/api/documents/sub/{number}.txt", content=text).status_code == 202
        deadline = time.monotonic() + 60
        while client.get("/api/indexing").json()["active"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        hits = client.post("/api/search", json={"query": sentence(50, seed=3), "k": 5}).json()["hits"]
        assert len(hits) == 5
    assert server.end(signal.SIGTERM) == 0
    assert "Stopped." in server.said and "Traceback" not in server.said
    # The same index, opened with the model it remembers.
    found = data(run("search", sentence(50, seed=3), "--index", place, "--json"))
    assert [hit["id"] for hit in found["hits"]] == [hit["id"] for hit in hits]


def test_keys_from_a_file_and_what_has_begun_is_answered_before_the_end(
    start: Start, model: Path, tmp_path: Path
) -> None:
    """Without an index, documents go with the server."""
    keys = tmp_path / "keys"
    keys.write_text(f"first\n\n{KEY}\n")
    server = start("--model", model, "--on-too-long", "window", "--key-file", keys)
    assert "API keys: 2" in server.said
    for key, status in (("first", 200), ("second", 401)):
        answer = httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == status
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=90) as client:
        facts = client.get("/api/index").json()
        assert facts["temporary"] and Path(facts["location"]).is_dir()
        name = client.get("/v1/models").json()["data"][0]["id"]
        body = {"model": name, "input": [sentence(3_000, seed=seed) for seed in range(60)]}
        answers: list[httpx.Response] = []
        post = threading.Thread(target=lambda: answers.append(client.post("/v1/embeddings", json=body)))
        post.start()
        deadline = time.monotonic() + 60
        while "m2rag_waiting_tokens 0.0" in client.get("/metrics").text:
            assert time.monotonic() < deadline
        assert server.end(signal.SIGINT) == 0
        post.join(90)
    assert answers[0].status_code == 200 and len(answers[0].json()["data"]) == 60
    assert "Stopped." in server.said and "Traceback" not in server.said
    assert not Path(facts["location"]).exists()


def test_without_the_page(run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Server] = []
    monkeypatch.setattr("m2rag.cli.serve._run", lambda server, *_: made.append(server))
    assert run("serve", "--no-page", "--port", 0, "--model", model).exit_code == 0
    with serving(made[0].app) as address:
        assert httpx.get(f"{address}/v1/models").status_code == 200
        assert httpx.get(f"{address}/").status_code == 404


def test_idle_connections_are_closed_by_clients_first(run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that closes one just when the next request comes loses it."""
    made: list[uvicorn.Config] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: made.append(self.config))
    run("serve", "--no-page", "--port", 0, "--model", model)
    assert made[0].timeout_keep_alive > httpx.Limits().keepalive_expiry


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_other_machines_are_not_served_without_a_key(run, host: str, model: Path) -> None:
    told = run("serve", "--host", host, "--model", model)
    assert told.exit_code == 2 and "M2RAG_SERVER_KEYS" in told.stderr and "--no-key" in unboxed(told.stderr)


def unboxed(told: str) -> str:
    """Without the frame around usage errors."""
    return re.sub(r"[\s│]+", " ", told)


def test_what_is_wrong_is_told_before_the_model_is_loaded(run, tmp_path: Path, model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = run("serve", "--port", port, "--model", tmp_path / "no-model")
    assert told.exit_code == 1 and f"port {port}" in told.stderr and "Give another --port" in told.stderr
    empty = tmp_path / "keys"
    empty.write_text("\n \n")
    told = run("serve", "--key-file", empty, "--model", model)
    assert told.exit_code == 2 and "holds no key" in unboxed(told.stderr)
    empty.write_text("two words\n")
    told = run("serve", "--key-file", empty, "--model", model)
    assert told.exit_code == 2 and "two words" not in told.stderr
    told = run("serve", "--port", 0, "--model", tmp_path / "no-model")
    assert told.exit_code == 1 and "no-model" in told.stderr
