"""Snapshots of a folder: whole or not there, and nothing unpacked that is not of an index."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from support.full_disk import writes_end_after

from m2rag.errors import IndexLockedError, StoreError
from m2rag.index import restore_index
from m2rag.stores import EdgeStore, Manifest, Point, Schema, SnapshotStore, VectorSpec, snapshots
from m2rag.stores.folder import FolderLock

MANIFEST = Manifest("fake:8", 8, "2025-01-01T00:00:00+00:00", "0.1.0", model="fake")
SCHEMA = Schema((VectorSpec("doc", 8),), {"id": "keyword"})
POINTS = [Point(UUID(int=i), {"doc": np.eye(8, dtype=np.float32)[i % 8]}, {"id": f"d{i}"}) for i in range(20)]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("snapshots")
    store = EdgeStore(folder / "index", create=(MANIFEST, SCHEMA))
    store.upsert(POINTS)
    store.snapshot(folder / "snapshot.tar.gz")
    store.close()
    return folder / "snapshot.tar.gz"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where to restore to; whatever happens, nothing but a whole index is left around it."""
    folder = tmp_path / "around" / "index"
    folder.parent.mkdir()
    yield folder
    if (folder / "m2rag.json").exists():
        store = EdgeStore(folder)
        assert store.count() == len(POINTS)
        store.close()
    assert {path.name for path in folder.parent.iterdir()} <= {"index"}


def test_restored_it_is_the_same_index(snapshot: Path, place: Path) -> None:
    place.mkdir()  # empty: fine
    assert restore_index(snapshot, place) == {
        "index": str(place),
        "documents": 20,
        "fingerprint": "fake:8",
        "model": "fake",
    }
    store = EdgeStore(place)
    assert isinstance(store, SnapshotStore) and store.manifest == MANIFEST
    found = store.retrieve([point.id for point in POINTS], payload=("id",), vectors=("doc",))
    for point in POINTS:
        assert found[point.id].payload == point.payload
        np.testing.assert_array_equal(found[point.id].vectors["doc"], point.vectors["doc"])
    assert store.values("id") == {f"d{i}": 1 for i in range(20)}
    store.upsert([POINTS[0]])
    store.close()


def test_what_is_there_is_not_overwritten(snapshot: Path, place: Path, tmp_path: Path) -> None:
    place.mkdir()
    (place / "thesis.txt").write_text("important")
    before = snapshot.read_bytes()
    with pytest.raises(StoreError, match="restore to a new or empty folder"):
        restore_index(snapshot, place)
    with pytest.raises(StoreError, match="to a folder, not to http"):
        restore_index(snapshot, "http://localhost:6333/docs")
    store = EdgeStore(tmp_path / "own", create=(MANIFEST, SCHEMA))
    with pytest.raises(StoreError, match="there already"):
        store.snapshot(snapshot)
    with pytest.raises(StoreError, match="lies in the index itself"):
        store.snapshot(tmp_path / "own" / "deep" / "snapshot")
    with pytest.raises(StoreError, match="cannot be written: No such file"):
        store.snapshot(tmp_path / "nowhere" / "snapshot")
    store.close()
    assert snapshot.read_bytes() == before and [path.name for path in place.iterdir()] == ["thesis.txt"]
    (place / "thesis.txt").unlink()


