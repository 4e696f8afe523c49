"""Tables of the pages, made from the committed results in benchmarks/results whenever the site is built.

A line `<!-- results: NAME -->` in a page stands for a table; NAME is one of `TABLES`. Nobody copies a number.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"

_PLACE = re.compile(r"^<!-- results: (.+?) -->$", re.M)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """mkdocs calls this with the files found; adds the plots."""
    for plot in sorted(RESULTS.glob("*.svg")):
        files.append(File.generated(config, f"images/{plot.name}", abs_src_path=str(plot)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """mkdocs calls this with each page; puts the tables in."""
    return with_tables(markdown, page.file.src_uri)


def with_tables(markdown: str, where: str) -> str:
    """The page with its tables."""

    def table(found: re.Match[str]) -> str:
        if found[1] not in TABLES:
            raise PluginError(f"{where}: there are no results {found[1]!r}, only {', '.join(TABLES)}")
        return TABLES[found[1]]()

    return _PLACE.sub(table, markdown)


def _read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def _rows(name: str) -> list[dict[str, str]]:
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _text(name: str) -> str:
    return (RESULTS / name).read_text(encoding="utf-8").strip()


def _cpu() -> str:
    rows = _rows("cpu.csv")
    titles = {
        "implementation": "implementation",
        "dtype": "numbers",
        "n_tokens": "tokens",
        "seconds": "seconds",
        "tokens_per_s": "tokens/s",
        "peak_mb_above_model": "peak MB above the model",
    }
    table = _table(titles.values(), ([_number(row[name]) for name in titles] for row in rows))
    one = rows[0]
    machine = f"{one['cores']} cores of an {one['device']} ({one['instructions']}), {one['threads']} threads"
    return f"{table}\n\nMeasured on {machine}, torch {one['torch']}, Python {one['python']}."


def _train_memory() -> str:
    titles = {
        "shape": "shape",
        "loss": "loss",
        "n_tokens": "tokens",
        "negatives": "negatives",
        "checkpointing": "checkpointing",
        "cpu_seconds": "CPU seconds",
        "model_mb": "model, MB",
        "step_mb": "a step above it, MB",
    }
    return _table(titles.values(), ([_number(row[name]) for name in titles] for row in _rows("train-memory.csv")))


def _server_load() -> str:
    data = _read("server-load.json")
    kinds = [("query", "queries"), ("pages", "pages"), ("long", "whole long documents")]
    names = ("requests", "p50_s", "p95_s", "p99_s")
    table = _table(
        ("requests for", "number", "p50, s", "p95, s", "p99, s"),
        ([title, *(_number(data[kind][name]) for name in names)] for kind, title in kinds),
    )
    memory = data["memory_mb"]
    return (
        f"{table}\n\n{data['clients']} clients without pause for {data['seconds']:.0f} s: {data['requests_per_s']} "
        f"requests and {data['tokens_per_s']:,} tokens a second, {data['lost']} answers lost, {data['wrong_vectors']} "
        f"wrong, {data['busy']} told to come back. Memory, after a minute to warm up: {memory['start']:,} MB, at most "
        f"{memory['peak_first_half']:,} MB in the first half of that time and {memory['peak_second_half']:,} MB in the "
        f"second. {_machine(data)}"
    )


def _index_scale() -> str:
    data = _read("index-scale.json")
    parts = []
    for found in (value for value in data.values() if isinstance(value, dict) and "documents" in value):
        searches = {name: found[f"search_{name}_ms"] for name in ("hybrid", "dense", "lexical")}
        parts.append(
            f"{found['documents']:,} documents: {found['documents_per_s']:,} a second written "
            f"({found['seconds']} s), {found['size_mb']:,} MB on disk, the same `add` again {found['again_seconds']} s."
            "\n\n" + _table(
                ("search", "p50, ms", "p95, ms"), ([name, ms["p50"], ms["p95"]] for name, ms in searches.items())
            )
        )  # fmt: skip
    return "\n\n".join([*parts, _machine(data)])


def _adapted() -> str:
    def points(value: float) -> str:
        return f"{100 * value:.1f}"

    return _table(
        ("task", "documents", "queries", "before", "adapted", "difference"),
        (
            [
                task["task"], task["n_documents"], task["n_queries"],
                points(before := task["before"]["ndcg@10"]), points(after := task["adapted"]["ndcg@10"]),
                f"{100 * (after - before):+.1f}",
            ]
            for task in _read("adapt-meetings.json")["tasks"]
        ),
    )  # fmt: skip


def _machine(data: dict[str, Any]) -> str:
    where = data["environment"]
    return f"{where['cores']} cores of an {where['device']}, {where['threads']} threads, torch {where['torch']}."


def _number(value: object) -> str:
    """As it stands, whole numbers with commas."""
    try:
        number = float(str(value))
    except ValueError:
        return str(value) or "-"
    return f"{number:,.0f}" if number.is_integer() else str(value)


TABLES: dict[str, Callable[[], str]] = {
    "quality": lambda: _text("quality.md"),
    "hybrid": lambda: _text("hybrid.md"),
    "passages": lambda: _text("passages.md"),
    "vector sizes": lambda: _text("vector-sizes.md"),
    "needle and passkey": lambda: _text("needle-passkey.md"),
    "cpu": _cpu,
    "train memory": _train_memory,
    "server load": _server_load,
    "index scale": _index_scale,
    "adapted": _adapted,
}
