"""Retrieval quality of whole-document vectors beside BM25 and three uses of all-MiniLM-L6-v2.

    python benchmarks/quality.py run SET TASK_DIR... [--systems bm25 minilm m2rag hybrid] [--cache DIR]
    python benchmarks/quality.py table SET...

`run` writes benchmarks/results/quality-SET-SYSTEM.json for each system, after every task, and takes over the tasks
that are in the file already with the same settings: a stopped run goes on where it was. `table` writes what is in
those files to benchmarks/results/quality.md.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, cpu_name

from m2rag.evaluation import BM25Ranker, DenseRanker, FusionRanker, Ranker, Task, evaluate, load_task
from m2rag.evaluation.report import BOOTSTRAP_SEED

PACKAGES = ("m2rag", "torch", "transformers", "tokenizers", "numpy", "bm25s", "PyStemmer", "pytrec_eval-terrier")
PRECISION_CHECK = "float32-check"  # set of tasks on which MiniLM was run in float32 too
DEVELOPMENT = "qmsum_val_"  # tasks whose figures guided choices: shown, not averaged
ORDER = ["bm25", "minilm-truncated", "minilm-chunk-mean", "minilm-chunk-max", "m2rag", "hybrid"]


def machine() -> str:
    """Number of cores and processor, without anything that names the host."""
    return f"{os.cpu_count()} cores {cpu_name()}"


def progress_line(done: int, total: int, start: float) -> None:
    rate = done / max(time.monotonic() - start, 1e-9)
    print(f"\r  {done:,} of {total:,} tokens, {rate:,.0f} tokens/s ", end="", file=sys.stderr, flush=True)


def build(systems: Sequence[str], args: argparse.Namespace) -> dict[str, tuple[Ranker, dict[str, Any]]]:
    """For each result file the ranker and the settings that its figures depend on."""
    built: dict[str, tuple[Ranker, dict[str, Any]]] = {}
    bm25 = BM25Ranker()
    bm25_settings = {"k1": bm25.k1, "b": bm25.b, "stemmer": "english", "stop_words": "english"}
    if "bm25" in systems:
        built["bm25"] = (bm25, bm25_settings)
    if "minilm" in systems:
        from minilm import MiniLM, MiniLMRanker, describe

        model = MiniLM(args.cache / f"minilm-{args.dtype}.bin", dtype=args.dtype)
        start = time.monotonic()
        for mode in ("truncated", "chunk-mean", "chunk-max"):
            ranker = MiniLMRanker(model, mode, lambda done, total: progress_line(done, total, start))
            built[f"minilm-{mode}"] = (ranker, {**describe(), "mode": mode, "dtype": args.dtype})
    if "m2rag" in systems or "hybrid" in systems:
        from m2rag import M2Embedder

        embedder = M2Embedder(args.model, dtype=args.dtype)
        dense = DenseRanker(embedder, name=args.name, show_progress=True)
        settings: dict[str, Any] = {
            "fingerprint": embedder.fingerprint,
            "dtype": args.dtype,
            "on_too_long": "window",
        }
        if "m2rag" in systems:
            built["m2rag"] = (dense, settings)
        if "hybrid" in systems:
            fusion = FusionRanker(bm25, dense, name=f"BM25 + {args.name}")
            built["hybrid"] = (fusion, {**settings, "bm25": bm25_settings, **fusion.settings})
    return built


def result_file(task_set: str, system: str) -> Path:
    return RESULTS / f"quality-{task_set}-{system}.json"


def measure(task_set: str, task: Task, key: str, ranker: Ranker, settings: dict[str, Any]) -> None:
    """Evaluate one system on one task and add the figures to its file, unless they are there already."""
    path = result_file(task_set, key)
    kept: dict[str, Any] = {}
    if path.exists():
        old = json.loads(path.read_text())
        if old["settings"] == settings:
            kept = {entry["task"]: entry for entry in old["tasks"]}
    if task.name in kept:
        return
    print(f"{ranker.name}: {task.name}", file=sys.stderr)
    report = evaluate(task, [ranker]).to_dict()
    (figures,) = report.pop("systems")
    del figures["system"]
    if key.startswith("minilm"):
        del figures["seconds"]  # mostly the reading of cached vectors
    kept[task.name] = {**report, **figures}
    content = {
        "system": ranker.name,
        "task_set": task_set,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "seeds": {"bootstrap": BOOTSTRAP_SEED},
        "settings": settings,
        "tasks": list(kept.values()),
    }
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def run(args: argparse.Namespace) -> None:
    RESULTS.mkdir(exist_ok=True)
    systems = build(args.systems, args)
    for task in [load_task(path) for path in args.tasks]:
        for key, (ranker, settings) in systems.items():
            measure(args.set, task, key, ranker, settings)


def markdown(task_sets: Sequence[str]) -> str:
    """A table of NDCG@10 x 100 with its 95 % interval, one row per task, one column per system."""
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    names: dict[str, str] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for task_set in task_sets:
        for key in ORDER:
            path = result_file(task_set, key)
            if not path.exists():
                continue
            content = json.loads(path.read_text())
            names[key] = content["system"]
            for entry in content["tasks"]:
                cells.setdefault(entry["task"], {})[key] = entry
                sizes[entry["task"]] = (entry["n_documents"], entry["n_queries"])
    columns = [key for key in ORDER if key in names]
    lines = [
        "NDCG@10 x 100, 95 % bootstrap interval over the queries in brackets.",
        "",
        "| task | docs | queries | " + " | ".join(names[key] for key in columns) + " |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for task, by_system in cells.items():
        shown = []
        for key in columns:
            entry = by_system.get(key)
            if entry is None:
                shown.append("")
                continue
            low, high = entry["ndcg_interval"]
            shown.append(f"{100 * entry['metrics']['ndcg@10']:.1f} ({100 * low:.1f}-{100 * high:.1f})")
        lines.append(f"| {task} | {sizes[task][0]} | {sizes[task][1]} | " + " | ".join(shown) + " |")
    test = {task: by_system for task, by_system in cells.items() if not task.startswith(DEVELOPMENT)}
    means = []
    for key in columns:
        figures = [entry[key]["metrics"]["ndcg@10"] for entry in test.values() if key in entry]
        means.append(f"**{100 * sum(figures) / len(figures):.1f}**" if len(figures) == len(test) else "")
    lines.append(f"| **mean of {len(test)}** ({DEVELOPMENT}* left out) | | | " + " | ".join(means) + " |")
    lines += ["", *precision_lines(cells, names)]
    return "\n".join(lines) + "\n"


def precision_lines(cells: dict[str, dict[str, dict[str, Any]]], names: dict[str, str]) -> list[str]:
    """What float32 gives where the table's MiniLM ran in bfloat16."""
    lines = []
    for key in names:
        path = result_file(PRECISION_CHECK, key)
        for entry in json.loads(path.read_text())["tasks"] if path.exists() else []:
            exact, shown = (e["metrics"]["ndcg@10"] for e in (entry, cells[entry["task"]][key]))
            lines.append(f"- {names[key]}, {entry['task']}: bfloat16 {100 * shown:.2f}, float32 {100 * exact:.2f}")
    return ["MiniLM runs in bfloat16 here. The difference to float32:", "", *lines] if lines else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run")
    runner.add_argument("set", help="name of this set of tasks, part of the result files' names")
    runner.add_argument("tasks", nargs="+", type=Path, metavar="TASK_DIR")
    runner.add_argument("--systems", nargs="+", default=["bm25", "minilm", "m2rag"])
    runner.add_argument("--model", help="checkpoint for m2rag and hybrid; default: the bundled one")
    runner.add_argument("--name", default="m2rag-mini", help="what tables call that checkpoint")
    runner.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the matrix products")
    runner.add_argument(
        "--cache",
        type=Path,
        default=os.environ.get("M2RAG_CACHE", Path.home() / ".cache" / "m2rag"),
        help="folder for MiniLM's chunk vectors; default: $M2RAG_CACHE or ~/.cache/m2rag",
    )
    runner.set_defaults(call=run)
    tabler = commands.add_parser("table")
    tabler.add_argument("sets", nargs="+")
    tabler.set_defaults(call=lambda args: (RESULTS / "quality.md").write_text(markdown(args.sets)))
    args = parser.parse_args()
    args.call(args)


if __name__ == "__main__":
    main()
