"""`m2rag sync`: what it says and deletes, failures in a file, and watching in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from m2rag.cli.common import KINDS
from m2rag.index.readers import CODE, READERS, ROW_READERS

ANSWERS = {"index", "documents", "added", "replaced", "unchanged", "deleted", "failed", "skipped", "n_tokens"}
ANSWERS |= {"seconds", "dry_run", "to_add", "to_replace"}


def test_sync(run, data, documents: Path, model: Path, tmp_path: Path) -> None:
    where, failures = tmp_path / "index", tmp_path / "failures.jsonl"
    told = run("sync", documents, "-i", where, "-m", model)
    assert told.exit_code == 0
    assert "3 documents (3 added, 0 replaced, 0 unchanged, 0 deleted)" in told.stdout

    (documents / "cats.txt").unlink()
    (documents / "rivers.md").write_bytes(b"")
    (documents / "rows.csv").write_text("id,text\n1,A row about dogs.\n2,\n")
    plan = run("sync", documents, "-i", where, "--dry-run")
    assert plan.exit_code == 3 and "Would add 1, replace 0, delete 1; 1 unchanged." in plan.stdout
    assert "add rows.csv#1" in plan.stdout and "delete cats.txt" in plan.stdout and "rivers.md" in plan.stderr

    told = run("sync", documents, "-i", where, "--json", "--report", failures)
    report = data(told)
    assert told.exit_code == 3 and set(report) == ANSWERS
    assert (report["documents"], report["added"], report["deleted"]) == (3, 1, ["cats.txt"])
    lines = [json.loads(line) for line in failures.read_text().splitlines()]
    assert lines == report["failed"]
    assert [(line["id"], line["error"], line["path"]) for line in lines] == [
        ("rivers.md", "DocumentError", str(documents / "rivers.md")),
        ("rows.csv#2", "DocumentError", str(documents / "rows.csv")),
    ]
    assert lines[1]["message"] == f"line 3 of {documents / 'rows.csv'} holds no text"

    for path in documents.rglob("*.*"):
        path.unlink()
    told = run("sync", documents, "-i", where)
    assert told.exit_code == 1 and "--allow-empty" in told.stderr
    shutil.rmtree(documents)
    told = run("sync", documents, "-i", where)
    assert told.exit_code == 1 and "does not exist" in told.stderr and "--allow-empty" in told.stderr
    told = run("sync", documents, "-i", where, "--allow-empty")
    assert told.exit_code == 0 and "0 documents (0 added, 0 replaced, 0 unchanged, 3 deleted)" in told.stdout


def test_wrong_usage(run, documents: Path, tmp_path: Path) -> None:
    assert run("sync", documents, "-i", tmp_path / "index", "--watch", "--dry-run").exit_code == 2
    assert run("sync", documents, "-i", tmp_path / "index", "--report", documents / "f.jsonl").exit_code == 2
    for command in ("sync", "index"):
        told = run(command, "", "-i", tmp_path / "index")
        assert told.exit_code == 2 and "the path is empty" in told.stderr and not (tmp_path / "index").exists()
    told = run("sync", documents, "-i", tmp_path / "index", "--dry-run")
    assert told.exit_code == 1 and not (tmp_path / "index").exists()
    (tmp_path / "empty").mkdir()
    told = run("sync", tmp_path / "empty", "-i", tmp_path / "index", "-m", "nowhere")  # told before the model
    assert told.exit_code == 1 and "holds no document" in told.stderr and not (tmp_path / "index").exists()


def test_failures_of_index_in_a_file(run, documents: Path, model: Path, tmp_path: Path) -> None:
    (documents / "bäd.txt").write_bytes(bytes(range(256)))
    report = tmp_path / "failures.jsonl"
    told = run("index", documents, "-i", tmp_path / "index", "-m", model, "--report", report)
    assert told.exit_code == 3
    (line,) = report.read_text(encoding="utf-8").splitlines()
    assert "bäd.txt" in line and set(json.loads(line)) == {"id", "error", "message", "path"}
    assert run("index", documents, "-i", tmp_path / "index", "--report", tmp_path / "no" / "file").exit_code == 2


def test_rows_on_standard_input(run, data, model: Path, tmp_path: Path) -> None:
    lines = '{"id": 1, "text": "About cats."}\nbroken\n{"text": "About dogs."}\n'
    told = run("index", "-", "--name", "in.jsonl", "-i", tmp_path / "index", "-m", model, "--json", input=lines)
    report = data(told)
    assert told.exit_code == 3 and report["added"] == 2
    assert [failure["id"] for failure in report["failed"]] == ["in.jsonl:2"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to one process")
def test_watching_until_ctrl_c(documents: Path, model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "m2rag", "sync", str(documents), "-i", str(tmp_path / "index"), "-m", str(model)]
    # A test run in the background hands on an ignored SIGINT; the child must have the usual one.
    process = subprocess.Popen(
        [*command, "--watch", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    try:
        first = json.loads(process.stdout.readline())
        assert set(first) == ANSWERS and first["added"] == 3
        (documents / "new.txt").write_text("A new text about dogs.")
        (documents / "cats.txt").unlink()
        second = json.loads(process.stdout.readline())
        assert (second["added"], second["deleted"], second["documents"]) == (1, ["cats.txt"], 3)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and output == "" and "Traceback" not in errors
    assert "Watching" in errors and "Stopped watching. 3 documents safe" in errors


def test_help_names_the_kinds_that_are_read() -> None:
    named = {word.strip(",") for word in KINDS.split() if word.startswith(".")}
    others = {".htm", ".tsv"}  # second names
    assert named == {*READERS, *ROW_READERS, ".gz", ".zst"} - set(CODE) - others


def test_readmes_name_only_kinds_that_are_read() -> None:
    root = Path(__file__).parents[2]
    lists = 0
    for readme in (root / "README.md", *root.glob("integrations/*/README.md")):
        for line in readme.read_text(encoding="utf-8").splitlines():
            if ".txt .md" in line:
                lists += 1
                named = {word.strip(",;:()") for word in line.split() if word.startswith((".", "(."))}
                assert named <= {*READERS, *ROW_READERS, ".gz", ".zst"}, line
    assert lists
