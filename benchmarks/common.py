"""What the benchmarks share: the machine by name, work in child processes, CSV, tables, and lines against bars."""

from __future__ import annotations

import argparse
import csv
import json
import math
import operator
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parent / "results"
OK = "ok"

Row = dict[str, Any]


def cpu_name() -> str:
    """The processor's name, without anything that names the host."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def environment(device: str) -> Row:
    """What the figures depend on; `device` is "cpu" or "cuda". Neither a date nor the name of a host."""
    row: Row = {"device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(), "cores": os.cpu_count()}
    if device == "cpu":
        row |= {"threads": torch.get_num_threads(), "instructions": torch.backends.cpu.get_cpu_capability()}
    else:
        row |= {"cuda": torch.version.cuda, "triton": _version("triton")}
    return row | {
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "python": platform.python_version(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@dataclass(frozen=True)
class Part:
    """Work for one child process.

    Attributes:
        name: how reports call it.
        arguments: what the child is started with, behind the script's name.
        seconds: the child is ended after this long.
    """

    name: str
    arguments: Sequence[str]
    seconds: float


@dataclass(frozen=True)
class Finished:
    """How a child ended: its rows, also those from before it failed, and None or why it failed."""

    rows: list[Row]
    failure: str | None


class Rows:
    """Where measurements go: a list, and for a child process a file in which each is safe before the next is made."""

    def __init__(self, path: Path | None = None) -> None:
        self.all: list[Row] = []
        self._path = path

    def add(self, row: Row) -> None:
        self.all.append(row)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def in_one_line(error: Exception) -> str:
    """Kind and beginning of an error's message, for a field of a table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:120]}"


def run_parts(
    script: str,
    parts: Sequence[Part],
    at_once: int = 1,
    report: Callable[[Part, Finished], None] | None = None,
    seconds: float = math.inf,
) -> dict[str, Finished]:
    """Run `python SCRIPT *ARGUMENTS --rows FILE` for every part and collect what the children put into their files.

    A child that crashes, hangs or is killed costs its own remaining rows, nobody else's. What children print goes to
    standard error.

    Args:
        at_once: children that run side by side.
        report: told about every part as it ends.
        seconds: after this long all that runs is ended, and nothing is started any more.
    """
    end = time.monotonic() + seconds
    waiting = list(parts)
    running: list[tuple[Part, subprocess.Popen[bytes], Path, float]] = []
    done: dict[str, Finished] = {}

    def finish(part: Part, rows: list[Row], failure: str | None) -> None:
        done[part.name] = Finished(rows, failure)
        if report is not None:
            report(part, done[part.name])

    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    part, now = waiting.pop(0), time.monotonic()
                    if now >= end:
                        finish(part, [], "not started: out of time")
                        continue
                    file = Path(folder) / f"{len(waiting)}.jsonl"
                    command = [sys.executable, script, *part.arguments, "--rows", str(file)]
                    child = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
                    running.append((part, child, file, min(now + part.seconds, end)))
                time.sleep(0.05)
                for entry in list(running):
                    part, child, file, deadline = entry
                    if child.poll() is None and time.monotonic() < deadline:
                        continue
                    running.remove(entry)
                    failure = f"exit status {child.returncode}" if child.returncode else None
                    if child.returncode is None:
                        _end(child)
                        failure = "ended: out of time"
                    # A child that was ended may have left a piece of a line behind its last line break.
                    lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []
                    finish(part, [json.loads(line) for line in lines], failure)
        finally:
            for _, child, _, _ in running:
                _end(child)
    return {part.name: done[part.name] for part in parts}


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a child and what it started (compilers): they are a session of their own."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def check_interpreted(parser: argparse.ArgumentParser) -> None:
    """Leave with an explanation unless Triton interprets its kernels, which is decided before they are imported."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("this runs on a CPU and needs TRITON_INTERPRET=1 in the environment")


def check_cuda(parser: argparse.ArgumentParser) -> None:
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here; see --help for what runs on a CPU")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """All columns that any row has, in the order in which they first come up; a missing value is an empty field."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[Row]:
    """The rows of `write_csv`: numbers are numbers again, empty fields None."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: _parse(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _parse(value: str) -> Any:
    if value == "":
        return None
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def significant(value: float, digits: int = 4) -> float:
    """Rounded to what a measurement is good for."""
    return float(f"{value:.{digits}g}")


def table(rows: Iterable[Row], columns: Sequence[str]) -> str:
    """Aligned text: columns of numbers to the right, absent values as a dash."""
    values = [[row.get(name) for name in columns] for row in rows]
    cells = [list(columns), *([_text(value) for value in line] for line in values)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    right = [all(line[i] is None or isinstance(line[i], (int, float)) for line in values) for i in range(len(columns))]
    aligned = []
    for line in cells:
        sides = zip(line, widths, right, strict=True)
        aligned.append([cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in sides])
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


@dataclass(frozen=True)
class Bar:
    """One line of the last table: what was measured, and what it must reach (None: for information)."""

    what: str
    value: float | None
    relation: str = ""
    limit: float | None = None

    def row(self) -> Row:
        compare = {">=": operator.ge, "<=": operator.le}
        bar = met = ""
        if self.limit is not None:
            bar = f"{self.relation} {self.limit:g}"
            met = "-" if self.value is None else "yes" if compare[self.relation](self.value, self.limit) else "no"
        return {"what": self.what, "measured": self.value, "bar": bar, "met": met}


def bars_table(bars: Iterable[Bar]) -> str:
    return table((bar.row() for bar in bars), ("what", "measured", "bar", "met"))


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b, or None where one was not measured."""
    return None if a is None or b is None else significant(a / b)


def find(rows: Iterable[Row], **wanted: Any) -> Row:
    """The first row with these values that was measured; {} if there is none."""
    for row in rows:
        if row.get("status", OK) == OK and all(row.get(name) == value for name, value in wanted.items()):
            return row
    return {}
