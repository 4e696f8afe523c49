"""Run retrieval systems over tasks and hold what came out as plain data, for tables and for JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m2rag.evaluation.metrics import bootstrap_interval, mean_metrics, score_run
from m2rag.evaluation.rankers import Ranker
from m2rag.evaluation.tasks import Task, load_task

Progress = Callable[[str, str, int, int], None]

DEPTH = 100  # documents a system is asked for; the metrics look at ten, fusion and inspection like more
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class SystemReport:
    """One system on one task.

    Attributes:
        system: its name.
        metrics: mean over the queries of each metric of `m2rag.evaluation.METRICS`, 0 to 1.
        ndcg_interval: 95 % bootstrap interval over the queries of the mean NDCG@10.
        seconds: wall time of indexing and all queries together, s.
        per_query: each metric of each query, for paired comparisons.
    """

    system: str
    metrics: dict[str, float]
    ndcg_interval: tuple[float, float]
    seconds: float
    per_query: dict[str, dict[str, float]] = field(repr=False)


@dataclass(frozen=True)
class TaskReport:
    """All systems on one task.

    Attributes:
        task: its name.
        n_documents: size of the corpus.
        n_queries: queries measured on.
        systems: in the order they were given.
        length: tokens of every document, where the task exists at several lengths; None elsewhere.
    """

    task: str
    n_documents: int
    n_queries: int
    systems: list[SystemReport]
    length: int | None = None

    def to_dict(self, *, per_query: bool = False) -> dict[str, Any]:
        """Plain data for `json.dump`, without the figures of single queries unless asked."""
        plain = asdict(self)
        for system in plain["systems"]:
            system["ndcg_interval"] = list(system["ndcg_interval"])
            if not per_query:
                del system["per_query"]
        return plain


def evaluate(task: Task, rankers: Sequence[Ranker], progress: Progress | None = None) -> TaskReport:
    """Rank, score and time each system on `task`.

    Args:
        progress: called as `progress(task, system, done, total)` before each system and once at the end.
    """
    systems = []
    for done, ranker in enumerate(rankers):
        if progress is not None:
            progress(task.name, ranker.name, done, len(rankers))
        start = time.perf_counter()
        run = ranker.rank(task.corpus, task.queries, DEPTH)
        seconds = time.perf_counter() - start
        per_query = score_run(task.qrels, run)
        ndcg = np.array([values["ndcg@10"] for values in per_query.values()])
        interval = bootstrap_interval(ndcg, seed=BOOTSTRAP_SEED)
        systems.append(SystemReport(ranker.name, mean_metrics(per_query), interval, seconds, per_query))
    if progress is not None:
        progress(task.name, "", len(rankers), len(rankers))
    return TaskReport(task.name, len(task.corpus), len(task.queries), systems, task.length)


def evaluate_tasks(
    given: Iterable[str | Path | Task], rankers: Sequence[Ranker], progress: Progress | None = None
) -> list[TaskReport]:
    """`evaluate` for each task or task folder, in the order given.

    All folders are read before anything is embedded, so that a broken one is told at once and not after an hour.

    Args:
        progress: called as `progress(task, system, done, total)`, counted over all tasks and systems.

    Raises:
        TaskError: a folder is not a task, or a line of it is broken.
    """
    tasks = [task if isinstance(task, Task) else load_task(task) for task in given]
    total = len(tasks) * len(rankers)
    reports = []
    for number, task in enumerate(tasks):
        before = number * len(rankers)

        def step(name: str, system: str, done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(name, system, before + done, total)

        reports.append(evaluate(task, rankers, step))
    return reports


def table(reports: Sequence[TaskReport]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table with one row per task and system, figures times 100."""
    header = ["task", "docs", "queries", "system", "NDCG@10", "95 %", "recall@10", "accuracy@1", "MRR@10"]
    rows = []
    for report in reports:
        for system in report.systems:
            low, high = system.ndcg_interval
            metrics = [times_100(system.metrics[name]) for name in ("ndcg@10", "recall@10", "accuracy@1", "mrr@10")]
            sizes = [f"{report.n_documents:,}", f"{report.n_queries:,}"]
            interval = f"{times_100(low)} - {times_100(high)}"
            rows.append([report.task, *sizes, system.system, metrics[0], interval, *metrics[1:]])
    return header, rows


def length_table(reports: Sequence[TaskReport]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table with one column per length, for tasks that have one, figures times 100.

    A row for each kind of task, system, and metric (accuracy@1, NDCG@10); the last column is the mean over the lengths.
    """
    figures: dict[tuple[str, str, str], dict[int, float]] = {}
    for report in reports:
        if report.length is None:
            continue
        kind = report.task.removesuffix(f"-{report.length}")
        for metric, shown in (("accuracy@1", "accuracy@1"), ("ndcg@10", "NDCG@10")):
            for system in report.systems:
                figures.setdefault((kind, shown, system.system), {})[report.length] = system.metrics[metric]
    lengths = sorted({length for values in figures.values() for length in values})
    header = ["task", "metric", "system", *map(str, lengths), "mean"]
    rows = []
    for key, values in figures.items():
        mean = times_100(sum(values.values()) / len(values)) if len(values) == len(lengths) else ""
        rows.append([*key, *(times_100(values[n]) if n in values else "" for n in lengths), mean])
    return header, rows


def times_100(figure: float) -> str:
    """A figure from 0 to 1 as tables show it."""
    return f"{100 * figure:.1f}"
