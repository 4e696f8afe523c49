"""The plan for a million documents: its arithmetic, and the run it rests on, in a folder and on a server."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from support.qdrant_server import QdrantTestServer

SCRIPT = Path(__file__).parents[2] / "examples" / "bulk_index_ray.py"


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'm2rag[ray]'")
    spec = importlib.util.spec_from_file_location("bulk_index_ray", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bulk_index_ray"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bulk_index_ray"]


def test_the_arithmetic_of_the_plan(example: Any) -> None:
    from rich.console import Console

    measured = example.Measured(
        documents=10, tokens=100_000, worker_seconds=20.0, looked_up=10, lookup_seconds=0.1,
        text_bytes=40_000, words=1000, passages=50, dimension=384,
    )  # fmt: skip
    assert measured.tokens_per_second == 5000
    assert example.hours(measured, 1_000_000, 1) == pytest.approx(1_000_000 * 10_000 / 5000 / 3600)
    assert example.hours(measured, 1_000_000, 32) == pytest.approx(example.hours(measured, 1_000_000, 1) / 32)
    assert example.parts(measured) == {
        "text": 40_000, "vectors of passages": 50 * 1536, "words for BM25": 8000, "vector": 1536,
    }  # fmt: skip
    assert [*example.in_memory(measured).values()] == [1536, 384, 48]
    shown = StringIO()
    example.show(measured, 1_000_000, Console(file=shown, width=100))
    said = shown.getvalue()
    assert "0.50 documents/s, 5,000 tokens/s, documents of 10,000 tokens" in said
    assert re.search(r"1 │ +555\.6 │ +0\.5 │ +0\.06 ", said) and re.search(r"in all +│ +126\.34 kB │ +126\.3 GB", said)
    words = " ".join(said.split())
    assert "does its group again, 7 documents or 14 s." in words
    assert "here 10 documents in 0.1 s" in words


def test_the_rate_of_a_run_leaves_its_start_out(example: Any) -> None:
    from m2rag.index import AddProgress

    steps = [AddProgress(n, 3, tokens, "x", seconds, ()) for n, tokens, seconds in ((1, 100, 50.0), (3, 900, 54.0))]
    assert example.steady(steps) == (4.0, 800)
    assert example.steady(steps[:1]) == (50.0, 100)
    assert example.steady([]) == (0.0, 1)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"Text {i} tells of many things. " * (20 + i))
    return folder


def run(*arguments: object) -> str:
    done = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_trial_in_a_folder(files: Path) -> None:
    said = run(*sorted(files.iterdir()), "--workers", 1)
    assert "2 added, 0 replaced, 0 unchanged, 0 failed" in said
    assert "2 added, 0 replaced, 2 unchanged, 0 failed" in said
    assert "1,000,000 documents: storage" in said


@pytest.mark.slow
def test_the_real_thing_on_a_server(files: Path) -> None:
    with QdrantTestServer() as server:
        said = run(*sorted(files.iterdir()), "--url", f"{server.url}/papers", "--workers", 1)
    assert "2 added, 0 replaced, 2 unchanged, 0 failed" in said
    assert "tokens/s, documents of" in said


def test_a_failure_is_told_in_a_line(example: Any, files: Path) -> None:
    with pytest.raises(SystemExit, match=r"^InvalidInputError: folder is a folder: only one process can have it open"):
        example.main([str(files), "--url", "folder"])
