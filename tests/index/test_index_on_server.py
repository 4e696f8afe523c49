"""`LongDocumentIndex` on a Qdrant server: the same documents, hits and promises as in a folder."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_embedder import HashEmbedder
from qdrant_client import QdrantClient
from support.qdrant_server import QdrantTestServer

from m2rag.errors import IndexMismatchError, IndexNotFoundError, PointTooLargeError, StoreError
from m2rag.index import Document, Hit, LongDocumentIndex, read_info
from m2rag.index.documents import point_id
from m2rag.stores import open_store, qdrant_server
from m2rag.stores.retry import Patience

WORKER = Path(__file__).with_name("index_worker.py")
N_DOCUMENTS = 24


def document(i: int, more: str = "") -> Document:
    draw = random.Random(i)  # no two documents are equally near to a query
    sentences = [" ".join(f"w{draw.randrange(40)}" for _ in range(draw.randrange(4, 12))) + "." for _ in range(5)]
    text = f"Document {i}. " + "\n".join(sentences) + more
    return Document(f"folder/{i:02}.txt", text, f"Number {i}", {"even": i % 2 == 0, "n": i, "tags": [f"t{i % 3}"]})


DOCUMENTS = [document(i) for i in range(N_DOCUMENTS)]


def assert_same_hits(left: list[Hit], right: list[Hit]) -> None:
    assert [hit.id for hit in left] == [hit.id for hit in right]
    for one, other in zip(left, right, strict=True):
        assert (one.title, one.metadata, one.n_tokens, one.truncated) == (
            *(other.title, other.metadata, other.n_tokens, other.truncated),
        )
        assert one.score == pytest.approx(other.score, abs=1e-3)
        assert [(p.start, p.end, p.text) for p in one.passages] == [(p.start, p.end, p.text) for p in other.passages]


def test_as_in_a_folder(tmp_path: Path, collection_url: str) -> None:
    with (
        LongDocumentIndex(tmp_path / "index", HashEmbedder()) as folder,
        LongDocumentIndex(collection_url, HashEmbedder()) as server,
    ):
        both = (folder, server)
        assert server.location == collection_url
        for index in both:
            report = index.add(DOCUMENTS)
            assert (report.added, report.failed) == (N_DOCUMENTS, [])
            again = index.add([*DOCUMENTS[1:], document(0, " More.")])
            assert (again.unchanged, again.replaced, again.added) == (N_DOCUMENTS - 1, 1, 0)
            assert index.delete(["folder/05.txt", "missing"]) == 1
            assert len(index) == N_DOCUMENTS - 1 and "folder/05.txt" not in index and "folder/06.txt" in index
        assert folder.ids() == server.ids()
        assert folder.get("folder/00.txt") == server.get("folder/00.txt") == document(0, " More.")
        assert folder.modes == server.modes
        for mode in folder.modes:
            for options in ({"k": 3}, {"filter": {"even": True, "tags": "t1"}}, {"rescore": 0.5}, {"n_passages": 1}):
                asked = {"mode": mode, **options}
                left, right = (index.search("w7 w7 w7 w11 w11 w23", **asked) for index in both)  # type: ignore[arg-type]
                assert_same_hits(left, right)
                assert left
        there, here = folder.info(), server.info()
        assert {**there, "path": "", "size_bytes": None, "created": ""} == {**here, "path": "", "created": ""}
    info = read_info(collection_url)
    assert info["documents"] == N_DOCUMENTS - 1 and info["path"] == collection_url


def test_another_model(collection_url: str) -> None:
    with LongDocumentIndex(collection_url, HashEmbedder()) as index:
        index.add(DOCUMENTS[:2])
    for other in (HashEmbedder(fingerprint="other:64"), HashEmbedder(dimension=32)):
        with pytest.raises(IndexMismatchError) as caught:
            LongDocumentIndex(collection_url, other)
        assert "fake:64" in caught.value.stored and collection_url in str(caught.value)
    with LongDocumentIndex(collection_url, HashEmbedder(), create=False) as index:
        assert len(index) == 2


def test_nothing_there(collection_url: str) -> None:
    with pytest.raises(IndexNotFoundError):
        LongDocumentIndex(collection_url, HashEmbedder(), create=False)
    with pytest.raises(IndexNotFoundError):
        read_info(collection_url)


def test_made_anew_by_others_between_two_calls(double: QdrantTestServer) -> None:
    """Checked before every write and query, not only when it is opened."""
    url = f"{double.url}/docs"
    with LongDocumentIndex(url, HashEmbedder()) as index:
        index.add(DOCUMENTS[:2])
        client = QdrantClient(double.url, check_compatibility=False)
        client.delete_collection("docs")
        client.close()
        with LongDocumentIndex(url, HashEmbedder(fingerprint="other:64")) as other:
            for call in (lambda: index.search("w1"), lambda: index.add(DOCUMENTS[3])):
                with pytest.raises(IndexMismatchError, match="other:64"):
                    call()
            assert len(other) == 0


def test_a_document_too_large_for_the_server(collection_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported by name; the others of its batch are stored."""
    monkeypatch.setattr(qdrant_server, "MAX_REQUEST_BYTES", 10_000)
    monkeypatch.setattr(qdrant_server, "MAX_POINT_BYTES", 50_000)
    large = Document("large", "word " * 20_000)
    with LongDocumentIndex(collection_url, HashEmbedder(max_tokens=10**6)) as index:
        index.add(DOCUMENTS[0])
        report = index.add([document(0, " More."), *DOCUMENTS[1:3], large, DOCUMENTS[3]])
        assert (report.added, report.replaced, len(index)) == (3, 1, 4)
        assert [(failure.id, type(failure.cause)) for failure in report.failed] == [("large", PointTooLargeError)]
        assert "split it" in str(report.failed[0].cause) and "large" not in index
        assert index.add(large).failed[0].id == "large"


