"""Files of many documents: JSON lines, tables. They are read row by row, however long they are."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from m2rag.errors import DocumentError
from m2rag.index.readers.decoding import MAX_LINE_BYTES, text_lines

_ID, _TITLE, _TEXT = ("id", "_id"), "title", "text"


@dataclass(frozen=True)
class Row:
    """One document of a file.

    Attributes:
        line: where it begins in the file, from 1.
        id: what the file calls it; None if it does not.
        text: its text.
        title: its title, if it has one.
        metadata: its other fields.
        fault: why it is no document; text, title and metadata are empty then.
    """

    line: int
    id: str | None = None
    text: str = ""
    title: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    fault: DocumentError | None = None


def read_json_lines(stream: BinaryIO, shown: str | Path) -> Iterator[Row]:
    """One JSON object per line: `text`, and if there are such, `id` or `_id`, and `title`; all else is metadata.

    An object called `metadata` is not nested: its fields are the document's.
    """
    for number, line in enumerate(text_lines(stream, shown), start=1):
        where = f"line {number} of {shown}"
        if isinstance(line, DocumentError):
            yield Row(number, fault=line)
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(number, fault=DocumentError(f"{where} is not JSON: {error}"))
            continue
        if not isinstance(record, dict):
            fault = DocumentError(f"{where} is {type(record).__name__} and not an object with a text")
            yield Row(number, fault=fault)
            continue
        nested = record.pop("metadata", None)
        if isinstance(nested, dict):
            record = {**nested, **record}
        elif nested is not None:
            record["metadata"] = nested
        yield _row(number, where, record)


def read_table(stream: BinaryIO, shown: str | Path) -> Iterator[Row]:
    """One document per row below a row of column names, separated by comma, semicolon, tab or bar.

    Columns `text`, `id` (or `_id`) and `title` are what they say, in capitals too; the others are metadata, and so are
    their values that are not empty. Without a column `text` the text is every column but `id`, as "name: value" lines.
    """
    # A limit of the whole process, and by default one that a long document exceeds.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    lines = _whole_lines(stream, shown)
    first = next(lines, "")
    delimiter = max(",;\t|", key=first.count)
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter)
    names: list[str] = []
    line = 1
    try:
        for cells in reader:
            where, number = f"line {line} of {shown}", line
            line = reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = _column_names(cells, shown)
            elif len(cells) > len(names):
                fault = DocumentError(f"{where} has {len(cells)} cells, the row of column names {len(names)}")
                yield Row(number, fault=fault)
            else:
                yield _row(number, where, _record(names, cells))
    except csv.Error as error:
        raise DocumentError(f"{shown} is not a table from line {line} on: {error}") from error


def _whole_lines(stream: BinaryIO, shown: str | Path) -> Iterator[str]:
    for line in text_lines(stream, shown):
        if isinstance(line, DocumentError):
            raise line
        yield line


def _column_names(cells: list[str], shown: str | Path) -> list[str]:
    special = (*_ID, _TITLE, _TEXT)
    names = [cell.strip() or f"column {i}" for i, cell in enumerate(cells, start=1)]
    names = [name.lower() if name.lower() in special else name for name in names]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise DocumentError(f"{shown} has two columns called {twice!r}: the first row must name the columns")
    return names


def _record(names: list[str], cells: list[str]) -> dict[str, Any]:
    record: dict[str, Any] = {name: cell for name, cell in zip(names, cells, strict=False) if cell.strip()}
    if _TEXT in names:
        record.setdefault(_TEXT, "")
    else:
        record[_TEXT] = "\n".join(f"{name}: {value.strip()}" for name, value in record.items() if name not in _ID)
    return record


def _row(number: int, where: str, record: dict[str, Any]) -> Row:
    given = [record.pop(name, None) for name in _ID]
    id = next((one for one in given if one is not None), None)
    if isinstance(id, int) and not isinstance(id, bool):
        id = str(id)
    if id is not None and (not isinstance(id, str) or not id.strip()):
        return Row(number, fault=DocumentError(f"{where}: its id is {id!r}, it must be a string or a whole number"))
    text, title = record.pop(_TEXT, None), record.pop(_TITLE, None)
    if text is None:
        return Row(number, id, fault=DocumentError(f"{where} has no {_TEXT!r}"))
    for name, value in ((_TEXT, text), (_TITLE, title)):
        if not isinstance(value, str) and not (name == _TITLE and value is None):
            fault = DocumentError(f"{where}: its {name} is {type(value).__name__}, it must be a string")
            return Row(number, id, fault=fault)
    if not text.strip():
        return Row(number, id, fault=DocumentError(f"{where} holds no text"))
    return Row(number, id, text, title, record)
