"""What a run measured, as JSON for machines and as Markdown for a README: with date, versions and settings."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from m2rag.evaluation.rankers import Ranker
from m2rag.evaluation.report import BOOTSTRAP_SEED, TaskReport, length_table, times_100

PACKAGES = (
    "m2rag torch transformers tokenizers numpy sentence-transformers bm25s PyStemmer pytrec_eval-terrier datasets"
).split()


def as_json(reports: Sequence[TaskReport], rankers: Sequence[Ranker], *, per_query: bool = False) -> dict[str, Any]:
    """Plain data for `json.dump`: figures from 0 to 1, and all that they depend on.

    `{date, python, versions: {package: version}, interval, systems: {name: settings}, tasks: [{task, n_documents,
    n_queries, length, systems: [{system, metrics: {name: value}, ndcg_interval: [low, high], seconds}]}]}`

    Args:
        per_query: with every query's figures, for paired comparisons.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "interval": f"95 %, percentile bootstrap over the queries, seed {BOOTSTRAP_SEED}",
        "systems": {ranker.name: getattr(ranker, "settings", {}) for ranker in rankers},
        "tasks": [report.to_dict(per_query=per_query) for report in reports],
    }


def as_markdown(reports: Sequence[TaskReport], rankers: Sequence[Ranker]) -> str:
    """Tables of figures times 100, one column per system, then what the figures depend on.

    Tasks that exist at several lengths have a table of their own, with a column per length.
    """
    parts = []
    plain = [report for report in reports if report.length is None]
    if plain:
        parts += ["NDCG@10 x 100, 95 % interval over the queries in brackets.", _by_system(plain)]
    if len(plain) < len(reports):
        sizes = sorted({(report.n_documents, report.n_queries) for report in reports if report.length is not None})
        described = ", ".join(f"{documents} documents and {queries} queries" for documents, queries in sizes)
        parts += [f"By tokens per document, x 100; {described} at each length.", _markdown(*length_table(reports))]
    about = as_json([], rankers)
    parts.append("\n".join(f"- {name}: {_settings(settings)}" for name, settings in about["systems"].items()))
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    parts.append(f"Measured {about['date']}, Python {about['python']}, {versions}.")
    return "\n\n".join(parts) + "\n"


def _by_system(reports: Sequence[TaskReport]) -> str:
    names = [system.system for system in reports[0].systems]
    rows = []
    for report in reports:
        cells = []
        for system in report.systems:
            low, high = map(times_100, system.ndcg_interval)
            cells.append(f"{times_100(system.metrics['ndcg@10'])} ({low}-{high})")
        rows.append([report.task, f"{report.n_documents:,}", f"{report.n_queries:,}", *cells])
    if len(reports) > 1:
        means = [
            sum(report.systems[i].metrics["ndcg@10"] for report in reports) / len(reports) for i in range(len(names))
        ]
        rows.append([f"**mean of {len(reports)}**", "", "", *(f"**{times_100(mean)}**" for mean in means)])
    return _markdown(["task", "docs", "queries", *names], rows)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), "|---" * len(header) + "|", *map(line, rows)])


def _settings(settings: dict[str, Any]) -> str:
    """Settings on one line; of a model with a fingerprint those that it does not hold."""
    if "fingerprint" in settings:
        beside = ("dtype", "max_tokens", "on_too_long", "mode", "chunk_tokens", "fingerprint")
        settings = {name: settings[name] for name in beside if name in settings}
    return ", ".join(f"{name} `{value}`" for name, value in settings.items())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
