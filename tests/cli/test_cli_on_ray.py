"""`m2rag index --engine ray`: by a Ray of its own, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.qdrant_server import QdrantTestServer
from tiny_models import sentence

from m2rag.index.documents import point_id
from m2rag.stores import open_store

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'm2rag[ray]'"
)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--actors", "2"], "--actors: only with --engine ray"),
        (["--engine", "ray", "--api-key", "secret"], "QDRANT_API_KEY"),
        (["--engine", "spark"], "spark"),
    ],
)
def test_options_that_do_not_go_together(run, documents: Path, options: list[str], said: str) -> None:
    told = run("index", documents, "-i", "http://127.0.0.1:1/docs", *options)
    assert told.exit_code == 2 and said in " ".join(told.stderr.split()).replace("│ ", "")


def test_a_folder_is_refused(run, documents: Path, tmp_path: Path) -> None:
    told = run("index", documents, "-i", tmp_path / "index", "--engine", "ray")
    assert told.exit_code == 1 and "only one process can have it open" in told.stderr
    assert not (tmp_path / "index").exists()


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "m2rag", "index", *map(str, args), "--engine", "ray", "--actors", "1"]


@needs_ray
@pytest.mark.slow
def test_the_same_as_the_local_engine(run, data, documents: Path, model: Path) -> None:
    """With a model by its path, and the key in the environment."""
    (documents / "empty.txt").touch()
    with QdrantTestServer(api_key="k3y") as server:
        urls = [f"{server.url}/ray", f"{server.url}/local"]
        environment = {**os.environ, "QDRANT_API_KEY": "k3y", "OMP_NUM_THREADS": "1"}
        shared = [documents, "-m", model, "--dtype", "float32", "--json"]
        done = subprocess.run(command(*shared, "-i", urls[0]), capture_output=True, text=True, env=environment)
        assert done.returncode == 3, done.stderr
        report = json.loads(done.stdout)
        expected = data(run("index", *shared, "-i", urls[1], "--api-key", "k3y"))
        for part in ("documents", "added", "n_tokens"):
            assert report[part] == expected[part] > 0
        assert [one["id"] for one in report["failed"]] == ["empty.txt"]
        assert not any(word in done.stderr for word in ("Traceback", "core_worker", "raylet")), done.stderr
        left, right = (points(url) for url in urls)
        assert left.keys() == right.keys() and len(left) == 3
        for id, point in left.items():
            assert point.payload == right[id].payload
            # Passages are kept in 16 bits; in other batches, sums are taken in another order.
            for name, near in (("doc", 2e-6), ("passages", 2e-3)):
                np.testing.assert_allclose(point.vectors[name], right[id].vectors[name], atol=near)
        again = subprocess.run(command(*shared, "-i", urls[0]), capture_output=True, text=True, env=environment)
        assert again.returncode == 3 and json.loads(again.stdout)["n_tokens"] == 0, again.stderr


def points(url: str) -> dict[Any, Any]:
    store = open_store(url, api_key="k3y")
    ids = [point_id(str(id)) for id in store.values("id")]
    found = store.retrieve(ids, payload=("id", "text", "hash", "n_tokens", "n_windows"), vectors=("doc", "passages"))
    store.close()
    return found


@needs_ray
@pytest.mark.slow
def test_ctrl_c_keeps_what_is_stored_and_the_same_command_goes_on(model: Path, tmp_path: Path) -> None:
    """Pressed on a terminal: all processes of the group get it."""
    total = 60
    (tmp_path / "documents").mkdir()
    for number in range(total):
        text = " ".join([sentence(50, seed=number), "x" * 50_000])  # stored five at a time
        (tmp_path / "documents" / f"{number:03}.txt").write_text(text)
    stored = threading.Event()
    writes: list[str] = []

    def before(route: str) -> None:
        if route.startswith("PUT") and route.endswith("/points"):
            writes.append(route)
            if len(writes) > 3:
                stored.set()
                threading.Event().wait(1.0)  # slow enough to be interrupted

    with QdrantTestServer(before=before) as server:
        arguments = command(tmp_path / "documents", "-m", model, "-i", f"{server.url}/docs", "--json")
        process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A test run in the background hands on an ignored SIGINT; the child must have the usual one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert stored.wait(300)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 130 and out == "" and "Traceback" not in err, err
        assert "run the same command again" in " ".join(err.split()), err
        server.before = None
        store = open_store(f"{server.url}/docs")
        there = store.count()
        store.close()
        assert 0 < there < total
        again = json.loads(subprocess.run(arguments, capture_output=True, text=True).stdout)
        assert (again["unchanged"], again["added"], again["documents"]) == (there, total - there, total)
