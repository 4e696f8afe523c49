"""`m2rag delete`, `m2rag snapshot` and `m2rag restore`: the whole way, no model loaded."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("m2rag.embedder.M2Embedder.__init__", load)


def test_there_and_back(run, data, built: Path, tmp_path: Path) -> None:
    file, place = tmp_path / "snapshot.tar.gz", tmp_path / "restored"
    made = data(run("snapshot", "-i", built, "-o", file, "--json"))
    assert made == {"index": str(built), "file": str(file), "documents": 3, "size_bytes": file.stat().st_size}
    again = run("snapshot", "-i", built, "-o", file)
    assert again.exit_code == 1 and "there already" in again.stderr
    restored = data(run("restore", file, "-i", place, "--json"))
    assert (restored["documents"], restored["index"]) == (3, str(place))
    over = run("restore", file, "-i", place)
    assert over.exit_code == 1 and "new or empty folder" in over.stderr
    facts = [data(run("info", "-i", one, "--json")) for one in (built, place)]
    for one in facts:
        del one["path"], one["size_bytes"]
    assert facts[0] == facts[1] and facts[0]["filterable"] == {} and facts[0]["quantization"] is None

    gone = run("delete", "cats.txt", "no.txt", "-i", place, "--json")
    assert gone.exit_code == 3
    assert data(gone) == {"index": str(place), "deleted": ["cats.txt"], "missing": ["no.txt"], "documents": 2}
    shown = run("delete", "rivers.md", "-i", place)
    assert shown.exit_code == 0 and "1 document deleted, 1 left" in shown.stdout
    assert "Not there: cats.txt" in run("delete", "cats.txt", "-i", place).stderr
    assert data(run("info", "-i", built, "--json"))["documents"] == 3


def test_errors(run, built: Path, tmp_path: Path) -> None:
    assert run("delete", "-i", built).exit_code == 2 and run("snapshot", "-i", built).exit_code == 2
    for command in (("delete", "a", "-i"), ("snapshot", "-o", tmp_path / "f", "-i")):
        missing = run(*command, tmp_path / "nowhere")
        assert missing.exit_code == 1 and "no index at" in missing.stderr and not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "f").exists()
    damaged = tmp_path / "damaged"
    damaged.write_text("no archive")
    wrong = run("restore", damaged, "-i", tmp_path / "new")
    assert wrong.exit_code == 1 and "no snapshot" in wrong.stderr and not (tmp_path / "new").exists()
