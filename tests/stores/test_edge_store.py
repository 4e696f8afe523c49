"""The store by itself: creation, damage, and what the engine does with values."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import pytest
import qdrant_edge as engine

from m2rag.errors import IndexLockedError, IndexNotFoundError, InvalidInputError, StoreError
from m2rag.stores import EdgeStore, Manifest, Point, Schema, VectorSpec, VectorStore, open_store

MANIFEST = Manifest("fake:8", 8, "2025-01-01T00:00:00+00:00", "0.1.0")
SCHEMA = Schema(
    (VectorSpec("doc", 8), VectorSpec("passages", 8, multi=True, searched=False)),
    {"id": "keyword", "n_tokens": "integer"},
)
NEW = (MANIFEST, SCHEMA)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "parent" / "index"


@pytest.fixture
def store(folder: Path) -> Iterator[EdgeStore]:
    opened = EdgeStore(folder, create=NEW)
    yield opened
    opened.close()


def unit(i: int) -> np.ndarray:
    return np.eye(8, dtype=np.float32)[i % 8]


def point(i: int, **payload: object) -> Point:
    return Point(UUID(int=i), {"doc": unit(i)}, {"id": f"d{i}", "n_tokens": 10 * i, **payload})


def test_it_is_a_vector_store(store: EdgeStore, folder: Path) -> None:
    assert isinstance(store, VectorStore)
    assert store.location == str(folder) and store.manifest == MANIFEST


def test_points_come_back(store: EdgeStore, folder: Path) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(5, 8)).astype(np.float32)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    payload = {"id": "a", "metadata": {"x": [1, 2.5, None, True, {"y": "z"}]}, "n_tokens": 3}
    id = uuid4()
    store.upsert([Point(id, {"doc": matrix[0], "passages": matrix}, payload)])
    store.close()
    again = open_store(folder)
    found = again.retrieve([id, uuid4()], payload=("id", "metadata"), vectors=("doc", "passages"))
    assert list(found) == [id]
    assert found[id].payload == {"id": "a", "metadata": payload["metadata"]}
    np.testing.assert_allclose(found[id].vectors["doc"], matrix[0], atol=1e-6)
    np.testing.assert_allclose(found[id].vectors["passages"], matrix, atol=1e-3)
    assert again.retrieve([id])[id].payload == {} and again.retrieve([id])[id].vectors == {}
    again.close()


def test_query_is_by_cosine_best_first(store: EdgeStore) -> None:
    store.upsert([point(i) for i in range(8)])
    query = 3 * unit(2) + 2 * unit(5)
    found = store.query("doc", query, limit=3, payload=("id",))
    assert [p.payload["id"] for p in found[:2]] == ["d2", "d5"]
    assert found[0].score == pytest.approx(3 / np.sqrt(13), abs=1e-6)


def test_upsert_replaces_and_delete_removes(store: EdgeStore) -> None:
    store.upsert([point(1, old=True), point(2)])
    store.upsert([point(1)])
    assert store.count() == 2
    assert store.retrieve([UUID(int=1)], payload=("old",))[UUID(int=1)].payload == {}
    store.delete([UUID(int=1), uuid4()])
    assert store.count() == 1 and store.values("id") == {"d2": 1}


def test_values_of_deleted_points_are_gone(store: EdgeStore) -> None:
    for turn in range(6):
        store.upsert([point(i) for i in range(turn * 5, turn * 5 + 12)])
        store.delete([point(i).id for i in range(turn * 5, turn * 5 + 7)])
        kept = range(turn * 5 + 7, turn * 5 + 12)
        assert store.values("id") == {f"d{i}": 1 for i in kept}, f"turn {turn}"
        store.delete([point(i).id for i in kept if i % 2])
        assert store.values("id") == {f"d{i}": 1 for i in kept if not i % 2}, f"turn {turn}"
        store.delete([point(i).id for i in kept])


def test_values_are_listed_before_and_after_optimizing(store: EdgeStore) -> None:
    assert store.values("id") == {}
    store.upsert([Point(UUID(int=i), {"doc": unit(i)}, {"id": f"d{i}", "n_tokens": i % 3}) for i in range(30)])
    for _ in range(2):
        assert store.values("n_tokens") == {0: 10, 1: 10, 2: 10}
        assert sorted(store.values("id")) == sorted(f"d{i}" for i in range(30))
        store.optimize()


@pytest.mark.parametrize("vector", [np.ones(5), np.full(8, np.nan), np.full(8, np.inf)], ids=["short", "nan", "inf"])
def test_a_bad_vector_writes_nothing(store: EdgeStore, vector: np.ndarray) -> None:
    for name, bad in (("doc", vector), ("passages", np.stack([vector, vector]))):
        points = [point(1), Point(UUID(int=9), {"doc": unit(1), name: bad.astype(np.float32)}, {}), point(2)]
        with pytest.raises(StoreError, match=f"vector '{name}'.*dimension 8"):
            store.upsert(points)
    assert store.count() == 0


def test_approximate_and_exact_search_agree(store: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(500, 8)).astype(np.float32)
    store.upsert([Point(UUID(int=i), {"doc": v}, {"id": str(i), "n_tokens": 1}) for i, v in enumerate(vectors)])
    store.optimize()
    exact = [p.id for p in store.query("doc", vectors[7], limit=10)]
    monkeypatch.setattr("m2rag.stores.qdrant_edge.EXACT_UP_TO", 0)
    assert [p.id for p in store.query("doc", vectors[7], limit=10)] == exact


def test_while_a_process_is_live_nothing_is_optimized(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = engine.EdgeOptimizersConfig(indexing_threshold=1)
    monkeypatch.setattr("m2rag.stores.qdrant_edge.engine.EdgeConfig", partial(engine.EdgeConfig, optimizers=small))
    store = EdgeStore(folder, create=NEW)
    vectors = np.random.default_rng(1).normal(size=(500, 8)).astype(np.float32)
    store.upsert([Point(UUID(int=i), {"doc": v}, {"id": str(i), "n_tokens": 1}) for i, v in enumerate(vectors)])
    found = []
    for live in (True, False):
        store.optimize(live=live)
        assert (store._shard.info().indexed_vectors_count > 0) != live
        found.append([(point.id, point.score) for point in store.query("doc", vectors[3], limit=9)])
    assert found[0] == found[1]
    store.close()


def test_filter_paths_with_unusual_names(store: EdgeStore) -> None:
    names = ["a.b", "a b", "ключ", "", "x[0]", "[]"]
    store.upsert([point(i, metadata={name: "v"}) for i, name in enumerate(names)])
    for i, name in enumerate(names):
        found = store.query("doc", unit(0), limit=9, filter={("metadata", name): "v"})
        assert [p.id.int for p in found] == [i]
    for name in ('a"b', "a\\b"):
        with pytest.raises(InvalidInputError, match="quote or backslash"):
            store.query("doc", unit(0), limit=9, filter={("metadata", name): "v"})


def test_nothing_there(folder: Path) -> None:
    with pytest.raises(IndexNotFoundError, match="no index at"):
        EdgeStore(folder)
    assert not folder.parent.exists()


def test_folders_with_other_things_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(StoreError, match=r"holds other things \(thesis.txt, 1 in all\)"):
        EdgeStore(tmp_path, create=NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    file = tmp_path / "thesis.txt"
    with pytest.raises(StoreError, match="Choose another folder"):
        EdgeStore(file, create=NEW)


def test_a_hidden_file_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".gitkeep").touch()
    EdgeStore(tmp_path, create=NEW).close()


def test_locked(store: EdgeStore, folder: Path) -> None:
    with pytest.raises(IndexLockedError, match="this process"):
        EdgeStore(folder)
    store.close()
    EdgeStore(folder).close()


def test_creation_cut_short_is_begun_anew_or_completed(folder: Path) -> None:
    """The three states a kill can leave: half a shard, all but the last rename, and a half-written manifest."""
    folder.mkdir(parents=True)
    (folder / "shard.unfinished").mkdir()
    (folder / "shard.unfinished" / "junk").write_text("x")
    (folder / "m2rag.json.partial").write_text("{")
    EdgeStore(folder, create=NEW).close()
    (folder / "shard").rename(folder / "shard.unfinished")
    store = EdgeStore(folder)
    assert store.count() == 0
    store.close()


def test_leftovers_of_killed_optimizations_are_removed(folder: Path) -> None:
    EdgeStore(folder, create=NEW).close()
    leftover = folder / "shard" / "temp_segments" / "segment_builder_x"
    leftover.mkdir(parents=True)
    (leftover / "data").write_bytes(b"x")
    EdgeStore(folder).close()
    assert not leftover.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "cannot be read"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        (json.dumps({"format": 1, "fingerprint": "f"}), "damaged"),
        (json.dumps({"format": 99, "m2rag_version": "9.9"}), r"format 99, written by m2rag 9.9.*upgrade"),
    ],
)
def test_bad_manifests(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "m2rag.json").write_text(content)
    with pytest.raises(StoreError, match=message):
        EdgeStore(tmp_path, create=NEW)


def test_missing_or_damaged_shard(folder: Path) -> None:
    EdgeStore(folder, create=NEW).close()
    (folder / "shard" / "edge_config.json").write_text("broken")
    for segment in (folder / "shard" / "segments").iterdir():
        (segment / "segment.json").write_text("broken")
    with pytest.raises(StoreError, match="failed to open"):
        EdgeStore(folder)
    shutil.rmtree(folder / "shard")
    with pytest.raises(StoreError, match="damaged: it has m2rag.json and no shard"):
        EdgeStore(folder, create=NEW)


def test_a_folder_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EdgeStore(folder, create=NEW).close()

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("m2rag.stores.folder.os.open", refuse)
    with pytest.raises(StoreError, match="must be writable: Permission denied"):
        EdgeStore(folder)


def test_closed(folder: Path) -> None:
    store = EdgeStore(folder, create=NEW)
    store.close()
    store.close()
    for call in (store.count, store.flush, store.optimize, lambda: store.upsert([point(1)]), lambda: store.delete([])):
        with pytest.raises(StoreError, match="is closed"):
            call()


def test_size_counts_what_is_used(store: EdgeStore) -> None:
    store.flush()
    before = store.size_bytes()
    rng = np.random.default_rng(2)
    store.upsert([point(i, text=rng.bytes(200_000).hex()) for i in range(5)])
    store.flush()
    assert store.size_bytes() - before > 1_000_000
