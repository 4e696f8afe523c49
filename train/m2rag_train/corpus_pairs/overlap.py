"""What training text and test tasks share: ids, and runs of 13 words."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from m2rag.evaluation import Task, load_task
from m2rag_train.sources import numbered_rows, text_of

logger = logging.getLogger(__name__)

WORDS = 13

# A run of words in so many training documents is a licence, a template or a formula of law, and tells of no document.
BOILERPLATE = 3

# A training document is dropped if it shares so many different runs, or this part of its own, with one test document,
# or any run with a query. Fewer are a quotation: of a law's name, of a code sample.
MOST_RUNS = 50
MOST_PART = 0.02

_WORD = re.compile(r"[a-z0-9]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Overlap:
    """A training document and the test text that it shares most with.

    Attributes:
        runs: different runs of words that both have, boilerplate aside.
        part: these by the runs of the training document.
    """

    document: str
    task: str
    test_id: str
    is_query: bool
    runs: int
    part: float

    @property
    def too_much(self) -> bool:
        """Whether the training document has to go."""
        return self.is_query or self.runs > MOST_RUNS or self.part > MOST_PART


class RunIndex:
    """The runs of words of all test texts.

    Args:
        tasks: whose documents and queries are looked for.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        texts: dict[tuple[str, bool], tuple[str, str]] = {}
        for task in tasks:
            # The tasks of one kind of document share its corpus.
            for identifier, text in task.corpus.items():
                texts.setdefault((text, False), (task.name, identifier))
            for identifier, text in task.queries.items():
                texts.setdefault((text, True), (task.name, identifier))
        self.ids = {identifier for task in tasks for identifier in task.corpus}
        self.owners = [(*place, is_query) for (_, is_query), place in texts.items()]
        found = [np.unique(run_hashes(text)) for text, _ in texts]
        owner = np.repeat(np.arange(len(found)), [len(hashes) for hashes in found])
        hashes = np.concatenate(found)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owner = hashes[order], owner[order]
        self._known = np.unique(self._hashes)

    def known(self, hashes: np.ndarray) -> np.ndarray:
        """Those of the unique `hashes` (N,) that some test text has."""
        places = np.searchsorted(self._known, hashes).clip(max=len(self._known) - 1)
        return hashes[self._known[places] == hashes]

    def owners_of(self, hashes: np.ndarray) -> np.ndarray:
        """Numbers of the test texts that have each of `hashes`, one for every meeting."""
        left, right = np.searchsorted(self._hashes, hashes, "left"), np.searchsorted(self._hashes, hashes, "right")
        return np.concatenate([self._owner[a:b] for a, b in zip(left, right, strict=True)] or [self._owner[:0]])


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def run_hashes(text: str) -> np.ndarray:
    """A number for each run of 13 words of a text; none if it is shorter."""
    words = words_of(text)
    count = len(words) - WORDS + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    numbers = np.array([hash(word) for word in words], dtype=np.int64).view(np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for i in range(WORDS):
        total = (total ^ (total >> np.uint64(29))) * _FACTOR + numbers[i : i + count]
    return total


def find_overlaps(documents: Iterable[tuple[str, str]], index: RunIndex) -> tuple[list[Overlap], dict[str, int]]:
    """Every training document that shares runs with test texts, most first, and counts of what was looked at.

    Args:
        documents: (id, text with all its queries) of each training document.
    """
    shared: list[tuple[str, np.ndarray, int]] = []
    documents_seen = words = 0
    same_ids = []
    for identifier, text in documents:
        hashes = run_hashes(text)
        documents_seen, words = documents_seen + 1, words + len(hashes)
        if identifier in index.ids:
            same_ids.append(identifier)
        unique = np.unique(hashes)
        found = index.known(unique)
        if len(found):
            shared.append((identifier, found, len(unique)))
    values, times = np.unique(np.concatenate([s[1] for s in shared] or [np.zeros(0, np.uint64)]), return_counts=True)
    common = values[times >= BOILERPLATE]
    overlaps = []
    for identifier, found, size in shared:
        rare = found[~np.isin(found, common, assume_unique=True)]
        if len(rare):
            overlaps.append(_worst(identifier, rare, size, index))
    overlaps.sort(key=lambda o: (-o.too_much, -o.runs, o.document))
    counts = {
        "documents": documents_seen,
        "runs of words": words,
        "documents with the id of a test document": len(same_ids),
        "documents sharing runs": len(shared),
        "shared runs that are boilerplate": len(common),
        "documents sharing runs, boilerplate aside": len(overlaps),
        "dropped": sum(o.too_much for o in overlaps),
    }
    return overlaps, counts


def _worst(identifier: str, rare: np.ndarray, size: int, index: RunIndex) -> Overlap:
    owners, runs = np.unique(index.owners_of(rare), return_counts=True)
    # A query counts whatever the document shares with others.
    queries = [i for i, owner in enumerate(owners) if index.owners[owner][2]]
    best = max(queries or range(len(owners)), key=lambda i: runs[i])
    task, test_id, is_query = index.owners[owners[best]]
    return Overlap(identifier, task, test_id, is_query, int(runs[best]), float(runs[best] / size))


def training_texts(folder: Path) -> Iterator[tuple[str, str]]:
    """(id, text and queries) of every document that `make.py` wrote, each once."""
    for path in sorted(folder.glob("*.documents.jsonl.zst")):
        name = path.name.removesuffix(".documents.jsonl.zst")
        if name.endswith(".asked"):
            continue
        queries: dict[str, list[str]] = {}
        asked = folder / f"{name}.asked.pairs.jsonl.zst"
        for pairs in [folder / f"{name}.pairs.jsonl.zst", *([asked] if asked.exists() else [])]:
            for where, row in numbered_rows(pairs):
                queries.setdefault(text_of(row, "document_id", where), []).append(text_of(row, "query", where))
        for where, row in numbered_rows(path):
            identifier = text_of(row, "_id", where)
            yield identifier, "\n\n".join([text_of(row, "text", where), *queries.get(identifier, [])])


def check(pairs: Path, tasks: Sequence[Path], report: Path) -> list[str]:
    """Write what training and test share to `report`; the ids of documents that have to go."""
    index = RunIndex([load_task(folder) for folder in tasks])
    overlaps, counts = find_overlaps(training_texts(pairs), index)
    dropped = sorted(overlap.document for overlap in overlaps if overlap.too_much)
    shown = [
        {
            "training document": o.document,
            "test": f"{o.task} {'query' if o.is_query else 'document'} {o.test_id}",
            "runs": o.runs,
            "part of the training document": round(o.part, 4),
            "dropped": o.too_much,
        }
        for o in overlaps
    ]
    rules = {
        "words in a run": WORDS,
        "boilerplate from so many training documents": BOILERPLATE,
        "dropped above so many runs": MOST_RUNS,
        "or above this part": MOST_PART,
        "or any run of a query": True,
    }
    content = {"tasks": [folder.name for folder in tasks], "rules": rules, "found": counts, "overlaps": shown}
    report.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    logger.info("%s", ", ".join(f"{name}: {count:,}" for name, count in counts.items()))
    return dropped
