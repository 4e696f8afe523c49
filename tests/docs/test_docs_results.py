"""Tables of results are made from the committed files, figure by figure."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'm2rag[docs]'")

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_hook_{name}", DOCS / "hooks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


results = hook("results")


@pytest.mark.parametrize("name", results.TABLES)
def test_every_table_is_one(name: str) -> None:
    rows = [line for line in results.TABLES[name]().splitlines() if line.startswith("|")]
    assert len(rows) > 2
    assert len({line.count("|") for line in rows if not line.startswith("| search")}) == 1


def test_figures_are_those_of_the_files() -> None:
    folder = REPOSITORY / "benchmarks" / "results"
    with (folder / "cpu.csv").open(newline="") as file:
        first = next(csv.DictReader(file))
    assert f"| {first['implementation']} | {first['dtype']} | {first['n_tokens']} | {first['seconds']} |" in (
        results.TABLES["cpu"]()
    )
    task = json.loads((folder / "adapt-meetings.json").read_text())["tasks"][0]
    assert f"| {task['task']} | " in results.TABLES["adapted"]()
    assert f" {100 * task['adapted']['ndcg@10']:.1f} |" in results.TABLES["adapted"]()


def test_pages_show_every_table_and_no_other() -> None:
    asked = {
        name
        for page in DOCS.rglob("*.md")
        for name in re.findall(r"^<!-- results: (.+?) -->$", page.read_text(encoding="utf-8"), re.M)
    }
    assert asked == set(results.TABLES)
    with pytest.raises(Exception, match="there are no results 'speed'"):
        results.with_tables("<!-- results: speed -->", "page.md")


def test_the_page_of_commands_has_them_all() -> None:
    from support.pages import blocks, commands, wrong_command

    text = hook("command_line").command_line()
    sections = set(re.findall(r"^## (.+)$", text, re.M))
    assert {"index", "search", "serve", "train", "doctor"} <= sections
    examples = [words for block in blocks(text) if not block.language for words in commands(block.code)]
    assert len(examples) >= 12
    for words in examples:
        assert wrong_command(words) is None, words