def test_files_that_are_cut_or_changed(snapshot: Path, place: Path, tmp_path: Path) -> None:
    whole = snapshot.read_bytes()
    broken = tmp_path / "broken"
    for n in (0, 10, 200, len(whole) // 2, len(whole) - 8, len(whole) - 1):
        broken.write_bytes(whole[:n])
        with pytest.raises(StoreError, match="not a snapshot|no snapshot"):
            restore_index(broken, place)
        assert not place.exists()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 0xFF
    for content in (bytes(changed), b"no archive at all", gzip.compress(b"no archive"), gzip.compress(b"")):
        broken.write_bytes(content)
        with pytest.raises(StoreError, match="not a snapshot|no snapshot"):
            restore_index(broken, place)
        assert not place.exists()
    with pytest.raises(StoreError, match="there is no file"):
        restore_index(tmp_path / "none", place)


def members(snapshot: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(snapshot) as archive:
        return [(one, archive.extractfile(one).read() if one.isreg() else b"") for one in archive]  # type: ignore[union-attr]


def packed(place: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(place, "w:gz", compresslevel=1) as archive:
        for info, content in entries:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return place


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, b"evil" if kind == tarfile.REGTYPE else b""


@pytest.mark.parametrize(
    "bad",
    [
        entry("../evil"),
        entry("shard/../../evil"),
        entry("/m2rag-evil"),
        entry("evil"),
        entry("shard/..\\evil"),
        entry("shard/c:evil"),
        entry("shard/evil", tarfile.SYMTYPE, "/etc/passwd"),
        entry("shard/segments", tarfile.SYMTYPE, "/tmp"),
        entry("shard/evil", tarfile.LNKTYPE, "/etc/passwd"),
        entry("shard/evil", tarfile.FIFOTYPE),
        entry("shard/evil", tarfile.CHRTYPE),
        entry("m2rag.json"),
    ],
    ids=lambda one: f"{one[0].name}-{one[0].type.decode()}",
)
def test_entries_that_are_no_files_of_an_index(
    snapshot: Path, place: Path, tmp_path: Path, bad: tuple[tarfile.TarInfo, bytes]
) -> None:
    first, *rest = members(snapshot)
    last = bad[0].name == "../evil"  # is enough: unpacking all of it takes a second
    for entries in ([first, bad, *rest], *([[first, *rest, bad]] if last else [])):
        with pytest.raises(StoreError, match="is not a snapshot of an index: it holds"):
            restore_index(packed(tmp_path / "bad", entries), place)
        assert not place.exists() and not list(tmp_path.rglob("evil*")) and not Path("/m2rag-evil").exists()


def test_the_same_file_twice_and_no_manifest_first(snapshot: Path, place: Path, tmp_path: Path) -> None:
    first, *rest = members(snapshot)
    a_file = next(one for one in rest if one[0].isreg())
    with pytest.raises(StoreError, match="cannot be restored"):
        restore_index(packed(tmp_path / "twice", [first, *rest, a_file]), place)
    with pytest.raises(StoreError, match=r"does not begin with m2rag\.json"):
        restore_index(packed(tmp_path / "late", [*rest, first]), place)
    with pytest.raises(StoreError, match="failed to open|damaged"):
        restore_index(packed(tmp_path / "alone", [first]), place)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"format": 99}, "upgrade m2rag"), ({"dimension": "x"}, "damaged"), ({"fingerprint": None}, None)],
)
def test_manifests(snapshot: Path, place: Path, tmp_path: Path, change: dict[str, object], said: str | None) -> None:
    (info, content), *rest = members(snapshot)
    changed = json.dumps({**json.loads(content), **change}).encode()
    file = packed(tmp_path / "changed", [(info, changed), *rest])
    if said is None:  # not for us to judge: the embedder's is compared when it is opened with one
        restore_index(file, place)
    else:
        with pytest.raises(StoreError, match=said):
            restore_index(file, place)


def test_bombs(snapshot: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = members(snapshot)
    monkeypatch.setattr(snapshots, "FREE_BYTES", 50_000_000)
    monkeypatch.setattr(snapshots, "MAX_RATIO", 10)
    bomb = packed(tmp_path / "bomb", [first, (tarfile.TarInfo("shard/zeros"), bytes(60_000_000)), *rest])
    with pytest.raises(StoreError, match="unpacks to more than"):
        restore_index(bomb, place)
    monkeypatch.undo()
    monkeypatch.setattr(snapshots, "MAX_FILES", 5)
    with pytest.raises(StoreError, match="or 5 files"):
        restore_index(snapshot, place)


def test_a_full_disk(snapshot: Path, place: Path, tmp_path: Path) -> None:
    with writes_end_after(1000):
        with pytest.raises(StoreError, match="cannot be restored.*File too large"):
            restore_index(snapshot, place)
        store = EdgeStore(snapshot.with_name("index"))
        with pytest.raises(StoreError, match="cannot be written.*File too large"):
            store.snapshot(tmp_path / "new")
    store.close()
    assert not place.exists() and not list(tmp_path.glob("*new*"))


SLOW = """
import sys, time
from pathlib import Path
from m2rag.index import restore_index
from m2rag.stores import snapshots
copy = snapshots._copy
def slow(*given):
    copy(*given)
    sys.stdout.write("file\\n"); sys.stdout.flush()
    time.sleep(0.05)
snapshots._copy = slow
restore_index(*sys.argv[1:])
"""


@pytest.mark.parametrize("n_files", [1, 8])
def test_killed_while_it_is_restored(snapshot: Path, place: Path, n_files: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(snapshot), str(place)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(n_files):
        assert process.stdout.readline() == "file\n"
    with pytest.raises(IndexLockedError):
        restore_index(snapshot, place)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = place.parent / ".index.restoring"
    assert not place.exists() and left.exists() and not (left / "m2rag.json").exists()
    restore_index(snapshot, place)


def test_a_killed_restore_that_another_finishes(snapshot: Path, place: Path) -> None:
    """The lock of the dead one is no obstacle, and that of a living one is."""
    work = place.parent / ".index.restoring"
    work.mkdir()
    (work / "shard").mkdir()
    (work / "shard" / "old").write_text("x")
    lock = FolderLock(work)
    with pytest.raises(IndexLockedError):
        restore_index(snapshot, place)
    lock.release()
    started = time.monotonic()
    restore_index(snapshot, place)
    assert not (place / "shard" / "old").exists() and time.monotonic() - started < 30
    assert os.path.exists(place / "m2rag.json")
