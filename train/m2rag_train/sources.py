"""Training documents and the short texts that go with each: one stream, whatever the file's layout.

Two layouts of JSON lines (plain or .zst) are read:
- sectioned: {"id", "title", "sections": [{"level", "heading", "text"}], "description"?}
- paired: documents {"_id", "title", "text"} beside pairs {"query", "document_id", "kind"}
"""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2rag._optional import require
from m2rag_train.errors import TrainingDataError

zstandard = require("zstandard", extra="train")

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")


@dataclass(frozen=True)
class ShortText:
    """A text that names or asks for its document; `kind` is title, description, heading, sentence, question, ..."""

    text: str
    kind: str


@dataclass(frozen=True)
class TrainingDocument:
    """A document and the short texts that belong to it; `where` is its file and line."""

    id: str
    text: str
    short_texts: list[ShortText] = field(default_factory=list)
    where: str = ""


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a `.jsonl` or `.jsonl.zst` file; blank lines are skipped.

    Raises:
        TrainingDataError: the file is not there or damaged, or a line is not a JSON object in UTF-8; names file and
            line.
    """
    return (row for _, row in numbered_rows(path))


def numbered_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What `read_jsonl` gives, each with its place ("pairs.jsonl, line 3") for messages about it."""
    number = 0
    try:
        with path.open("rb") as raw:
            # Tools that compress in parallel write several frames one behind the other.
            unpacked = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
            stream = io.BufferedReader(unpacked) if path.suffix == ".zst" else raw
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line.decode("utf-8"))
                except ValueError as error:
                    raise TrainingDataError(f"{where}: {error}") from error
                if not isinstance(row, dict):
                    raise TrainingDataError(f"{where}: expected an object, found {type(row).__name__}")
                yield where, row
    except OSError as error:
        raise TrainingDataError(f"{path}: {error.strerror}") from error
    except zstandard.ZstdError as error:
        raise TrainingDataError(f"{path}, after line {number}: {error}") from error


def text_of(row: dict[str, Any], key: str, where: str, *, empty: bool = False) -> str:
    """The text that a row has under `key`.

    Args:
        where: the row's place, for the message.
        empty: whether it may be empty or white space.

    Raises:
        TrainingDataError: the key is missing, its value is no text, or it is empty.
    """
    if key not in row:
        raise TrainingDataError(f"{where}: {key!r} is missing; there are {', '.join(map(repr, row)) or 'no keys'}")
    if not isinstance(row[key], str):
        raise TrainingDataError(f"{where}: {key!r} is {type(row[key]).__name__}, must be text")
    if not empty and not row[key].strip():
        raise TrainingDataError(f"{where}: {key!r} is empty")
    return row[key]


def sectioned_documents(path: Path, rng: random.Random, *, headings: int, sentences: int) -> Iterator[TrainingDocument]:
    """Documents of a sectioned file, with up to `headings` headings and `sentences` sentences of each.

    Raises:
        TrainingDataError: a line is broken, lacks a field, has no text, or the id of another one.
    """
    lines = _Lines("id")
    for where, row in numbered_rows(path):
        key = lines.id_of(row, where)
        parts, found_headings, found_sentences = [], [], []
        for section in _sections(row, where):
            heading = text_of(section, "heading", where, empty=True).strip()
            text = text_of(section, "text", where, empty=True).strip()
            parts.append("\n".join(part for part in (heading, text) if part))
            if len(heading.split()) >= 2:
                found_headings.append(heading)
            candidates = [s for s in _SENTENCE_END.split(text[:2000]) if 40 <= len(s) <= 400]
            if candidates:
                found_sentences.append(rng.choice(candidates))
        if not any(parts):
            raise TrainingDataError(f"{where}: document {key!r} is empty")
        short = [
            ShortText(text, kind)
            for kind in ("title", "description")
            if row.get(kind) is not None and (text := text_of(row, kind, where, empty=True)).strip()
        ]
        for kind, found, count in (("heading", found_headings, headings), ("sentence", found_sentences, sentences)):
            unique = sorted(set(found))
            short += [ShortText(text, kind) for text in rng.sample(unique, min(count, len(unique)))]
        yield TrainingDocument(key, "\n\n".join(parts), short, where)


def paired_documents(documents: Path, pairs: Path, rng: random.Random, *, sentences: int) -> Iterator[TrainingDocument]:
    """Documents with the queries that have them as their answer.

    Raises:
        TrainingDataError: a line is broken, lacks a field, has no text, or the id of another one; or no query belongs
            to any document.
    """
    queries: dict[str, list[ShortText]] = {}
    for where, row in numbered_rows(pairs):
        short = ShortText(text_of(row, "query", where), text_of(row, "kind", where))
        queries.setdefault(text_of(row, "document_id", where), []).append(short)
    lines = _Lines("_id")
    for where, row in numbered_rows(documents):
        key, text = lines.id_of(row, where), text_of(row, "text", where)
        found = sorted({line for line in map(str.strip, text.split("\n")) if 80 <= len(line) <= 400})
        chosen = [ShortText(line, "sentence") for line in rng.sample(found, min(sentences, len(found)))]
        yield TrainingDocument(key, text, queries.get(key, []) + chosen, where)
    if queries and not queries.keys() & lines.places.keys():
        raise TrainingDataError(f"{pairs}: none of its document_ids is an _id in {documents}")


class _Lines:
    """The ids of a file and where they stand."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.places: dict[str, str] = {}

    def id_of(self, row: dict[str, Any], where: str) -> str:
        found = text_of(row, self.key, where)
        if found in self.places:
            raise TrainingDataError(f"{where}: {self.key} {found!r} is that of {self.places[found]}, too")
        self.places[found] = where
        return found


def _sections(row: dict[str, Any], where: str) -> list[dict[str, Any]]:
    sections = row.get("sections")
    if not isinstance(sections, list) or not all(isinstance(section, dict) for section in sections):
        raise TrainingDataError(f"{where}: 'sections' must be a list of objects with 'heading' and 'text'")
    return sections
