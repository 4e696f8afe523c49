"""The walk-through of domain adaptation on small input: its split, its recipe for a few steps, its table."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from m2rag.evaluation import load_task

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "domain_adaptation" / "split_pairs.py"
SUBJECTS = "harbour orchard glacier violin pottery railway lantern beehive compass quarry".split()


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Ten documents on ten subjects, two queries each."""
    documents = [
        {"_id": name, "title": "", "text": f"The committee spoke about the {name}. " + "There were many views. " * 20}
        for name in SUBJECTS
    ]
    write(tmp_path / "documents.jsonl", documents)
    pairs = [
        {"query": text.format(name), "document_id": name}
        for name in SUBJECTS
        for text in ("What was said about the {}?", "Decisions on the {}")
    ]
    write(tmp_path / "pairs.jsonl", pairs)
    return tmp_path


def run_split(raw: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, raw / "documents.jsonl", raw / "pairs.jsonl", "--out", raw / "data", *options],
        capture_output=True,
        text=True,
    )


def test_no_query_is_on_both_sides_and_the_corpus_is_whole(raw: Path) -> None:
    done = run_split(raw)
    assert done.stdout.startswith("16 pairs to train on, 4 queries to measure on"), done.stderr
    task = load_task(raw / "data" / "validation")
    assert set(task.corpus) == set(SUBJECTS)
    trained = [json.loads(line) for line in (raw / "data" / "pairs.jsonl").read_text().splitlines()]
    measured = {document for grades in task.qrels.values() for document in grades}
    assert len(measured) == 2
    assert not measured & {row["document_id"] for row in trained}
    assert not set(task.queries.values()) & {row["query"] for row in trained}


def test_a_pair_of_an_unknown_document_is_an_error(raw: Path) -> None:
    write(raw / "pairs.jsonl", [{"query": "q", "document_id": "nowhere"}])
    done = run_split(raw)
    assert done.returncode and "document_id 'nowhere' is not in" in done.stderr


def test_nothing_to_measure_on_is_an_error(raw: Path) -> None:
    done = run_split(raw, "--hold-out", "0.01")
    assert done.returncode and "0 to measure on: change --hold-out" in done.stderr


def test_the_walk_through_runs_as_printed(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from m2rag.cli.app import app

    text = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(m2rag train .*?|m2rag eval .*?)(?<!\\)$", text, re.MULTILINE | re.DOTALL)
    train, evaluate = (shlex.split(command.replace("\\\n", " "))[1:] for command in commands[:2])
    assert run_split(raw).returncode == 0
    monkeypatch.chdir(raw)
    (raw / "train").symlink_to(ROOT / "train")
    few = ["--set", "epochs=1", "--set", "documents=2", "--set", "evaluation.every=2"]
    trained = CliRunner().invoke(app, [*train, *few])
    assert trained.exit_code == 0, trained.output
    measured = CliRunner().invoke(app, [*evaluate, "--json"])
    assert measured.exit_code == 0, measured.output
    (report,) = json.loads(measured.stdout)["tasks"]
    assert [system["system"] for system in report["systems"]] == ["BM25", "before", "model"]
