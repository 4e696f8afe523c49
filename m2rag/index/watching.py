"""Keep an index like a folder while the folder changes."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2rag.errors import DocumentError, RemoteError, StoreError
from m2rag.index.index import LongDocumentIndex
from m2rag.index.readers import kind_of
from m2rag.index.sync import SyncReport
from m2rag.stores.folder import MANIFEST_FILE

logger = logging.getLogger(__name__)

RETRY_SECONDS = 30.0
"""After a sync that failed, the next try comes this much later, or with the next change."""

_QUIET_SECONDS = 0.4  # without a change, before what was changed is read
_AT_MOST_SECONDS = 5.0  # ... and however long changes go on
_LOOK_SECONDS = 0.5  # how often the folder, and whether to stop, is looked at


def watch(
    index: LongDocumentIndex, folder: str | Path, *, stop: threading.Event | None = None, **settings: Any
) -> Iterator[SyncReport]:
    """Sync a folder, and again whenever files in it change; only those are read then.

    What goes wrong later (the model or the store cannot be reached, the folder is suddenly empty) is a warning, and
    tried again. Changes of folders that are only linked into this one are not noticed.

    Args:
        index: the index.
        folder: the folder.
        stop: ends the generator soon after it is set.
        settings: as `LongDocumentIndex.sync` takes them.

    Yields:
        The report of the first sync, and of each later one that did something or met a failure.

    Raises:
        DocumentError: the folder is missing or empty at the start, or gone later.
        and what `LongDocumentIndex.sync` raises, from the first sync.
    """
    import watchfiles

    root = os.path.realpath(folder)
    if not os.path.isdir(root):
        yield index.sync(folder, **settings)
        raise DocumentError(f"the folder {folder} does not exist: there is nothing to watch")
    changes = watchfiles.watch(
        root,
        watch_filter=lambda change, path: _matters(path, root),
        debounce=int(_AT_MOST_SECONDS * 1000),
        step=int(_QUIET_SECONDS * 1000),
        rust_timeout=int(_LOOK_SECONDS * 1000),
        yield_on_timeout=True,
        stop_event=stop,
    )
    pending: set[str] = _places(next(changes, set()), root, folder)  # from here on nothing is missed
    yield index.sync(folder, **settings)
    next_try = 0.0
    for seen in changes:
        if not os.path.isdir(root):
            raise DocumentError(f"the folder {folder} is gone: what the index holds of it stays")
        pending |= _places(seen, root, folder)
        if not pending or not seen and time.monotonic() < next_try:
            continue
        try:
            report = index.sync(folder, only=pending, **settings)
        except (DocumentError, RemoteError, StoreError) as error:
            logger.warning("%s was not synced, the next try is in %.0f s: %s", folder, RETRY_SECONDS, error)
            next_try = time.monotonic() + RETRY_SECONDS
            continue
        pending.clear()
        if report.added or report.replaced or report.deleted or report.failed:
            yield report


def _places(changes: set[tuple[Any, str]], root: str, folder: str | Path) -> set[str]:
    """What has changed, named as the folder is named: systems tell paths without links."""
    return {os.path.join(os.path.abspath(folder), os.path.relpath(path, root)) for _, path in changes}


def _matters(path: str, root: str) -> bool:
    """Whether a change of this path may concern a document: of a kind that is read, or a folder, or gone."""
    parts = os.path.relpath(path, root).split(os.sep)
    if any(part.startswith(".") and part != "." for part in parts):
        return False
    place = root
    for part in parts:
        if os.path.exists(os.path.join(place, MANIFEST_FILE)):  # an index writes to its own folder all the time
            return False
        place = os.path.join(place, part)
    return kind_of(path) is not None or not os.path.isfile(path)
