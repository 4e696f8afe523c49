"""Files that are whole or not there: a state, a shard or a model is written under another name and renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from m2rag_train.errors import CheckpointWriteError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give another name for a file or folder to be written under; it becomes `path` when all of it is written.

    What was at `path` stays until then, and for good if writing fails.

    Raises:
        CheckpointWriteError: it could not be written: disk full, no permission.
    """
    # In front, so that patterns for the finished files do not match it.
    temporary = path.with_name(f"unfinished-{path.name}")
    _remove(temporary)
    try:
        yield temporary
        _sync(temporary)
        if path.is_dir():
            # No system call replaces a folder that is not empty, and other files in it are not ours to remove.
            for file in [file for file in temporary.rglob("*") if file.is_file()]:
                target = path / file.relative_to(temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
            _remove(temporary)
        else:
            temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch.save tells a full disk as a RuntimeError of its zip writer, above the error of the file.
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(cause, (OSError, SafetensorError)):
            raise
        _remove(temporary)
        told = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
        raise CheckpointWriteError(f"{path} could not be written: {told}. What was there before is intact") from error


def _sync(path: Path) -> None:
    """Have the disk hold what is written, so that a name that is there after a power cut has its content."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
