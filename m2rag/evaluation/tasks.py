"""Retrieval tasks in BEIR's layout: a folder with `corpus.jsonl`, `queries.jsonl` and relevance judgments.

The reader is strict: a figure from a half-read task looks like any other figure, so every odd line is an error.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2rag._optional import require
from m2rag.errors import TaskError

logger = logging.getLogger(__name__)

QRELS_PLACES = ("qrels.tsv", "qrels/test.tsv")


@dataclass(frozen=True)
class Task:
    """One retrieval task, held in memory.

    Attributes:
        name: name of the folder.
        corpus: text of each document by id, in file order. A document with a title is
            `title + "\\n\\n" + text`; one whose title and text are blank is an empty string and cannot be found.
        queries: text of each judged query by id, in file order; queries without a judgment are left out, as BEIR's
            `queries.jsonl` holds those of every split.
        qrels: for each query the grade of each judged document; above 0 is relevant.
        length: tokens of every document, where a task exists at several lengths; None elsewhere.
    """

    name: str
    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    length: int | None = None


def load_task(folder: str | Path, *, split: str | None = None) -> Task:
    """Read `corpus.jsonl`, `queries.jsonl` (either may end in `.zst`) and `qrels.tsv` or `qrels/test.tsv`.

    Args:
        split: read `qrels/SPLIT.tsv` ("train", "dev") instead; the task's name ends in it then.

    Raises:
        TaskError: a file is missing, or a line of it is broken; the message names file, line and fault.
        MissingDependencyError: a file ends in `.zst` and `zstandard` is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TaskError(f"{folder}: not a folder; a task is a folder with corpus.jsonl, queries.jsonl and qrels.tsv")
    corpus_file = _find(folder, "corpus.jsonl", "corpus.jsonl.zst")
    queries_file = _find(folder, "queries.jsonl", "queries.jsonl.zst")
    qrels_file = _find(folder, *(QRELS_PLACES if split is None else (f"qrels/{split}.tsv",)))

    corpus = {}
    for where, row in _read_records(corpus_file):
        title, text = _string(where, row, "title", default="").strip(), _string(where, row, "text")
        whole = f"{title}\n\n{text}" if title else text
        corpus[row["_id"]] = whole if whole.strip() else ""
    queries = {}
    for where, row in _read_records(queries_file):
        queries[row["_id"]] = text = _string(where, row, "text")
        if not text.strip():
            raise TaskError(f"{where}: query {row['_id']!r} is blank")
    qrels = _read_qrels(qrels_file, corpus, queries)
    name = folder.resolve().name if split is None else f"{folder.resolve().name}/{split}"
    return Task(name, corpus, {i: text for i, text in queries.items() if i in qrels}, qrels)


def _find(folder: Path, *names: str) -> Path:
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise TaskError(f"{folder}: no {' or '.join(names)}")
    if len(found) > 1:
        raise TaskError(f"{folder}: both {' and '.join(p.relative_to(folder).as_posix() for p in found)}; keep one")
    return found[0]


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ("file, line n", line) for each line that is not blank."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path}: cannot be read: {error.strerror}") from error
    if path.suffix == ".zst":
        data = _unpack_zst(path, data)
    # Lines end at \n only: str.splitlines would also split at U+2028 and others, which JSON strings may hold.
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        where = f"{path}, line {number}"
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TaskError(f"{where}: not UTF-8 at byte {error.start} of the line") from error
        if line.strip():
            yield where, line


def _unpack_zst(path: Path, data: bytes) -> bytes:
    zstandard = require("zstandard", extra="eval")
    parts = []
    while data:
        # An object per frame instead of a stream reader: the reader takes a file that was cut off for a whole one.
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            parts.append(frame.decompress(data))
        except zstandard.ZstdError as error:
            raise TaskError(f"{path}: not a Zstandard file, or damaged: {error}") from error
        if not frame.eof:
            raise TaskError(f"{path}: the Zstandard data ends too early; the file was cut off")
        data = frame.unused_data
    return b"".join(parts)


def _read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file, line n", record) for each JSON object with a string `_id` not seen before."""
    first_seen: dict[str, str] = {}
    for where, line in _read_lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TaskError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
        if not isinstance(row, dict):
            raise TaskError(f"{where}: a JSON object is expected, this is a {type(row).__name__}")
        identifier = _string(where, row, "_id")
        if not identifier:
            raise TaskError(f"{where}: '_id' is empty")
        if identifier in first_seen:
            raise TaskError(f"{where}: _id {identifier!r} again, first in {first_seen[identifier]}")
        first_seen[identifier] = where
        yield where, row
    if not first_seen:
        raise TaskError(f"{path}: holds no record")


def _string(where: str, row: dict[str, Any], key: str, *, default: str | None = None) -> str:
    value = row.get(key, default)
    if value is None and default is not None:  # "title": null is common in converted corpora
        return default
    if key not in row and default is None:
        raise TaskError(f"{where}: no {key!r}; the keys are {', '.join(sorted(map(repr, row))) or 'none'}")
    if not isinstance(value, str):
        raise TaskError(f"{where}: {key!r} must be a string, it is a {type(value).__name__}")
    return value


def _read_qrels(path: Path, corpus: dict[str, str], queries: dict[str, str]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, (where, line) in enumerate(_read_lines(path)):
        fields = line.rstrip("\r").split("\t")
        if len(fields) != 3:
            raise TaskError(f"{where}: {len(fields)} tab-separated fields, 3 are expected (query-id, corpus-id, score)")
        query, document, grade = fields
        if number == 0 and query == "query-id":
            continue
        try:
            score = int(grade)
        except ValueError as error:
            raise TaskError(f"{where}: score {grade!r} is not a whole number") from error
        if query not in queries:
            raise TaskError(f"{where}: query {query!r} is not in the queries file")
        if document not in corpus:
            raise TaskError(f"{where}: document {document!r} is not in the corpus file")
        if document in qrels.setdefault(query, {}):
            raise TaskError(f"{where}: query {query!r} and document {document!r} are judged twice")
        qrels[query][document] = score
    hopeless = [query for query, grades in qrels.items() if max(grades.values()) <= 0]
    for query in hopeless:
        del qrels[query]
    if hopeless:
        logger.warning(
            "%s: %d queries have no relevant document and are left out, %r first", path, len(hopeless), hopeless[0]
        )
    if not qrels:
        raise TaskError(f"{path}: holds no query with a relevant document")
    return qrels