def quick(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(qdrant_server, "Patience", lambda: Patience(seconds, first_pause=0.02, longest_pause=0.1))


@pytest.mark.parametrize("done_first", [False, True], ids=["before", "after"])
def test_the_connection_breaks_in_the_middle(
    double: QdrantTestServer, monkeypatch: pytest.MonkeyPatch, done_first: bool
) -> None:
    """Some writes break, before or after they are done: all documents are there, each embedded and counted once."""
    quick(monkeypatch, 30)
    embedder = HashEmbedder()
    with LongDocumentIndex(f"{double.url}/docs", embedder) as index:
        double.fail(3, "PUT .*/points", status=0, done_first=done_first)
        report = index.add(DOCUMENTS, batch_tokens=100)
        assert (report.added, report.replaced, report.failed, len(index)) == (N_DOCUMENTS, 0, [], N_DOCUMENTS)
        assert len(embedder.embedded) == N_DOCUMENTS


def test_the_server_goes_away_in_the_middle_and_comes_back_later(
    double: QdrantTestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was reported as done is there; the next run embeds the rest and nothing else."""
    quick(monkeypatch, 0.3)
    done: list[int] = []
    index = LongDocumentIndex(f"{double.url}/docs", HashEmbedder())

    def watch(state: object) -> None:
        done.append(state.done)  # type: ignore[attr-defined]
        if done[-1] >= 8:
            double.stop()

    with pytest.raises(StoreError, match="cannot be reached.*run it again"):
        index.add(DOCUMENTS, batch_tokens=60, progress=watch)
    index.close()
    double.start()
    embedder = HashEmbedder()
    with LongDocumentIndex(f"{double.url}/docs", embedder) as index:
        there = len(index)
        assert done[-1] <= there < N_DOCUMENTS
        report = index.add(DOCUMENTS)
        assert (report.unchanged, report.added) == (there, N_DOCUMENTS - there) and len(index) == N_DOCUMENTS
    assert len(embedder.embedded) == N_DOCUMENTS - there


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for i in range(N_DOCUMENTS):
        (folder / f"{i:02}.txt").write_text(DOCUMENTS[i].text)
    return folder


def kill_when(url: str, docs: Path, n_done: int, wait: Callable[[], None]) -> None:
    """Start indexing in another process and kill it at a moment after `n_done` documents."""
    command = [sys.executable, str(WORKER), "add", url, str(docs), "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for said in process.stdout:
        if said.startswith("done") and int(said.split()[1]) >= n_done:
            break
    wait()
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was over before it was killed"


def test_killed_and_run_again_it_is_the_same_index(double: QdrantTestServer, docs: Path) -> None:
    url = f"{double.url}/docs"
    n_before = 0
    for attempt, n_done in enumerate((2, 9, 16)):
        kill_when(url, docs, n_done, lambda pause=0.007 * attempt: time.sleep(pause))  # type: ignore[misc]
        n_there = double.collections["docs"].shard.count(_all())
        assert n_there >= max(n_done, n_before), "what was counted as done got lost"
        n_before = n_there
    embedder = HashEmbedder()
    with LongDocumentIndex(url, embedder) as index:
        report = index.add(docs)
        assert (report.unchanged, report.added) == (n_before, N_DOCUMENTS - n_before)
        assert len(index) == N_DOCUMENTS and len(embedder.embedded) == N_DOCUMENTS - n_before
        names = index.ids()
    with LongDocumentIndex(f"{double.url}/undisturbed", HashEmbedder()) as index:
        index.add(docs)
    fields = ("id", "hash", "title", "text", "metadata", "n_tokens", "starts", "ends")
    found = []
    for name in ("docs", "undisturbed"):
        store = open_store(f"{double.url}/{name}")
        ids = [point_id(id) for id in names]
        found.append(store.retrieve(ids, payload=fields, vectors=("doc", "passages")))
        assert store.count() == N_DOCUMENTS
        store.close()
    disturbed, undisturbed = found
    assert disturbed.keys() == undisturbed.keys() and len(disturbed) == N_DOCUMENTS
    for id, point in disturbed.items():
        assert point.payload == undisturbed[id].payload
        for vector in ("doc", "passages"):
            np.testing.assert_array_equal(point.vectors[vector], undisturbed[id].vectors[vector])


def _all() -> object:
    import qdrant_edge

    return qdrant_edge.CountRequest(exact=True)
