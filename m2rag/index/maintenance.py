"""What can be done with an index without its embedder: delete documents, write it into one file and back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from m2rag.errors import StoreError
from m2rag.index.documents import point_id
from m2rag.stores import EdgeStore, SnapshotStore, VectorStore, open_store
from m2rag.stores.opening import is_url
from m2rag.stores.snapshots import restore_snapshot as unpack

DELETED_AT_ONCE = 1000


def delete_documents(path: str | Path, ids: str | Iterable[str], *, api_key: str | None = None) -> list[str]:
    """Remove documents of an index by id; returns the ids that were there.

    Raises:
        IndexNotFoundError, IndexLockedError, StoreError: it cannot be opened or written.
    """
    store = open_store(path, api_key=api_key)
    try:
        return delete_from(store, ids)
    finally:
        store.close()


def delete_from(store: VectorStore, ids: str | Iterable[str]) -> list[str]:
    """Remove documents of an open store by id; returns the ids that were there, each once."""
    wanted = {point_id(id): id for id in ([ids] if isinstance(ids, str) else ids)}
    every, found = list(wanted), []
    for start in range(0, len(every), DELETED_AT_ONCE):
        there = store.retrieve(every[start : start + DELETED_AT_ONCE])
        if there:
            store.delete(list(there))
        found += [wanted[id] for id in every[start : start + DELETED_AT_ONCE] if id in there]
    if found:
        store.flush()
    return found


def snapshot_index(path: str | Path, file: str | Path, *, api_key: str | None = None) -> int:
    """Write an index into one new file; returns the number of its documents. See `LongDocumentIndex.snapshot`."""
    store = open_store(path, api_key=api_key)
    try:
        write_snapshot_of(store, file)
        return store.count()
    finally:
        store.close()


def write_snapshot_of(store: VectorStore, file: str | Path) -> None:
    """Write an open store into one new file.

    Raises:
        StoreError: the store has no snapshots, or the file is there or cannot be written.
    """
    if not isinstance(store, SnapshotStore):
        raise StoreError(
            f"the index at {store.location} is on a server, which makes its own snapshots and keeps them: of a Qdrant "
            "server by POST /collections/NAME/snapshots, of MongoDB by its backups or mongodump"
        )
    store.snapshot(Path(file))


def restore_index(file: str | Path, folder: str | Path) -> dict[str, Any]:
    """Make an index folder of a snapshot: all of it or nothing, whatever happens.

    Args:
        file: what `snapshot` wrote. It is checked; do not restore files of people you do not trust with your data all
            the same: what the engine reads is up to who wrote it.
        folder: a new or empty folder.

    Returns:
        `index`, `documents`, `fingerprint`, `model`.

    Raises:
        IndexLockedError: another process is restoring to this folder.
        StoreError: the folder holds something, the file is no snapshot, is damaged or of a newer version, or there is
            no room.
    """
    if is_url(str(folder)):
        raise StoreError(f"a snapshot can be restored to a folder, not to {folder}: index the documents there anew")
    documents = 0

    def check(unpacked: Path) -> None:
        nonlocal documents
        store = EdgeStore(unpacked)
        try:
            documents = store.count()
        finally:
            store.close()

    manifest = unpack(Path(file), Path(folder), check)
    return {
        "index": str(folder),
        "documents": documents,
        "fingerprint": manifest.fingerprint,
        "model": manifest.model,
    }
