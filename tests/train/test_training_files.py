"""Files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.full_disk import writes_end_after

from m2rag_train.errors import CheckpointWriteError
from m2rag_train.files import replacing

TENSORS = {"a": torch.zeros(10_000)}


def write(path: Path, how: str) -> None:
    if how == "torch":
        with path.open("wb") as stream:
            torch.save(TENSORS, stream)
    elif how == "safetensors":
        save_file(TENSORS, path)
    elif how == "bytes":
        path.write_bytes(bytes(40_000))
    else:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("how", ["torch", "safetensors", "bytes"])
def test_a_file_takes_the_place_of_another(tmp_path: Path, how: str) -> None:
    path = tmp_path / "state"
    path.write_text("before")
    with replacing(path) as temporary:
        write(temporary, how)
        assert path.read_text() == "before"
    assert path.stat().st_size >= 40_000 and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("how", ["torch", "safetensors", "bytes", "none left"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, how: str) -> None:
    path = tmp_path / "state"
    path.write_text("before")
    with writes_end_after(20_000), pytest.raises(CheckpointWriteError, match="state could not be written: .*is intact"):
        with replacing(path) as temporary:
            write(temporary, how)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path], "room is given back"


def test_other_errors_are_their_own(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug") as caught, replacing(tmp_path / "state"):
        raise RuntimeError("a bug")
    assert not isinstance(caught.value, OSError)


def test_what_a_killed_process_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "unfinished-model").mkdir()
    (tmp_path / "unfinished-model" / "half").touch()
    with replacing(tmp_path / "model") as folder:
        folder.mkdir()
        (folder / "whole").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "whole"]


def test_a_folder_is_written_over_file_by_file(tmp_path: Path) -> None:
    out = tmp_path / "model"
    (out / "part").mkdir(parents=True)
    (out / "part" / "weights").write_text("old")
    (out / "notes").write_text("of the user")
    with replacing(out) as folder:
        (folder / "part").mkdir(parents=True)
        (folder / "part" / "weights").write_text("new")
        assert (out / "part" / "weights").read_text() == "old"
    assert (out / "part" / "weights").read_text() == "new"
    assert (out / "notes").read_text() == "of the user" and list(tmp_path.iterdir()) == [out]
