"""The LoCo benchmarks by name, read with `datasets`: V1 (twelve tasks, arXiv:2402.07440) and its preview V0 (five).

V1 comes as two data sets, one row per document and one per query; `answer_pids` are the relevant documents, of grade 1.
V0 pairs two columns of older data sets: row i's query has row i's document as its only relevant one, though some rows
share a meeting. Published checkpoints of M2-BERT were fine-tuned on LoCo's training sets, and BM25 comes close to them
on V0: show it beside every figure.

The hub was out of reach where this was written: it is tested on stand-ins with the same columns, not on the data sets
themselves. Those of V0 were published with loading scripts, which `datasets` 4 and newer refuses to run; give copies.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2rag._optional import require
from m2rag.errors import TaskError
from m2rag.evaluation.tasks import Task

logger = logging.getLogger(__name__)

V1_DOCUMENTS = "hazyresearch/LoCoV1-Documents"
V1_QUERIES = "hazyresearch/LoCoV1-Queries"
LOCO_V1 = (
    "summ_screen_fd",
    "gov_report",
    "qmsum",
    "qasper_title",
    "qasper_abstract",
    "multifieldqa",
    "2wikimqa",
    "passage_retrieval",
    "legal_case_reports",
    "courtlistener_HTML",
    "courtlistener_Plain_Text",
    "stackoverflow",
)
"""Names of V1's tasks, as the column `dataset` has them."""


@dataclass(frozen=True)
class Pairs:
    """A task of V0: the columns of a data set that hold a document and its query."""

    repository: str
    config: str | None
    split: str
    document: str
    query: str


LOCO_V0 = {
    "summ_screen_fd": Pairs("tau/scrolls", "summ_screen_fd", "validation", "input", "output"),
    "gov_report": Pairs("tau/scrolls", "gov_report", "validation", "input", "output"),
    "qmsum": Pairs("tau/scrolls", "qmsum", "validation", "input", "output"),
    "qasper_title": Pairs("allenai/qasper", None, "test", "full_text", "title"),
    "qasper_abstract": Pairs("allenai/qasper", None, "test", "full_text", "abstract"),
}
"""V0's tasks. The test sets of SCROLLS are secret, so V0 uses its validation sets."""


def load_loco_v1(names: Sequence[str] = LOCO_V1, *, data: str | Path | None = None) -> list[Task]:
    """Tasks of LoCo V1, called "loco-v1/NAME".

    Documents without a text are left out, and queries all of whose documents are, as in the published evaluation.

    Args:
        names: of `LOCO_V1`.
        data: folder with copies of the data sets, see `load_rows`; None: they are fetched from the hub.

    Raises:
        TaskError: an unknown name; the data sets cannot be had, or lack a column or all rows of a task.
        MissingDependencyError: `datasets` is not installed.
    """
    _check_names(names, LOCO_V1, "loco-v1")
    documents = load_rows(V1_DOCUMENTS, None, "test", data)
    queries = load_rows(V1_QUERIES, None, "test", data)
    _check_columns(documents, V1_DOCUMENTS, ("pid", "passage", "dataset"))
    _check_columns(queries, V1_QUERIES, ("qid", "query", "answer_pids", "dataset"))
    return [_v1_task(name, _of_task(documents, name), _of_task(queries, name)) for name in names]


def load_loco_v0(names: Sequence[str] = tuple(LOCO_V0), *, data: str | Path | None = None) -> list[Task]:
    """Tasks of LoCo V0, called "loco-v0/NAME". Rows without a document or a query are left out.

    Arguments and errors as for `load_loco_v1`.
    """
    _check_names(names, LOCO_V0, "loco-v0")
    tasks = []
    for name in names:
        source = LOCO_V0[name]
        rows = load_rows(source.repository, source.config, source.split, data)
        _check_columns(rows, source.repository, (source.document, source.query))
        corpus, queries = {}, {}
        for number, row in enumerate(rows):
            document, query = _document_text(row[source.document]), row[source.query] or ""
            if document.strip() and query.strip():
                corpus[f"document-{number}"], queries[f"query-{number}"] = document, query
        qrels = {query: {query.replace("query", "document"): 1} for query in queries}
        tasks.append(_checked(Task(f"loco-v0/{name}", corpus, queries, qrels), source.repository))
    return tasks


