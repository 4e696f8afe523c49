"""Query-document pairs from files, BEIR folders and datasets, as one table of numbered texts.

Equal texts are one text: a query asked of several documents has all of them as its answers, and a document that is in
the data twice is never a negative of its own queries.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2rag._optional import require
from m2rag.errors import TaskError
from m2rag.evaluation import load_task
from m2rag_train.errors import TrainingDataError
from m2rag_train.finetuning.recipe import PairSource
from m2rag_train.sources import numbered_rows, text_of

logger = logging.getLogger(__name__)


@dataclass
class Pairs:
    """Queries, documents, and which answers which.

    Attributes:
        queries: text of query i.
        documents: text of document j.
        relevant: for query i the numbers of all its documents.
        queries_of: for document j the numbers of its queries; some documents have none and serve as negatives.
        given: for query i the numbers of the documents that the data itself calls negatives.
        source_of: for document j the number of the source that it was in first.
        passages: for some queries (document, start, end): the characters that answer, in a document's text.
    """

    queries: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    relevant: list[list[int]] = field(default_factory=list)
    queries_of: list[list[int]] = field(default_factory=list)
    given: list[list[int]] = field(default_factory=list)
    source_of: list[int] = field(default_factory=list)
    passages: dict[int, tuple[int, int, int]] = field(default_factory=dict)


class _Collector:
    def __init__(self) -> None:
        self.pairs = Pairs()
        self.read = self.repeated = self.source = 0
        self._queries: dict[str, int] = {}
        self._documents: dict[str, int] = {}

    def document(self, text: str) -> int:
        if text not in self._documents:
            self._documents[text] = len(self.pairs.documents)
            self.pairs.documents.append(text)
            self.pairs.queries_of.append([])
            self.pairs.source_of.append(self.source)
        return self._documents[text]

    def pair(
        self,
        query: str,
        document: int,
        negatives: Iterable[int] = (),
        passage: tuple[int, int] | None = None,
    ) -> None:
        self.read += 1
        pairs = self.pairs
        if query not in self._queries:
            self._queries[query] = len(pairs.queries)
            pairs.queries.append(query)
            pairs.relevant.append([])
            pairs.given.append([])
        number = self._queries[query]
        if document in pairs.relevant[number]:
            self.repeated += 1
        else:
            pairs.relevant[number].append(document)
            pairs.queries_of[document].append(number)
        pairs.given[number] += [n for n in negatives if n not in pairs.given[number]]
        if passage is not None:
            pairs.passages.setdefault(number, (document, *passage))


def load_pairs(sources: Sequence[PairSource], data: Path) -> Pairs:
    """All pairs of all sources.

    Args:
        data: folder that relative paths start from.

    Raises:
        TrainingDataError: a missing or empty field, an id that comes twice or is not there, a query without a document,
            or no pairs at all; names the file, the line and the id.
        MissingDependencyError: `datasets` is needed and not installed.
    """
    found = _Collector()
    for number, source in enumerate(sources):
        before, found.source = found.read, number
        if source.pairs is not None and source.documents is not None:
            _read_pairs(source, data / source.pairs, data / source.documents, found)
        elif source.rows is not None:
            _read_rows(numbered_rows(data / source.rows), "query", "document", "negatives", found)
        elif source.task is not None:
            _read_task(data / source.task, source.split, found)
        else:
            _read_dataset(source, data, found)
        if found.read == before:
            raise TrainingDataError(f"{_name(source)}: no pairs" + (f" of kind {source.kinds}" if source.kinds else ""))
    pairs = found.pairs
    for query, (relevant, given) in enumerate(zip(pairs.relevant, pairs.given, strict=True)):
        pairs.given[query] = [number for number in given if number not in relevant]
    if found.repeated:
        logger.warning("%s pairs are in the data more than once and count once", f"{found.repeated:,}")
    return pairs


def _name(source: PairSource) -> str:
    return str(source.pairs or source.rows or source.task or source.dataset)


def _read_pairs(source: PairSource, pairs: Path, documents: Path, found: _Collector) -> None:
    numbers: dict[str, int] = {}
    # Characters in front of the text, and of the text.
    places: dict[str, tuple[int, int]] = {}
    seen: dict[str, str] = {}
    for where, row in numbered_rows(documents):
        identifier = text_of(row, "_id", where)
        if identifier in seen:
            raise TrainingDataError(f"{where}: _id {identifier!r} again, first in {seen[identifier]}")
        seen[identifier] = where
        text = text_of(row, "text", where, empty=True)
        title = text_of(row, "title", where, empty=True) if row.get("title") is not None else ""
        whole = f"{title.strip()}\n\n{text}" if title.strip() else text
        if not whole.strip():
            raise TrainingDataError(f"{where}: document {identifier!r} is empty")
        numbers[identifier] = found.document(whole)
        places[identifier] = (len(whole) - len(text), len(text))
    for where, row in numbered_rows(pairs):
        query, identifier = text_of(row, "query", where), text_of(row, "document_id", where)
        if identifier not in numbers:
            raise TrainingDataError(f"{where}: document_id {identifier!r} is not in {documents}")
        if source.kinds is None or text_of(row, "kind", where) in source.kinds:
            found.pair(query, numbers[identifier], passage=_passage(row, *places[identifier], where))


def _passage(row: dict[str, Any], begin: int, length: int, where: str) -> tuple[int, int] | None:
    """The row's `passage`, [start, end] in a text of `length` characters that begins at character `begin`."""
    given = row.get("passage")
    if given is None:
        return None
    valid = isinstance(given, list) and len(given) == 2 and all(type(place) is int for place in given)
    if not valid or not 0 <= given[0] < given[1] <= length:
        raise TrainingDataError(f"{where}: passage is {given!r}, must be [start, end] within {length:,} characters")
    return begin + given[0], begin + given[1]


