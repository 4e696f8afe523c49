"""From what a caller hands to `add` to a stream of documents and failures, one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from m2rag.errors import DocumentError, InvalidInputTypeError
from m2rag.index.documents import Document, Failure
from m2rag.index.readers import kind_of, list_folder, read_documents, supported_suffixes

Source: TypeAlias = "Document | Failure | str | os.PathLike[str]"
"""A document, a file or a folder; a failure, as `parse_documents` gives it, is passed on to the report."""


@dataclass(frozen=True)
class FileRef:
    """A file still to be read."""

    path: Path
    root: Path | None

    @property
    def has_rows(self) -> bool:
        """Whether it holds many documents."""
        kind = kind_of(self.path)
        return kind is not None and kind.has_rows


Item: TypeAlias = "Document | FileRef | Failure"


def plan(sources: Source | Iterable[Source], skipped: list[str]) -> tuple[Iterable[Item], int | None]:
    """List what is to be read, without reading it.

    A single source or a sequence is looked through at once (folders are listed, no file is opened), so that the
    total is known and a folder without documents is told before any work. Other iterables are followed lazily.

    Args:
        sources: documents, files and folders.
        skipped: receives the paths of files of no supported kind.

    Returns:
        The items, and how many documents they are: None for a lazy iterable, or with files of many documents.

    Raises:
        InvalidInputTypeError: `sources` is nothing of the kind.
        DocumentError: a folder in a sequence holds no document.
    """
    if isinstance(sources, (Document, Failure, str, os.PathLike)):
        sources = [sources]
    if isinstance(sources, (bytes, bytearray, Mapping)) or not isinstance(sources, Iterable):
        raise InvalidInputTypeError(
            f"add takes a Document, a path, or an iterable of these, not {type(sources).__name__}"
        )
    if isinstance(sources, Sequence):
        items = [item for i, source in enumerate(sources) for item in _expand(i, source, skipped)]
        exact = not any(isinstance(item, FileRef) and item.has_rows for item in items)
        return items, len(items) if exact else None
    return _lazily(sources, skipped), None


def read(items: Iterable[Item]) -> Iterator[Document | Failure]:
    """Read the items, one document at a time."""
    for item in items:
        if isinstance(item, FileRef):
            yield from read_documents(item.path, item.root)
        else:
            yield item


def _lazily(sources: Iterable[Source], skipped: list[str]) -> Iterator[Item]:
    for i, source in enumerate(sources):
        try:
            items = list(_expand(i, source, skipped))
        except DocumentError as error:
            items = [Failure(str(source), error)]
        yield from items


def _expand(position: int, source: Any, skipped: list[str]) -> Iterator[Item]:
    if isinstance(source, (Document, Failure)):
        yield source
        return
    if not isinstance(source, (str, os.PathLike)):
        error = InvalidInputTypeError(f"item {position} is {type(source).__name__}, neither a Document nor a path")
        yield Failure(f"item {position}", error)
        return
    if source == "":
        yield Failure(f"item {position}", DocumentError(f"item {position} is an empty path"))
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
    yield from (Failure(name, error, os.path.abspath(name)) for name, error in listing.unreadable)
    yield from (FileRef(file, path) for file in listing.files)
