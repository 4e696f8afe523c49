"""What goes wrong with a store, in a folder and on a server: an error that says so, and nothing done that is not."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from fake_embedder import HashEmbedder
from qdrant_client import QdrantClient
from support.full_disk import writes_end_after

from m2rag.errors import IndexLockedError, IndexMismatchError, NonFiniteError, StoreError
from m2rag.index import AddProgress, Document, LongDocumentIndex
from m2rag.stores import qdrant_edge, qdrant_server

DOCUMENTS = [Document(f"d{i}", f"Document {i} is about w{i}.") for i in range(12)]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(params=["folder", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "index") if request.param == "folder" else request.getfixturevalue("collection_url")


def is_folder(place: str) -> bool:
    return "://" not in place


def test_another_model_or_dimension(place: str) -> None:
    with LongDocumentIndex(place, HashEmbedder()) as index:
        index.add(DOCUMENTS[:3])
    for other in (HashEmbedder(fingerprint="other:64"), HashEmbedder(dimension=32)):
        with pytest.raises(IndexMismatchError) as caught:
            LongDocumentIndex(place, other)
        assert "fake:64 (64 dimensions)" in str(caught.value)
        assert f"{other.fingerprint} ({other.dimension} dimensions)" in str(caught.value)
    embedder = HashEmbedder()
    with LongDocumentIndex(place, embedder) as index:
        embedder.fingerprint = "changed:64"
        for call in (lambda: index.add(DOCUMENTS), lambda: index.search("w1")):
            with pytest.raises(IndexMismatchError, match="changed:64"):
                call()
        assert len(index) == 3


def test_vectors_of_another_size(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with LongDocumentIndex(place, HashEmbedder()) as index:
        monkeypatch.setattr(HashEmbedder, "vector", lambda self, text: np.ones(32, dtype=np.float32) / 32**0.5)
        with pytest.raises((IndexMismatchError, ValueError)):
            index.add(DOCUMENTS)
        with pytest.raises(IndexMismatchError, match=r"shape \(32,\)"):
            index.search("w1")
        assert len(index) == 0


def test_not_a_number(place: str) -> None:
    embedder = HashEmbedder(poison={"w5": "nan"})
    with LongDocumentIndex(place, embedder) as index:
        report = index.add(DOCUMENTS)
        assert [(one.id, type(one.cause)) for one in report.failed] == [("d5", NonFiniteError)]
        assert (report.added, len(index), "d5" in index) == (11, 11, False)
        embedder.embed_query = lambda text: np.full(64, np.nan, dtype=np.float32)  # type: ignore[method-assign]
        with pytest.raises(NonFiniteError, match="query"):
            index.search("w1")


def test_a_document_of_ten_megabytes(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may refuse it, which is told of this document alone; a folder takes it."""
    monkeypatch.setattr(qdrant_server, "MAX_POINT_BYTES", 8_000_000)
    large = Document("large", "w1 " + "x" * 10_000_000)
    with LongDocumentIndex(place, HashEmbedder()) as index:
        report = index.add([DOCUMENTS[0], large, DOCUMENTS[1]])
        if is_folder(place):
            found = index.get("large")
            assert (report.added, report.failed) == (3, []) and found is not None and found.text == large.text
        else:
            [failure] = report.failed
            assert failure.id == "large" and "split it into volumes" in str(failure.cause) and report.added == 2


def test_gone_while_it_is_open(place: str, qdrant: QdrantClient) -> None:
    with LongDocumentIndex(place, HashEmbedder()) as index:
        index.add(DOCUMENTS[:3])
        if is_folder(place):
            shutil.rmtree(place)
        else:
            qdrant.delete_collection(place.rpartition("/")[2])
        with pytest.raises(StoreError, match="is gone|no index at"):
            index.add(DOCUMENTS)


def test_open_elsewhere(place: str) -> None:
    """A folder has one opener; a server's collection many, who see each other's documents."""
    with LongDocumentIndex(place, HashEmbedder()) as index:
        if is_folder(place):
            with pytest.raises(IndexLockedError, match="this process"):
                LongDocumentIndex(place, HashEmbedder())
        else:
            with LongDocumentIndex(place, HashEmbedder()) as other:
                other.add(DOCUMENTS)
                assert index.add(DOCUMENTS).unchanged == len(index) == 12


@pytest.mark.parametrize("how", ["told before", "refused by the system"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """What was told as done is there, and the next run completes it."""
    done: list[str] = []

    def told(at: AddProgress) -> None:
        done.extend(outcome.id for outcome in at.finished if outcome.state == "added")
        if how == "told before" and len(done) >= 5:
            monkeypatch.setattr(qdrant_edge.shutil, "disk_usage", lambda _: Usage(100, 99, 60_000_000))

    with LongDocumentIndex(tmp_path / "index", HashEmbedder()) as index:
        if how == "told before":
            with pytest.raises(StoreError, match="disk of the index .* is full: 60 MB are free.*run it again"):
                index.add(DOCUMENTS, batch_tokens=1, progress=told)
            assert len(done) >= 5
        else:
            with writes_end_after(1000), pytest.raises(StoreError, match="failed to"):
                index.add(DOCUMENTS, batch_tokens=1, progress=told)
    monkeypatch.undo()
    with LongDocumentIndex(tmp_path / "index", HashEmbedder()) as index:
        there = index.ids()
        assert set(there) >= set(done) and len(there) < 12
        report = index.add(DOCUMENTS)
        assert (report.unchanged, report.added, len(index)) == (len(there), 12 - len(there), 12)


def test_a_disk_too_full_to_optimize(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with LongDocumentIndex(tmp_path / "index", HashEmbedder()) as index:
        index.add(DOCUMENTS)
        monkeypatch.setattr(qdrant_edge.shutil, "disk_usage", lambda _: Usage(100, 99, 60_000_000))
        index.optimize()
        assert "too little room" in caplog.text and len(index.search("w1")) == 10