def _read_rows(
    rows: Iterator[tuple[str, dict[str, Any]]], query: str, document: str, negative: str | None, found: _Collector
) -> None:
    for where, row in rows:
        negatives = row.get(negative) if negative is not None else None
        texts = [negatives] if isinstance(negatives, str) else list(negatives or [])
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise TrainingDataError(f"{where}: {negative!r} holds something that is no text, or an empty one")
        answer = found.document(text_of(row, document, where))
        found.pair(text_of(row, query, where), answer, [found.document(text) for text in texts])


def _read_task(folder: Path, split: str | None, found: _Collector) -> None:
    try:
        task = load_task(folder, split=split)
    except TaskError as error:
        raise TrainingDataError(str(error)) from error
    empty = [identifier for identifier, text in task.corpus.items() if not text]
    numbers = {identifier: found.document(text) for identifier, text in task.corpus.items() if text}
    for query, grades in task.qrels.items():
        answers = [identifier for identifier, grade in grades.items() if grade > 0]
        for identifier in answers:
            if identifier not in numbers:
                raise TrainingDataError(f"{folder}: document {identifier!r}, which answers query {query!r}, is empty")
            found.pair(task.queries[query], numbers[identifier])
    if empty:
        logger.warning("%s: %d empty documents are left out, %r first", folder, len(empty), empty[0])


def _read_dataset(source: PairSource, data: Path, found: _Collector) -> None:
    datasets = require("datasets", extra="train")
    assert source.dataset is not None
    local = data / source.dataset
    name = str(local) if local.exists() else source.dataset
    try:
        if (local / "state.json").exists():
            table = datasets.load_from_disk(name)
        else:
            table = datasets.load_dataset(name, source.configuration, split=source.split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise TrainingDataError(f"dataset {source.dataset!r}: {error}") from error
    wanted = [column for column in (source.query, source.document, source.negative) if column is not None]
    for column in wanted:
        if column not in table.column_names:
            raise TrainingDataError(
                f"dataset {source.dataset!r}: no column {column!r}; there are {', '.join(table.column_names)}"
            )
    rows = ((f"dataset {source.dataset!r}, row {number}", row) for number, row in enumerate(table))
    _read_rows(rows, source.query, source.document, source.negative, found)
