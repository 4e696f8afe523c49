"""The command as a process: quick help, clean streams, exit codes; and the snippets it shows."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from m2rag import __version__
from m2rag.cli import main
from m2rag.cli.app import app
from m2rag.cli.snippets import snippet
from m2rag.errors import MissingDependencyError

COMMANDS = ("demo", "embed", "index", "search", "info", "eval", "train")


def process(*args: object, code: str | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, *(("-c", code) if code else ("-m", "m2rag")), *map(str, args)]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environment}, timeout=120)


def test_help_names_the_commands_and_loads_nothing_heavy() -> None:
    heavy = "torch", "transformers", "qdrant_edge", "numpy"
    code = f"""
import sys
from m2rag.cli import main
sys.argv = ["m2rag", "--help"]
try:
    main()
except SystemExit as end:
    assert end.code == 0
loaded = [name for name in {heavy} if name in sys.modules]
assert not loaded, loaded
"""
    told = process(code=code)
    assert told.returncode == 0, told.stderr
    assert all(f" {command} ".encode() in told.stdout for command in COMMANDS)


def test_info_of_an_index_needs_no_torch(built: Path) -> None:
    code = f"""
import sys
from m2rag.cli import main
sys.argv = ["m2rag", "info", "-i", {str(built)!r}]
try:
    main()
except SystemExit as end:
    assert end.code == 0
assert "torch" not in sys.modules
"""
    told = process(code=code)
    assert told.returncode == 0, told.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(run, command: str) -> None:
    told: Result = run(command, "-h")
    assert told.exit_code == 0 and f"Example: m2rag {command} " in told.stdout


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that sees three commands of another package, of which only one can be loaded."""
    folder = tmp_path / "packages"
    (folder / "other-1.0.dist-info").mkdir(parents=True)
    (folder / "other-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    names = ("greet = other_greet:greet", "broken = other_broken:run", "search = other_broken:run")
    (folder / "other-1.0.dist-info" / "entry_points.txt").write_text("\n".join(["[m2rag.commands]", *names]))
    (folder / "other_broken.py").write_text("raise RuntimeError('no such device')\n")
    (folder / "other_greet.py").write_text(
        "def greet(name: str) -> None:\n    'Say hello.'\n    print('hello', name)\n"
    )
    return {"PYTHONPATH": str(folder)}


def test_other_packages_add_commands(installed: dict[str, str]) -> None:
    told = process("greet", "you", **installed)
    assert (told.returncode, told.stdout) == (0, b"hello you\n"), told.stderr


def test_a_command_that_cannot_be_loaded_stops_only_itself(installed: dict[str, str], tmp_path: Path) -> None:
    listed = process("--help", **installed)
    assert listed.returncode == 0 and all(f" {command} ".encode() in listed.stdout for command in COMMANDS)
    assert b"Say hello." in listed.stdout and b"its package cannot be loaded" in listed.stdout

    called = process("broken", "some", "--option=1", **installed)
    assert called.returncode == 1 and called.stdout == b""
    message = b"Error: the command 'broken' (other_broken:run) cannot be loaded: RuntimeError: no such device"
    assert called.stderr.strip() == message

    # The package's own command of a name comes before another's.
    searched = process("search", "cats", "-i", tmp_path / "nowhere", **installed)
    assert searched.returncode == 1 and searched.stderr.startswith(b"Error: there is no index")


def test_version(run) -> None:
    assert run("--version").stdout == f"m2rag {__version__}\n"


def test_wrong_usage(run) -> None:
    assert run("serach").exit_code == 2
    assert run("search", "--nonsense").exit_code == 2


def test_real_processes_end_with_the_documented_codes(built: Path, tmp_path: Path) -> None:
    missing = process("search", "cats", "-i", tmp_path / "nowhere")
    assert missing.returncode == 1 and missing.stdout == b""
    assert missing.stderr.startswith(b"Error: there is no index") and missing.stderr.count(b"\n") == 1
    assert process("search").returncode == 2


def test_letters_that_the_terminal_lacks(
    run, data, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# Les élèves ✓\n\nUn été à la mer.", encoding="utf-8")
    run("index", tmp_path / "docs", "-i", tmp_path / "index", "-m", model)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "argv", ["m2rag", "search", "mer", "-i", str(tmp_path / "index")])
        with pytest.raises(SystemExit) as end:
            main()
        terminal.flush()
    assert end.value.code == 0 and b"Les ?l?ves ?" in terminal.buffer.getvalue()
    escaped = CliRunner(charset="ascii").invoke(app, ["search", "mer", "-i", str(tmp_path / "index"), "--json"])
    assert "Les \\u00e9l\\u00e8ves \\u2713" in escaped.stdout
    assert data(run("search", "mer", "-i", tmp_path / "index", "--json"))["hits"][0]["title"] == "Les élèves ✓"


def test_brackets_in_messages_are_kept(run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise MissingDependencyError("not installed: pip install 'm2rag[eval]'")

    monkeypatch.setattr("m2rag.evaluation.find_tasks", lacking)
    told = run("eval", tmp_path, "-m", model)
    assert told.exit_code == 1 and "pip install 'm2rag[eval]'" in told.stderr


def test_interrupt_anywhere(run, monkeypatch: pytest.MonkeyPatch, built: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("m2rag.index.read_info", interrupted)
    told = run("info", "-i", built)
    assert told.exit_code == 130 and "Stopped." in told.stderr


TEXT = "First comes an opening.   A second one\nfollows it. The wheels are named by tags! Nobody reads the end. Never."


def test_snippet_is_about_the_query_with_its_words_in_bold() -> None:
    shown = snippet(TEXT, "How is a wheel named?", 55)
    assert shown.plain == "… The wheels are named by tags! Nobody reads the end. …"
    assert {shown.plain[span.start : span.end] for span in shown.spans} == {"wheels", "named"}


def test_snippet_of_short_long_and_unrelated_text() -> None:
    assert snippet(TEXT, "zebra", 1000).plain == " ".join(TEXT.split())
    assert snippet("word " * 100, "zebra", 20).plain == "word word word word …"
    assert snippet("x" * 100, "zebra", 20).plain == "x" * 20 + " …"
