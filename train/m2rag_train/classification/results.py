"""What came out: a file for each task and seed while the run goes on, and a table of all at its end."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2rag_train.classification.recipe import ClassifyRecipe, TaskSettings
from m2rag_train.classification.tasks import TASKS
from m2rag_train.files import replacing

JSON_FILE, MARKDOWN_FILE = "results.json", "results.md"


@dataclass(frozen=True)
class Summary:
    """A task over its seeds, in points of 100.

    Attributes:
        scores: of each seed, in the recipe's order.
        metrics: mean of each metric.
    """

    settings: TaskSettings
    scores: list[float]
    metrics: dict[str, float]

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores)

    @property
    def median(self) -> float:
        return statistics.median(self.scores)


def result_file(run: Path, task: str, seed: int) -> Path:
    """Where the figures of a task and seed are kept; the file is there when they are."""
    return run / "figures" / f"{task}-{seed}.json"


def write_json(path: Path, data: Any) -> None:
    """A JSON file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def summaries(recipe: ClassifyRecipe, run: Path) -> list[Summary]:
    """All tasks of a finished run."""
    found = []
    for settings in recipe.tasks:
        figures = [
            json.loads(result_file(run, settings.task, seed).read_text(encoding="utf-8")) for seed in settings.seeds
        ]
        names = TASKS[settings.task].metrics
        means = {name: 100 * statistics.mean(each["metrics"][name] for each in figures) for name in names}
        counted = settings.metrics or names
        scores = [100 * statistics.mean(each["metrics"][name] for name in counted) for each in figures]
        found.append(Summary(settings, scores, means))
    return found


def write_results(recipe: ClassifyRecipe, run: Path) -> Path:
    """Write `results.json` and `results.md`; the path of the latter."""
    found = summaries(recipe, run)
    average = statistics.mean(summary.mean for summary in found)
    tasks = {
        summary.settings.task: {
            "score": {"mean": summary.mean, "median": summary.median},
            "metrics": summary.metrics,
            "seeds": dict(zip(map(str, summary.settings.seeds), summary.scores, strict=True)),
            "start": summary.settings.start or recipe.base,
        }
        for summary in found
    }
    write_json(run / JSON_FILE, {"name": recipe.name, "base": recipe.base, "average": average, "tasks": tasks})
    lines = [
        f"# {recipe.name}",
        "",
        f"Base: {recipe.base}. Points of 100 on the validation sets; mean over seeds, and median.",
        "",
        "| task | score | median | seeds | from | metrics |",
        "|---|---|---|---|---|---|",
    ]
    for summary in found:
        settings = summary.settings
        metrics = ", ".join(f"{name} {value:.1f}" for name, value in summary.metrics.items())
        lines.append(
            f"| {settings.task} | {summary.mean:.1f} | {summary.median:.1f} | {len(settings.seeds)} | "
            f"{settings.start or 'base'} | {metrics} |"
        )
    lines.append(f"| average of {len(found)} | {average:.1f} | | | | |")
    path = run / MARKDOWN_FILE
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
