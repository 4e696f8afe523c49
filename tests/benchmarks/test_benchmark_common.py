"""Child processes, CSV and tables of the benchmarks."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from common import Bar, Part, bars_table, environment, find, ratio, read_csv, run_parts, table, write_csv

CHILD = """
import json, os, subprocess, sys, time
what, rows = sys.argv[1], sys.argv[sys.argv.index("--rows") + 1]

def add(**row):
    with open(rows, "a") as file:
        file.write(json.dumps(row) + "\\n")

add(what=what, pid=os.getpid())
if what == "hangs":
    add(grandchild=subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid)
    time.sleep(60)
if what == "crashes":
    os.abort()
add(what=what, last=True)
"""


def is_running(pid: int) -> bool:
    """Whether the process does anything; one that nobody waited for is over as well."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_failing_child_costs_nobody_else_anything(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    parts = [Part(name, [name], 3) for name in ("crashes", "hangs", "works")]
    seen = []
    start = time.monotonic()
    done = run_parts(str(script), parts, at_once=2, report=lambda part, finished: seen.append(part.name))
    assert time.monotonic() - start < 20
    assert list(done) == ["crashes", "hangs", "works"]
    assert sorted(seen) == sorted(done)
    assert done["works"].failure is None and done["works"].rows[-1]["last"]
    assert len(done["crashes"].rows) == 1 and "-6" in str(done["crashes"].failure)
    assert "out of time" in str(done["hangs"].failure)
    left = [done["hangs"].rows[0]["pid"], done["hangs"].rows[1]["grandchild"]]
    deadline = time.monotonic() + 10
    while any(map(is_running, left)):
        assert time.monotonic() < deadline, "what a child started outlives it"
        time.sleep(0.05)


def test_csv_comes_back_as_it_was(tmp_path):
    rows = [{"a": "x, y", "b": 3, "c": 0.25}, {"a": "z", "c": None, "d": "1.2.3"}]
    write_csv(tmp_path / "new" / "file.csv", rows)
    assert read_csv(tmp_path / "new" / "file.csv") == [
        {"a": "x, y", "b": 3, "c": 0.25, "d": None},
        {"a": "z", "b": None, "c": None, "d": "1.2.3"},
    ]


def test_table_aligns_numbers_to_the_right():
    text = table([{"name": "a", "n": 12345}, {"name": "long one", "n": None}], ("name", "n"))
    assert text.splitlines() == ["name           n", "a         12,345", "long one       -"]


@pytest.mark.parametrize(
    ("bar", "met"),
    [
        (Bar("x", 5.0, ">=", 5), "yes"),
        (Bar("x", 4.99, ">=", 5), "no"),
        (Bar("x", 4.99, "<=", 5), "yes"),
        (Bar("x", 5.01, "<=", 5), "no"),
        (Bar("x", None, ">=", 5), "-"),
        (Bar("x", 3.0), ""),
    ],
)
def test_bars(bar, met):
    assert bar.row()["met"] == met
    assert "x" in bars_table([bar])


def test_ratio_and_find():
    rows = [{"a": 1, "status": "failed"}, {"a": 1, "status": "ok", "b": 2}]
    assert find(rows, a=1)["b"] == 2
    assert find(rows, a=2) == {}
    assert ratio(3, 2) == 1.5
    assert ratio(None, 2) is None


def test_environment_names_the_machine_but_neither_host_nor_day():
    row = environment("cpu")
    assert row["cores"] == os.cpu_count() and row["device"] and row["torch"]
    assert os.uname().nodename not in row.values()
    assert not any("date" in name or "time" in name or "host" in name for name in row)
