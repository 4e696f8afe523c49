"""Files and uploads into documents."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from m2rag.errors import DocumentError
from m2rag.index.documents import Document, Failure
from m2rag.index.readers.kinds import READERS, ROW_READERS, Kind, kind_of, supported_suffixes
from m2rag.index.readers.packed import check_size, read_whole, unpack

_ROW_MARK = re.compile("[#:]")
_GIVE_UP = 100  # broken rows before any that is a document


def document_id(path: str | Path, root: str | Path | None = None) -> str:
    """The id of a file: relative to `root` where it was found in a folder, else the path as given."""
    return (Path(path).relative_to(root) if root is not None else Path(path)).as_posix()


def read_document(path: str | Path, root: str | Path | None = None) -> Document:
    """Read one file as a document.

    Args:
        path: the file.
        root: the folder it was found in; the id is then relative to it.

    Returns:
        The document: text, title (from the content, else the file's stem), metadata `path` (the id), `suffix`, `size`
        (bytes, unpacked) and `mtime` (seconds since 1970), which is not content: touching a file does not change its
        document.

    Raises:
        DocumentError: no such file, of no supported kind or one that holds many documents, unreadable, too large,
            binary, damaged, encrypted or without text.
    """
    path = Path(path)
    _check_file(path)
    kind = _one_document(path)
    try:
        stat = path.stat()
        check_size(stat.st_size, path)
        data = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    document = _parse(data, kind, document_id(path, root), path)
    metadata = {**(document.metadata or {}), "mtime": int(stat.st_mtime)}
    return replace(document, metadata=metadata, origin=os.path.abspath(path))


def read_documents(path: str | Path, root: str | Path | None = None) -> Iterator[Document | Failure]:
    """Read a file that may hold many documents, one at a time.

    Args:
        path: the file.
        root: the folder it was found in; ids are then relative to it.

    Yields:
        What `parse_documents` does, with `origin`; for a file of one document what `read_document` returns. What
        cannot be read is a `Failure`.
    """
    path = Path(path)
    name, origin = document_id(path, root), os.path.abspath(path)
    kind = kind_of(path)
    try:
        if kind is None or not kind.has_rows:
            yield read_document(path, root)
            return
        _check_file(path)
        with path.open("rb") as stream:
            for found in _documents(stream, kind, name, path):
                yield replace(found, origin=origin) if isinstance(found, Document) else replace(found, path=origin)
    except DocumentError as error:
        yield Failure(name, error, path=origin)
    except OSError as error:
        yield Failure(name, _unreadable(path, error), path=origin)


def parse_document(data: bytes, name: str) -> Document:
    """A document from the bytes of a file; nothing on disk is looked at.

    Args:
        data: all of the file.
        name: its name: the id, and with it suffix and, where the content has none, title.

    Returns:
        The document as `read_document` would make it, without `origin` and `mtime`.

    Raises:
        DocumentError: of no supported kind or one that holds many documents, too large, binary, damaged, encrypted or
            without text.
    """
    return _parse(data, _one_document(name), name, name)


def parse_documents(data: bytes | BinaryIO, name: str) -> Iterator[Document | Failure]:
    """The documents of a file of any kind, from its bytes or as they are read from a stream.

    A file of rows (.jsonl, .csv) is never in memory as a whole. A row is called `NAME#ID` if it has an id, else
    `NAME:LINE`; an id in `metadata["id"]` too. Rows with ids may change places in the file, others are then other
    documents. Metadata are the fields of the row, `path` (the name), `suffix` and `size` (bytes of its text), unless
    the row has fields of these names itself.

    Args:
        data: the file, or a binary stream of it.
        name: its name; its suffix tells the kind.

    Yields:
        A `Document` for each, or a `Failure` for what is none; a failure of the file has the file's name as id and is
        the last that comes.
    """
    kind = kind_of(name)
    try:
        if kind is None:
            raise _unsupported(name)
        yield from _documents(io.BytesIO(data) if isinstance(data, bytes) else data, kind, name, name)
    except DocumentError as error:
        yield Failure(name, error)


def possible_files(id: str) -> Iterator[str]:
    """Names of files that a document with this id may be of: the id, and what stands in front of each mark of a row."""
    yield id
    for mark in _ROW_MARK.finditer(id):
        yield id[: mark.start()]


def _documents(stream: BinaryIO, kind: Kind, name: str, shown: str | Path) -> Iterator[Document | Failure]:
    if not kind.has_rows:
        yield _parse(read_whole(stream, shown), kind, name, shown)
        return
    if kind.packing is not None:
        stream = unpack(stream, kind.packing, shown)
    good = broken = 0
    for row in ROW_READERS[kind.suffix](stream, shown):
        id = f"{name}:{row.line}" if row.id is None else f"{name}#{row.id}"
        if row.fault is None:
            good += 1
            size = len(row.text.encode("utf-8", "replace"))
            metadata: dict[str, Any] = {"path": name, "suffix": kind.suffix, "size": size}
            if row.id is not None:
                metadata["id"] = row.id
            yield Document(id, row.text, row.title, {**metadata, **row.metadata})
            continue
        broken += 1
        yield Failure(id, row.fault)
        if broken == _GIVE_UP and not good:
            raise DocumentError(f"{shown}: none of its first {broken} rows is a document, the rest was not read")
    if not good and not broken:
        raise DocumentError(f"{shown} holds no document")


def _parse(data: bytes, kind: Kind, name: str, shown: str | Path) -> Document:
    """A document with the id `name`; messages call it `shown`."""
    if kind.packing is not None and data:
        data = read_whole(unpack(io.BytesIO(data), kind.packing, shown), shown)
    if not data.strip():
        raise DocumentError(f"{shown} is empty")
    text, title = READERS[kind.suffix](data, shown)
    if not text.strip():
        raise DocumentError(f"{shown} holds no text")
    return Document(
        id=name,
        text=text,
        title=" ".join((title or "").split()) or kind.stem,
        metadata={"path": name, "suffix": kind.suffix, "size": len(data)},
    )


def _one_document(name: str | Path) -> Kind:
    kind = kind_of(name)
    if kind is None:
        raise _unsupported(name)
    if kind.has_rows:
        raise DocumentError(f"{name} holds many documents, one a row, and not one text: index it")
    return kind


def _check_file(path: Path) -> None:
    if not path.exists():
        raise DocumentError(f"{path} does not exist")
    if not path.is_file():
        raise DocumentError(f"{path} is not a file")


def _unsupported(shown: str | Path) -> DocumentError:
    return DocumentError(f"{shown} is of no supported kind: the index reads {supported_suffixes()}")


def _unreadable(path: Path, error: OSError) -> DocumentError:
    return DocumentError(f"{path} cannot be read: {error.strerror or error}. Check its permissions")
