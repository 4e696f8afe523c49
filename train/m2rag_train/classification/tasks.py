"""The eight GLUE tasks: their columns, labels, metrics, and how they are read."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2rag._optional import require
from m2rag_train.errors import TrainingDataError
from m2rag_train.sources import numbered_rows, text_of

SUFFIXES = (".jsonl", ".jsonl.zst", ".tsv", ".parquet")


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE.

    Attributes:
        name: as GLUE's configuration is called.
        columns: of the text, or of the two texts.
        n_labels: number of classes; 1 is a similarity from 0 to 5.
        metrics: that GLUE reports.
        splits: name of a part of the result -> split that it is measured on.
    """

    name: str
    columns: tuple[str, ...]
    n_labels: int
    measures: tuple[str, ...]
    splits: tuple[tuple[str, str], ...] = (("", "validation"),)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all figures: "accuracy", or for MNLI "accuracy_matched" and "accuracy_mismatched"."""
        return tuple(measure + part for part, _ in self.splits for measure in self.measures)


_MNLI = (("_matched", "validation_matched"), ("_mismatched", "validation_mismatched"))
_TASKS = (
    GlueTask("cola", ("sentence",), 2, ("matthews",)),
    GlueTask("sst2", ("sentence",), 2, ("accuracy",)),
    GlueTask("mrpc", ("sentence1", "sentence2"), 2, ("f1", "accuracy")),
    GlueTask("stsb", ("sentence1", "sentence2"), 1, ("pearson", "spearman")),
    GlueTask("qqp", ("question1", "question2"), 2, ("f1", "accuracy")),
    GlueTask("mnli", ("premise", "hypothesis"), 3, ("accuracy",), _MNLI),
    GlueTask("qnli", ("question", "sentence"), 2, ("accuracy",)),
    GlueTask("rte", ("sentence1", "sentence2"), 2, ("accuracy",)),
)
TASKS = {task.name: task for task in _TASKS}


@dataclass(frozen=True)
class Example:
    """One text or two, and the label: a class, or a similarity."""

    texts: tuple[str, ...]
    label: float


def load_split(task: GlueTask, split: str, source: str, data: Path) -> list[Example]:
    """Examples of one split.

    Args:
        source: a folder under `data`, or the name of a dataset on the model hub.

    Raises:
        TrainingDataError: no such file, a broken line, a missing column or a label that the task does not have; names
            file and line.
        MissingDependencyError: a dataset of the hub, or parquet, without `datasets`.
    """
    folder = data / source
    rows = _local_rows(folder / task.name, split) if folder.is_dir() else _hub_rows(source, task.name, split)
    examples = [_example(task, row, where) for where, row in rows]
    if not examples:
        raise TrainingDataError(f"{source}: {task.name}, {split}: no examples")
    return examples


def _local_rows(folder: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    found = [path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").is_file()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise TrainingDataError(f"{folder}: needs one of {', '.join(split + s for s in SUFFIXES)}; there: {names}")
    path = found[0]
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    return _tsv_rows(path) if path.suffix == ".tsv" else numbered_rows(path)


def _tsv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            # A quotation mark is a letter like others: GLUE's files do not escape them.
            lines = csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            header = next(lines, [])
            for number, line in enumerate(lines, 2):
                if len(line) != len(header):
                    raise TrainingDataError(
                        f"{path}, line {number}: {len(line)} columns, the first line has {len(header)}"
                    )
                yield f"{path}, line {number}", dict(zip(header, line, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TrainingDataError(f"{path}: {error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    parquet = require("pyarrow.parquet", extra="train")
    arrow = require("pyarrow", extra="train")
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise TrainingDataError(f"{path}: {error}") from error
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{path}, row {number}", row


def _hub_rows(source: str, task: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    datasets = require("datasets", extra="train")
    try:
        rows = datasets.load_dataset(source, task, split=split)
    # Whatever it is that stands in the way (no network, no such name), the message is the library's.
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise TrainingDataError(
            f"source is {source!r}: no such folder, and the dataset {task!r} of that name was not loaded: {error}"
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{source}: {task}, {split}, row {number}", row


def _example(task: GlueTask, row: dict[str, Any], where: str) -> Example:
    # Some questions of QQP are empty, of one of the two.
    texts = tuple(text_of(row, column, where, empty=True) for column in task.columns)
    if not any(text.strip() for text in texts):
        raise TrainingDataError(f"{where}: {' and '.join(map(repr, task.columns))} empty")
    if "label" not in row:
        raise TrainingDataError(f"{where}: 'label' is missing; there are {', '.join(map(repr, row))}")
    try:
        label = float(row["label"])
    except (TypeError, ValueError) as error:
        raise TrainingDataError(f"{where}: label is {row['label']!r}, must be a number") from error
    if task.n_labels == 1:
        if not (math.isfinite(label) and 0 <= label <= 5):
            raise TrainingDataError(f"{where}: label is {row['label']!r}, must be from 0 to 5")
    elif label not in range(task.n_labels):
        hint = " (-1 is a test split without labels)" if label == -1 else ""
        raise TrainingDataError(f"{where}: label is {row['label']!r}, must be from 0 to {task.n_labels - 1}{hint}")
    return Example(texts, label)
