"""The folder of an index on disk: who has it open, and what it was built with."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from m2rag.errors import IndexLockedError, StoreError
from m2rag.stores.base import Manifest
from m2rag.stores.manifest import manifest_from_json, manifest_to_json

MANIFEST_FILE = "m2rag.json"
LOCK_FILE = "m2rag.lock"


class FolderLock:
    """One opener per index folder. The operating system drops the lock when the process ends, however it ends.

    Raises:
        IndexLockedError: the folder is open elsewhere, in another process or in this one.
        StoreError: the lock file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        path = self._path = folder / LOCK_FILE
        try:
            self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(
                f"the index at {folder} cannot be opened, its folder must be writable: {error.strerror}"
            ) from error
        try:
            _lock(self._file)
        except OSError as error:
            holder = os.pread(self._file, 32, 0).decode("ascii", "replace") if hasattr(os, "pread") else ""
            self.release()
            who = "this process" if holder == str(os.getpid()) else f"another process (pid {holder or 'unknown'})"
            raise IndexLockedError(
                f"the index at {folder} is open in {who}: close it there or wait until it is done. "
                "The lock goes away by itself with the process that holds it"
            ) from error
        os.ftruncate(self._file, 0)
        os.write(self._file, str(os.getpid()).encode("ascii"))

    @property
    def is_in_place(self) -> bool:
        """Whether the folder is still the one that was locked: neither removed nor put in place of another."""
        try:
            return self._file is not None and os.path.samestat(os.fstat(self._file), os.stat(self._path))
        except OSError:
            return False

    def release(self) -> None:
        """Let others open the folder."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


if sys.platform == "win32":
    import msvcrt

    def _lock(file: int) -> None:
        os.lseek(file, 1 << 20, os.SEEK_SET)  # a byte past the pid: Windows forbids reading locked bytes
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(file: int) -> None:
        # flock and not lockf: it belongs to the open file, so a second opener in this process is kept out too.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest so that a reader sees all of it or none."""
    partial = folder / f"{MANIFEST_FILE}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(manifest_to_json(manifest), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / MANIFEST_FILE)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an index folder; None where there is none.

    Raises:
        StoreError: it is there and cannot be used: damaged, or written by a newer version.
    """
    path = folder / MANIFEST_FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}): restore it or build the index anew") from error
    return manifest_from_json(stored, index=str(folder), kept_in=str(path))


def size_on_disk(folder: Path) -> int:
    """Bytes taken by all files under a folder; sparse files count by the blocks they use."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.stat(os.path.join(where, name))
            except FileNotFoundError:  # the engine drops old segments while we look
                continue
            total += stat.st_blocks * 512 if hasattr(stat, "st_blocks") else stat.st_size
    return total
