"""`m2rag index`: what it says and stores, what it does with bad input, and Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import sentence

ANSWERS = {"index", "documents", "added", "replaced", "unchanged", "failed", "skipped", "n_tokens", "seconds"}


def test_adds_keeps_replaces(run, data, documents: Path, model: Path, tmp_path: Path) -> None:
    where = tmp_path / "deep" / "index"
    first = run("index", documents, "-i", where, "-m", model)
    assert first.exit_code == 0
    assert "3 documents (3 added, 0 replaced, 0 unchanged)" in first.stdout and "tokens/s" in first.stdout

    second = run("index", documents, "-i", where)  # no --model: the index knows
    assert second.exit_code == 0
    assert "3 unchanged" in second.stdout and "Nothing was embedded" in second.stdout

    (documents / "cats.txt").write_text("Another text about dogs.")
    third = run("index", documents, "-i", where, "--json")
    report = data(third)
    assert third.exit_code == 0 and set(report) == ANSWERS
    assert [report[key] for key in ("documents", "added", "replaced", "unchanged")] == [3, 0, 1, 2]
    assert report["n_tokens"] == 7


def test_failures_are_listed_and_the_rest_is_indexed(run, data, documents: Path, model: Path, tmp_path: Path) -> None:
    (documents / "picture.txt").write_bytes(bytes(range(256)) * 40)
    (documents / "empty.md").touch()
    (documents / "tool.exe").touch()
    told = run("index", documents, "-i", tmp_path / "index", "-m", model)
    assert told.exit_code == 3
    assert "3 added" in told.stdout and "2 failed" in told.stdout and "tool.exe" in told.stdout
    lines = told.stderr.splitlines()
    assert any("picture.txt" in line and "binary" in line for line in lines)
    assert any("empty.md" in line and "empty" in line for line in lines)
    assert told.stderr.count("picture.txt is binary") == 1  # not a second time as a log message

    again = run("index", documents, "-i", tmp_path / "index", "--json")
    assert again.exit_code == 3
    failed = {failure["id"]: failure["error"] for failure in data(again)["failed"]}
    assert failed == {"picture.txt": "DocumentError", "empty.md": "DocumentError"}


def test_unreadable_file(run, documents: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def refused(path: Path) -> bytes:  # root may read whatever its permissions say
        if path.name == "cats.txt":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    told = run("index", documents, "-i", tmp_path / "index", "-m", model)
    assert told.exit_code == 3 and "2 added" in told.stdout
    assert "cats.txt cannot be read: Permission denied" in told.stderr and "Traceback" not in told.stderr


def test_too_long_as_an_error(run, data, documents: Path, model: Path, tmp_path: Path) -> None:
    told = run("index", documents, "-i", tmp_path / "index", "-m", model, "--on-too-long", "error", "--json")
    assert told.exit_code == 3
    assert [(f["id"], f["error"]) for f in data(told)["failed"]] == [("sub/long.txt", "InputTooLongError")]


def test_standard_input(run, data, model: Path, tmp_path: Path) -> None:
    where = tmp_path / "index"
    told = run("index", "-", "--name", "note", "-i", where, "-m", model, "--json", input="A note about cats.")
    assert told.exit_code == 0 and data(told)["added"] == 1
    assert data(run("search", "cats", "-i", where, "--json"))["hits"][0]["id"] == "note"
    binary = run("index", "-", "-i", where, input=bytes(range(256)) * 40)
    assert binary.exit_code == 1 and "standard input is binary" in binary.stderr


def test_nothing_is_made_for_a_folder_without_documents(run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    told = run("index", tmp_path / "empty", "-i", tmp_path / "index", "-m", "nowhere")  # told before the model
    assert told.exit_code == 1 and "holds no document" in told.stderr and told.stdout == ""
    assert not (tmp_path / "index").exists()


def test_missing_path_is_wrong_usage(run, tmp_path: Path) -> None:
    told = run("index", tmp_path / "nowhere", "-i", tmp_path / "index")
    assert told.exit_code == 2 and "PATHS" in told.stderr
    assert not (tmp_path / "index").exists()


def test_folder_with_other_things(run, documents: Path, model: Path) -> None:
    told = run("index", documents, "-i", documents, "-m", model)
    assert told.exit_code == 1 and "holds other things" in told.stderr


def test_other_model(run, documents: Path, built: Path, other_model: Path) -> None:
    told = run("index", documents, "-i", built, "-m", other_model, "--json")
    assert told.exit_code == 1 and told.stdout == ""
    assert "was built with" in told.stderr and "Traceback" not in told.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_keeps_what_is_stored_and_the_same_command_goes_on(run, data, model: Path, tmp_path: Path) -> None:
    total, where = 200, tmp_path / "index"
    (tmp_path / "documents").mkdir()
    for number in range(total):
        # Long by its letters and short in tokens (a word beyond the vocabulary is one): stored five at a time, quickly.
        text = " ".join([sentence(50, seed=number), "x" * 50_000])
        (tmp_path / "documents" / f"{number:03}.txt").write_text(text)
    command = [sys.executable, "-m", "m2rag", "index", str(tmp_path / "documents"), "-i", str(where), "-m", str(model)]
    terminal, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "OMP_NUM_THREADS": "1"}
    # A test run in the background hands on an ignored SIGINT; the child must have the usual one.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    seen = _read_until(terminal, re.compile(rf"[1-9]\d*/{total}\D.*tokens/s"))
    process.send_signal(signal.SIGINT)
    seen += _read_until(terminal, None)
    assert process.wait(60) == 130, seen
    assert process.stdout is not None and process.stdout.read() == b""
    told = re.search(r"Stopped\. (\d+) documents? safe in .* run the same command again", " ".join(seen.split()))
    assert told is not None and "Traceback" not in seen, seen
    safe = int(told[1])
    assert 0 < safe < total

    again = data(run(*command[3:], "--json"))
    assert (again["unchanged"], again["added"], again["documents"]) == (safe, total - safe, total)


def _read_until(terminal: int, wanted: re.Pattern[str] | None) -> str:
    """What arrives on a terminal until something is seen in it, or its other end is closed."""
    seen = ""
    while wanted is None or not wanted.search(seen):
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # Linux's way of saying that nobody has the other end open
            chunk = b""
        if not chunk:
            assert wanted is None, f"ended without {wanted.pattern}: {seen}"
            return seen
        seen += chunk.decode("utf-8", "replace")
    return seen
