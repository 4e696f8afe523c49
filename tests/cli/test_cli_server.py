"""`m2rag index`, `search` and `info` with a URL for a place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.qdrant_server import QdrantTestServer

from m2rag.stores import qdrant_server
from m2rag.stores.retry import Patience

KEY = "s3cr3t-key"


@pytest.fixture
def server() -> Iterator[QdrantTestServer]:
    with QdrantTestServer(api_key=KEY) as running:
        yield running


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_index_search_info(
    run, data, server: QdrantTestServer, documents: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{server.url}/papers"
    refused = run("index", documents, "-i", url, "-m", model)
    assert refused.exit_code == 1 and "refuses access" in refused.stderr and "QDRANT_API_KEY" in refused.stderr

    told = run("index", documents, "-i", url, "-m", model, "--api-key", KEY)
    assert told.exit_code == 0 and f"{url}: 3 documents (3 added" in told.stdout
    assert f"--index {url}" in told.stdout and KEY not in told.stdout + told.stderr

    monkeypatch.setenv("QDRANT_API_KEY", KEY)
    again = data(run("index", documents, "-i", url, "--json"))  # no --model: the collection knows
    assert (again["index"], again["unchanged"], again["added"]) == (url, 3, 0)
    found = data(run("search", "old houses near rivers", "-i", url, "--json", "-k", "1", "-f", "suffix=.md"))
    assert found["index"] == url and [hit["id"] for hit in found["hits"]] == ["rivers.md"]
    assert found["hits"][0]["passages"]
    info = data(run("info", "-i", url, "--json"))
    assert (info["path"], info["documents"], info["size_bytes"]) == (url, 3, None)
    told = run("info", "-i", url)
    assert told.exit_code == 0 and KEY not in told.stdout


def test_nothing_there(run, server: QdrantTestServer) -> None:
    server.api_key = None
    url = f"{server.url}/papers"
    told = run("search", "cats", "-i", url)
    assert (
        told.exit_code == 1
        and f"no index at {url}" in told.stderr
        and f"m2rag index PATHS --index {url}" in told.stderr
    )


def test_nobody_answers(run, server: QdrantTestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qdrant_server, "Patience", lambda: Patience(seconds=0.1))
    server.stop()
    told = run("info", "-i", f"{server.url}/papers")
    assert told.exit_code == 1 and "cannot be reached" in told.stderr and "Traceback" not in told.stderr


@pytest.mark.parametrize("url", ["https://me:s3cr3t-key@host/docs", "other://me:s3cr3t-key@host/docs"])
def test_urls_that_cannot_be_opened(run, url: str) -> None:
    told = run("search", "cats", "-i", url)
    assert told.exit_code == 1 and "Error" in told.stderr and KEY not in told.stderr


def test_a_file_is_no_place(run, documents: Path) -> None:
    assert run("search", "cats", "-i", documents / "cats.txt").exit_code == 2
    assert run("info", "-i", documents / "cats.txt").exit_code == 2
