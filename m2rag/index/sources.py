"""From what a caller hands to `add` to a stream of documents and failures, one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from m2rag.errors import DocumentError, InvalidInputTypeError
from m2rag.index.documents import Document, Failure
from m2rag.index.readers import document_id, list_folder, read_document, supported_suffixes

Source: TypeAlias = "Document | str | os.PathLike[str]"


@dataclass(frozen=True)
class FileRef:
    """A file still to be read."""

    path: Path
    root: Path | None


Item: TypeAlias = "Document | FileRef | Failure"


def plan(sources: Source | Iterable[Source], skipped: list[str]) -> tuple[Iterable[Item], int | None]:
    """List what is to be read, without reading it.

    A single source or a sequence is looked through at once (folders are listed, no file is opened), so that the
    total is known and a folder without documents is told before any work. Other iterables are followed lazily.

    Args:
        sources: documents, files and folders.
        skipped: receives the paths of files of no supported kind.

    Returns:
        The items, and how many they are (None for a lazy iterable).

    Raises:
        InvalidInputTypeError: `sources` is nothing of the kind.
        DocumentError: a folder in a sequence holds no document.
    """
    if isinstance(sources, (Document, str, os.PathLike)):
        sources = [sources]
    if isinstance(sources, (bytes, bytearray, Mapping)) or not isinstance(sources, Iterable):
        raise InvalidInputTypeError(
            f"add takes a Document, a path, or an iterable of these, not {type(sources).__name__}"
        )
    if isinstance(sources, Sequence):
        items = [item for i, source in enumerate(sources) for item in _expand(i, source, skipped)]
        return items, len(items)
    return _lazily(sources, skipped), None


def read(item: Item) -> Document | Failure:
    """Read one item."""
    if not isinstance(item, FileRef):
        return item
    try:
        return read_document(item.path, item.root)
    except DocumentError as error:
        return Failure(document_id(item.path, item.root), error)


def _lazily(sources: Iterable[Source], skipped: list[str]) -> Iterator[Item]:
    for i, source in enumerate(sources):
        try:
            items = list(_expand(i, source, skipped))
        except DocumentError as error:
            items = [Failure(str(source), error)]
        yield from items


def _expand(position: int, source: Any, skipped: list[str]) -> Iterator[Item]:
    if isinstance(source, Document):
        yield source
        return
    if not isinstance(source, (str, os.PathLike)):
        error = InvalidInputTypeError(f"item {position} is {type(source).__name__}, neither a Document nor a path")
        yield Failure(f"item {position}", error)
        return
    path = Path(source)
    if not path.is_dir():
        yield FileRef(path, None)
        return
    listing = list_folder(path)
    skipped.extend(listing.skipped)
    if not listing.files:
        if listing.unreadable:
            raise listing.unreadable[0][1]
        others = f" ({len(listing.skipped)} files of other kinds)" if listing.skipped else ""
        raise DocumentError(f"the folder {path} holds no document{others}: the index reads {supported_suffixes()}")
    yield from (Failure(name, error) for name, error in listing.unreadable)
    yield from (FileRef(file, path) for file in listing.files)