def load_rows(repository: str, config: str | None, split: str, data: str | Path | None) -> Any:
    """One split of a data set, as `datasets` gives it.

    Args:
        repository: its name on the hub, "owner/name".
        config: one of its configurations; None: it has one only.
        data: a folder in which `repository` (and in it `config`) is a folder: one that `save_to_disk` wrote, or one
            of parquet, JSONL or CSV files with the split's name in theirs, like a download of the repository.
            None: fetch it from the hub.

    Raises:
        TaskError: it cannot be had; the message says how to give it as files.
    """
    datasets = require("datasets", extra="eval")
    folder = None if data is None else Path(data) / repository / (config or "")
    if folder is not None and not folder.is_dir():
        raise TaskError(f"{folder}: not a folder; {_layout(repository, config)}")
    try:
        if folder is None:
            return datasets.load_dataset(repository, config, split=split)
        if (folder / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(folder))[split]
        if (folder / "state.json").is_file():
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(str(folder), split=split)
    # What `datasets` raises for no connection, no such data set or split, damaged files, and loading by script, which
    # it has given up.
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        where = f"the data set {repository}" + (f" ({config})" if config else "") if folder is None else str(folder)
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason'}"
        raise TaskError(
            f"{where}: its split {split!r} cannot be read: {reason}. {_layout(repository, config)}"
        ) from error


def _layout(repository: str, config: str | None) -> str:
    place = f"DIR/{repository}/{config}" if config else f"DIR/{repository}"
    return (
        f"To use a copy, put its parquet or JSONL files, or what save_to_disk wrote, into {place}/ "
        "and give DIR as data (--data DIR)"
    )


def _v1_task(name: str, documents: Iterable[Mapping[str, Any]], queries: Iterable[Mapping[str, Any]]) -> Task:
    corpus: dict[str, str] = {}
    without_text, repeated = set(), 0
    for row in documents:
        repeated += row["pid"] in corpus
        if row["passage"] is None:
            without_text.add(row["pid"])
        else:
            corpus[row["pid"]] = row["passage"] if row["passage"].strip() else ""
    asked, qrels, unknown = {}, {}, 0
    for row in queries:
        answers = row["answer_pids"]
        if not isinstance(answers, list):
            raise TaskError(f"{V1_QUERIES}: answer_pids of {row['qid']!r} is a {type(answers).__name__}, not a list")
        relevant = {pid: 1 for pid in answers if pid not in without_text}
        if relevant and (row["query"] or "").strip():
            asked[row["qid"]], qrels[row["qid"]] = row["query"], relevant
            unknown += sum(pid not in corpus for pid in relevant)
    if without_text or repeated or unknown:
        logger.warning(
            "loco-v1/%s: %d documents without text are left out, of %d ids the last document counts, "
            "%d relevant documents are missing and count as never found",
            *(name, len(without_text), repeated, unknown),
        )
    return _checked(Task(f"loco-v1/{name}", corpus, asked, qrels), f"{V1_DOCUMENTS} and {V1_QUERIES}")


def _of_task(rows: Any, name: str) -> Any:
    return rows.select([number for number, task in enumerate(rows["dataset"]) if task == name])


def _document_text(value: Any) -> str:
    """A text, or the sections of a paper: each section's name on a line of its own, then its paragraphs on one."""
    if isinstance(value, str) or value is None:
        return value or ""
    if isinstance(value, Mapping):  # a column of lists instead of a list of sections
        value = [dict(zip(value, section, strict=True)) for section in zip(*value.values(), strict=True)]
    lines = [line for section in value for line in (section["section_name"], " ".join(section["paragraphs"] or []))]
    return "\n".join(line for line in lines if line).strip()


def _checked(task: Task, source: str) -> Task:
    if not task.corpus or not task.queries:
        raise TaskError(f"{source}: {len(task.corpus)} documents and {len(task.queries)} queries of {task.name}")
    return task


def _check_names(names: Sequence[str], known: Iterable[str], benchmark: str) -> None:
    for name in names:
        if name not in known:
            raise TaskError(f"{benchmark} has no task {name!r}; it has {', '.join(known)}")


def _check_columns(rows: Any, source: str, needed: Sequence[str]) -> None:
    missing = [column for column in needed if column not in rows.column_names]
    if missing:
        raise TaskError(
            f"{source}: no column {', '.join(map(repr, missing))}; the columns are {', '.join(rows.column_names)}"
        )
