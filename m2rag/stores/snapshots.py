"""A folder store as one file and back: a gzipped tar, its manifest first."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from m2rag.errors import StoreError
from m2rag.stores.base import Manifest
from m2rag.stores.folder import MANIFEST_FILE, FolderLock, write_manifest
from m2rag.stores.manifest import manifest_from_json

SHARD = "shard"

MAX_RATIO, FREE_BYTES = 300, 1 << 30
"""A snapshot may unpack to this many times its size, and always to `FREE_BYTES`: the files of an empty index, which the
engine makes large and leaves empty, shrink a thousandfold, vectors and texts at most tenfold."""

MAX_FILES = 100_000
_MAX_MANIFEST = 1 << 20
_BLOCK = 1 << 16


def write_snapshot(folder: Path, file: Path) -> None:
    """Write the manifest and shard of a folder, which nobody writes to, into a new file; all of it or none.

    Raises:
        StoreError: the file is there already, lies in the folder itself, or cannot be written.
    """
    if folder.resolve() in file.resolve().parents:
        raise StoreError(f"{file} lies in the index itself: write the snapshot to another place")
    if file.exists():
        raise StoreError(f"{file} is there already: choose another name for the snapshot, or remove it")
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("wb") as raw:
            with tarfile.open(fileobj=raw, mode="w:gz", compresslevel=1, format=tarfile.PAX_FORMAT) as archive:
                archive.add(folder / MANIFEST_FILE, MANIFEST_FILE)
                archive.add(folder / SHARD, SHARD, filter=_without_leftovers)
            raw.flush()
            os.fsync(raw.fileno())
        partial.replace(file)
    except OSError as error:
        raise StoreError(f"the snapshot {file} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def restore_snapshot(file: Path, folder: Path, check: Callable[[Path], object]) -> Manifest:
    """Unpack a snapshot into a folder that is new or empty; it has its name only when all of it is there.

    Killed in between it leaves the hidden folder `.NAME.restoring` beside it, which is no index and which the next try
    clears away.

    Args:
        file: the snapshot.
        folder: where the index is to be.
        check: called with the unpacked folder before it gets its name; raises if it is no working index.

    Raises:
        IndexLockedError: another process is restoring to this folder.
        StoreError: the folder holds something, the file is no snapshot, is damaged or of a newer version, or there is
            no room.
    """
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()):
        raise StoreError(f"{folder} is there already: restore to a new or empty folder")
    work = folder.with_name(f".{folder.name}.restoring")
    with _translated(file, folder):
        size = file.stat().st_size
        work.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(work)
        try:
            shutil.rmtree(work / SHARD, ignore_errors=True)
            (work / MANIFEST_FILE).unlink(missing_ok=True)
            manifest = _unpack(file, work, max(FREE_BYTES, MAX_RATIO * size))
            # Last: a folder without it is no index.
            write_manifest(work, manifest)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        finally:
            lock.release()
    try:
        check(work)
        with _translated(file, folder):
            if folder.exists():
                folder.rmdir()
            work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return manifest


def _unpack(file: Path, work: Path, max_bytes: int) -> Manifest:
    manifest: Manifest | None = None
    total = 0
    with gzip.open(file) as unzipped, tarfile.open(fileobj=unzipped, mode="r|") as archive:
        for n, member in enumerate(archive):
            total += member.size
            if n >= MAX_FILES or total > max_bytes:
                raise _NoSnapshotError(f"it unpacks to more than {max_bytes / 1e9:.1f} GB or {MAX_FILES:,} files")
            if manifest is None:
                manifest = _manifest(archive, member, file)
                continue
            place = work / _checked(member)
            if member.isdir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            content = archive.extractfile(member)
            assert content is not None
            place.parent.mkdir(parents=True, exist_ok=True)
            with content, place.open("xb") as target:
                _copy(content, target, member.size)
        if manifest is None:
            raise _NoSnapshotError("it is empty")
        # The checksum of the whole is at its end, some zeros after the last file.
        while padding := unzipped.read(_BLOCK):
            total += len(padding)
            if total > max_bytes:
                raise _NoSnapshotError("there is more in it than an archive")
    return manifest


def _manifest(archive: tarfile.TarFile, member: tarfile.TarInfo, file: Path) -> Manifest:
    content = archive.extractfile(member) if member.isreg() else None
    if member.name != MANIFEST_FILE or content is None or member.size > _MAX_MANIFEST:
        raise _NoSnapshotError(f"it does not begin with {MANIFEST_FILE}")
    try:
        stored = json.loads(content.read())
    except ValueError as error:
        raise _NoSnapshotError(f"its {MANIFEST_FILE} cannot be read") from error
    return manifest_from_json(stored, index=str(file), kept_in=f"{MANIFEST_FILE} in {file}")


def _checked(member: tarfile.TarInfo) -> PurePosixPath:
    """The path of a file or folder of the shard; nothing else is unpacked."""
    path = PurePosixPath(member.name)
    fits = path.parts[:1] == (SHARD,) and ".." not in path.parts and not set("\\:\0") & set(member.name)
    if not fits or not (member.isreg() or member.isdir()):
        raise _NoSnapshotError(f"it holds {member.name!r}, which is no file of an index")
    return path


def _copy(content: IO[bytes], target: IO[bytes], size: int) -> None:
    """Copy, leaving holes where there are only zeros: the engine's files are large and mostly empty."""
    left = size
    while left:
        block = content.read(min(_BLOCK, left))
        if not block:
            raise EOFError
        left -= len(block)
        if block.count(0) == len(block):
            target.seek(len(block), os.SEEK_CUR)
        else:
            target.write(block)
    target.truncate(size)
    target.flush()
    os.fsync(target.fileno())


def _without_leftovers(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return None if member.name.startswith(f"{SHARD}/temp_segments/") else member


class _NoSnapshotError(Exception):
    """A file is not what `write_snapshot` writes."""


@contextmanager
def _translated(file: Path, folder: Path) -> Iterator[None]:
    try:
        yield
    except _NoSnapshotError as error:
        raise StoreError(f"{file} is not a snapshot of an index: {error}") from error
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise StoreError(f"{file} is damaged, or no snapshot of an index ({error or 'it ends early'})") from error
    except FileNotFoundError as error:
        raise StoreError(f"there is no file {error.filename or file}") from error
    except OSError as error:
        raise StoreError(f"{file} cannot be restored to {folder}: {error.strerror or error}") from error
