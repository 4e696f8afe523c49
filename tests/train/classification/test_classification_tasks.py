"""GLUE's files in every layout, and what is wrong in them by file and line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_training import write_lines

from m2rag_train.classification.tasks import TASKS, Example, load_split
from m2rag_train.errors import TrainingDataError

QNLI = [
    {"question": "Who?", "sentence": 'She said: "it\'s me".', "label": 0, "idx": 0},
    {"question": "When?", "sentence": "In winter\u2028", "label": 1, "idx": 1},
]
EXPECTED = [Example(("Who?", 'She said: "it\'s me".'), 0.0), Example(("When?", "In winter\u2028"), 1.0)]


def write(folder: Path, suffix: str, split: str = "train", rows: list[dict[str, Any]] = QNLI) -> Path:
    path = folder / "glue" / "qnli" / f"{split}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == ".jsonl":
        write_lines(path, rows)
    elif suffix == ".tsv":
        lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
        path.write_text("\n".join("\t".join(line) for line in lines) + "\n", encoding="utf-8")
    elif suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".tsv", ".parquet"])
def test_all_layouts_are_read_alike(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, suffix)
    assert load_split(TASKS["qnli"], "train", "glue", tmp_path) == EXPECTED


def test_every_task_is_glues() -> None:
    assert {name: (task.n_labels, task.metrics) for name, task in TASKS.items()} == {
        "cola": (2, ("matthews",)),
        "sst2": (2, ("accuracy",)),
        "mrpc": (2, ("f1", "accuracy")),
        "stsb": (1, ("pearson", "spearman")),
        "qqp": (2, ("f1", "accuracy")),
        "mnli": (3, ("accuracy_matched", "accuracy_mismatched")),
        "qnli": (2, ("accuracy",)),
        "rte": (2, ("accuracy",)),
    }


def test_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def loaded(*names: str, split: str) -> list[dict[str, Any]]:
        asked.append((*names, split))
        return QNLI

    monkeypatch.setattr(datasets, "load_dataset", loaded)
    assert load_split(TASKS["qnli"], "validation", "nyu-mll/glue", tmp_path) == EXPECTED
    assert asked == [("nyu-mll/glue", "qnli", "validation")]


def test_a_name_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def missing(*_: str, split: str) -> None:
        raise FileNotFoundError("Couldn't find any data file")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    message = r"source is 'gleu': no such folder, and the dataset 'qnli' of that name was not loaded: Couldn't find"
    with pytest.raises(TrainingDataError, match=message):
        load_split(TASKS["qnli"], "train", "gleu", tmp_path)


def test_local_files_need_no_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    write(tmp_path, ".tsv")
    assert load_split(TASKS["qnli"], "train", "glue", tmp_path) == EXPECTED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sentence": None}, "'sentence' is NoneType, must be text"),
        ({"sentence": " ", "question": ""}, "'question' and 'sentence' empty"),
        ({"label": 2}, "label is 2, must be from 0 to 1"),
        ({"label": -1}, r"label is -1, must be from 0 to 1 \(-1 is a test split without labels\)"),
        ({"label": 0.5}, "label is 0.5, must be from 0 to 1"),
        ({"label": "yes"}, "label is 'yes', must be a number"),
        ({"label": None}, "label is None, must be a number"),
        ({"label": float("nan")}, "label is nan, must be from 0 to 1"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path, ".jsonl", rows=[QNLI[0], {**QNLI[1], **change}])
    with pytest.raises(TrainingDataError, match=rf"qnli/train\.jsonl, line 2: {message}"):
        load_split(TASKS["qnli"], "train", "glue", tmp_path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    for key in ("question", "label"):
        write(tmp_path, ".jsonl", rows=[{k: v for k, v in QNLI[0].items() if k != key}])
        with pytest.raises(TrainingDataError, match=rf"line 1: '{key}' is missing; there are '"):
            load_split(TASKS["qnli"], "train", "glue", tmp_path)


@pytest.mark.parametrize("label", [-0.1, 5.1, float("nan"), "x"])
def test_similarities_go_from_0_to_5(tmp_path: Path, label: object) -> None:
    path = tmp_path / "glue" / "stsb" / "train.jsonl"
    write_lines(path, [{"sentence1": "a", "sentence2": "b", "label": label}])
    with pytest.raises(TrainingDataError, match=f"line 1: label is {label!r}, must be"):
        load_split(TASKS["stsb"], "train", "glue", tmp_path)


def test_one_of_two_questions_may_be_empty(tmp_path: Path) -> None:
    write(tmp_path, ".jsonl", rows=[{**QNLI[0], "question": ""}])
    assert load_split(TASKS["qnli"], "train", "glue", tmp_path)[0].texts[0] == ""


def test_files_that_cannot_be(tmp_path: Path) -> None:
    write(tmp_path, ".jsonl")
    with pytest.raises(TrainingDataError, match=r"qnli: needs one of validation\.jsonl, .*\.parquet; there: none"):
        load_split(TASKS["qnli"], "validation", "glue", tmp_path)
    path = write(tmp_path, ".tsv")
    with pytest.raises(TrainingDataError, match=r"there: train\.jsonl, train\.tsv"):
        load_split(TASKS["qnli"], "train", "glue", tmp_path)
    (tmp_path / "glue" / "qnli" / "train.jsonl").unlink()
    path.write_text(path.read_text(encoding="utf-8") + "one\ttwo\n", encoding="utf-8")
    with pytest.raises(TrainingDataError, match=r"train\.tsv, line 4: 2 columns, the first line has 4"):
        load_split(TASKS["qnli"], "train", "glue", tmp_path)
    path.write_text("question\tsentence\tlabel\n", encoding="utf-8")
    with pytest.raises(TrainingDataError, match="glue: qnli, train: no examples"):
        load_split(TASKS["qnli"], "train", "glue", tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(TrainingDataError, match=r"train\.tsv: .*utf-8"):
        load_split(TASKS["qnli"], "train", "glue", tmp_path)
    path.unlink()
    (tmp_path / "glue" / "qnli" / "train.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(TrainingDataError, match=r"train\.parquet: "):
        load_split(TASKS["qnli"], "train", "glue", tmp_path)
