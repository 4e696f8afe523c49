"""An index written into one file and back, and documents deleted, without its embedder."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from fake_embedder import HashEmbedder

from m2rag.errors import IndexNotFoundError, StoreError
from m2rag.index import (
    AsyncLongDocumentIndex,
    Document,
    LongDocumentIndex,
    delete_documents,
    restore_index,
    snapshot_index,
)

DOCUMENTS = [Document(f"d{i}", f"Document {i} is about w{i}. More of it.", metadata={"n": i}) for i in range(40)]


def test_a_snapshot_is_the_index_at_one_moment(tmp_path: Path) -> None:
    """Searches go on while it is made, and writers wait: what it holds is what `add` calls had finished."""
    file, failures = tmp_path / "one.tar.gz", []
    stop = threading.Event()
    embedder = HashEmbedder(dimension=1024)  # no two words share a place
    with LongDocumentIndex(tmp_path / "index", embedder) as index:
        index.add(DOCUMENTS[:20])

        def search() -> None:
            while not stop.is_set():
                if index.search("w7", 1)[0].id != "d7":
                    failures.append("search")

        def write() -> None:
            for one in DOCUMENTS[20:]:
                index.add(one)
                index.delete("d0")

        threads = [threading.Thread(target=search), threading.Thread(target=write)]
        for thread in threads:
            thread.start()
        index.snapshot(file)
        threads[1].join()
        stop.set()
        threads[0].join()
        assert not failures and len(index) == 39
    n = restore_index(file, tmp_path / "restored")["documents"]
    with LongDocumentIndex(tmp_path / "restored", embedder, create=False) as restored:
        ids = set(restored.ids())
        assert len(ids) == n == len(restored) and ids >= {f"d{i}" for i in range(1, 20)}
        added = sorted(int(id[1:]) for id in ids if int(id[1:]) >= 20)
        assert added == list(range(20, 20 + len(added))), "in the order they were written"
        for id in ids:
            assert restored.search(restored.get(id).text, 1, mode="dense")[0].id == id  # type: ignore[union-attr]
            assert restored.search("w" + id[1:], 1, mode="lexical")[0].id == id
        assert restored.add(DOCUMENTS).added == 40 - n


def test_without_the_embedder(tmp_path: Path) -> None:
    with LongDocumentIndex(tmp_path / "index", HashEmbedder()) as index:
        index.add(DOCUMENTS)
    assert snapshot_index(tmp_path / "index", tmp_path / "file") == 40
    assert delete_documents(tmp_path / "index", ["d3", "d3", "no", "d1"]) == ["d3", "d1"]
    restore_index(tmp_path / "file", tmp_path / "again")
    for name, n in (("index", 38), ("again", 40)):
        with LongDocumentIndex(tmp_path / name, HashEmbedder(), create=False) as index:
            assert len(index) == n
            assert index.delete(["d1", "d2"]) == n - 38 + (n == 38)
    with pytest.raises(IndexNotFoundError):
        delete_documents(tmp_path / "nowhere", ["d1"])
    assert not (tmp_path / "nowhere").exists()


def test_on_a_server(tmp_path: Path, collection_url: str) -> None:
    with LongDocumentIndex(collection_url, HashEmbedder()) as index:
        index.add(DOCUMENTS[:3])
        with pytest.raises(StoreError, match="makes its own snapshots"):
            index.snapshot(tmp_path / "file")
    assert delete_documents(collection_url, ["d2", "d9"]) == ["d2"] and not (tmp_path / "file").exists()


def test_async(tmp_path: Path) -> None:
    async def use() -> None:
        async with AsyncLongDocumentIndex(LongDocumentIndex(tmp_path / "index", HashEmbedder())) as index:
            await index.add(DOCUMENTS[:2])
            await index.make_filterable("n", "integer")
            assert (await index.info())["filterable"] == {"n": "integer"}
            await index.snapshot(tmp_path / "file")

    asyncio.run(use())
    assert restore_index(tmp_path / "file", tmp_path / "again")["documents"] == 2


def test_one_id_is_one_id(tmp_path: Path) -> None:
    with LongDocumentIndex(tmp_path / "index", HashEmbedder()) as index:
        index.add([Document(id, "Some text.") for id in ("ab", "a", "b")])
    assert delete_documents(tmp_path / "index", "ab") == ["ab"]
    with LongDocumentIndex(tmp_path / "index", HashEmbedder()) as index:
        assert index.ids() == ["a", "b"] and index.delete("a") == 1 and index.ids() == ["b"]
