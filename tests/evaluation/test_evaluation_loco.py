"""LoCo by name, against stand-ins of the same columns on disk: which rows make a task, and what cannot be read."""

from __future__ import annotations

import logging
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict

from m2rag.errors import TaskError
from m2rag.evaluation import LOCO_V0, LOCO_V1, find_tasks, load_loco_v0, load_loco_v1
from m2rag.evaluation.loco import V1_DOCUMENTS, V1_QUERIES

DOCUMENTS = [
    {"pid": "qmsum_Passage_0", "passage": "A meeting about remote controls.", "dataset": "qmsum"},
    {"pid": "qmsum_Passage_1", "passage": "A meeting about schools.", "dataset": "qmsum"},
    {"pid": "qasper_title_Passage_0", "passage": "A paper about parsing.", "dataset": "qasper_title"},
    {"pid": "qasper_title_Passage_1", "passage": None, "dataset": "qasper_title"},
]
_ASKED = [
    ("qmsum_Query_0", "remote controls", ["qmsum_Passage_0"], "qmsum"),
    ("qmsum_Query_1", "any meeting", ["qmsum_Passage_0", "qmsum_Passage_1"], "qmsum"),
    ("qasper_title_Query_0", "Parsing", ["qasper_title_Passage_0"], "qasper_title"),
    ("qasper_title_Query_1", "Lost", ["qasper_title_Passage_1"], "qasper_title"),
]
QUERIES = [dict(zip(("qid", "query", "answer_pids", "dataset"), row, strict=True)) for row in _ASKED]


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_v1(folder: Path, kind: str, documents=DOCUMENTS, queries=QUERIES) -> Path:
    for repository, rows in ((V1_DOCUMENTS, documents), (V1_QUERIES, queries)):
        place = folder / repository
        place.mkdir(parents=True)
        rows = Dataset.from_list(rows)
        if kind == "saved":
            DatasetDict({"test": rows}).save_to_disk(place)
        elif kind == "parquet":
            rows.to_parquet(place / "test-00000-of-00001.parquet")
        else:  # as the repositories are: one JSONL file a task
            (place / "documents").mkdir()
            for name in set(rows["dataset"]):
                part = rows.filter(lambda row, name=name: row["dataset"] == name)
                part.to_json(place / "documents" / f"{name}_test.jsonl")
    return folder


@pytest.mark.parametrize("kind", ["saved", "parquet", "jsonl"])
def test_v1_from_a_copy_of_any_kind(tmp_path: Path, kind: str) -> None:
    (task,) = load_loco_v1(["qmsum"], data=write_v1(tmp_path / "data", kind))
    assert task.name == "loco-v1/qmsum"
    assert task.corpus == {row["pid"]: row["passage"] for row in DOCUMENTS[:2]}, "other tasks' documents stay out"
    assert task.queries == {"qmsum_Query_0": "remote controls", "qmsum_Query_1": "any meeting"}
    assert task.qrels == {
        "qmsum_Query_0": {"qmsum_Passage_0": 1},
        "qmsum_Query_1": {"qmsum_Passage_0": 1, "qmsum_Passage_1": 1},
    }


def test_v1_papers_without_text_are_left_out_with_their_queries(tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        (task,) = load_loco_v1(["qasper_title"], data=write_v1(tmp_path / "data", "saved"))
    assert list(task.corpus) == ["qasper_title_Passage_0"]
    assert list(task.queries) == list(task.qrels) == ["qasper_title_Query_0"]
    assert "loco-v1/qasper_title: 1 documents without text" in caplog.text


def test_v1_relevant_document_that_is_missing_counts_as_never_found(tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        (task,) = load_loco_v1(["qmsum"], data=write_v1(tmp_path / "data", "saved", documents=DOCUMENTS[1:]))
    assert task.qrels["qmsum_Query_0"] == {"qmsum_Passage_0": 1}, "dropping it would flatter every system"
    assert "2 relevant documents are missing" in caplog.text


def write_v0(folder: Path) -> Path:
    scrolls = [
        {"input": "A long meeting.", "output": "its summary"},
        {"input": "Another one.", "output": None},
        {"input": " ", "output": "a summary of nothing"},
    ]
    for name in ("summ_screen_fd", "gov_report", "qmsum"):
        place = folder / "tau/scrolls" / name
        DatasetDict({"validation": Dataset.from_list(scrolls), "test": Dataset.from_list(scrolls[:1])}).save_to_disk(
            place
        )
    paper = {"section_name": ["Introduction", None], "paragraphs": [["First.", "Second."], ["Third."]]}
    rows = Dataset.from_list([{"title": "On tests", "abstract": "We test.", "full_text": paper}])
    DatasetDict({"test": rows}).save_to_disk(folder / "allenai/qasper")
    return folder


def test_v0_pairs_columns_and_joins_sections(tmp_path: Path) -> None:
    tasks = {task.name: task for task in load_loco_v0(data=write_v0(tmp_path / "data"))}
    assert list(tasks) == [f"loco-v0/{name}" for name in LOCO_V0]
    meeting = tasks["loco-v0/qmsum"]
    assert meeting.corpus == {"document-0": "A long meeting."}, "SCROLLS' validation set; rows without a text left out"
    assert (meeting.queries, meeting.qrels) == ({"query-0": "its summary"}, {"query-0": {"document-0": 1}})
    for name, query in (("title", "On tests"), ("abstract", "We test.")):
        task = tasks[f"loco-v0/qasper_{name}"]
        assert task.queries == {"query-0": query}
        assert task.corpus == {"document-0": "Introduction\nFirst. Second.\nThird."}


def test_by_name(tmp_path: Path) -> None:
    data = write_v0(write_v1(tmp_path / "data", "saved"))
    found = find_tasks(["loco-v1/qmsum", "loco-v0"], data=data)
    assert [task.name for task in found] == ["loco-v1/qmsum", *(f"loco-v0/{name}" for name in LOCO_V0)]
    with pytest.raises(TaskError, match="hazyresearch/LoCoV1-Documents.*: 0 documents and 0 queries of loco-v1/summ"):
        find_tasks(["loco-v1"], data=data)
    assert len(LOCO_V1) == len(set(LOCO_V1)) == 12


def test_what_cannot_be_read_is_told_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"loco-v1 has no task 'nq'; it has summ_screen_fd, gov_report"):
        load_loco_v1(["nq"])
    with pytest.raises(
        TaskError, match=r"LoCoV1-Documents: not a folder.*DIR/hazyresearch/LoCoV1-Documents/.*--data DIR"
    ):
        load_loco_v1(["qmsum"], data=tmp_path)
    (tmp_path / "allenai/qasper").mkdir(parents=True)
    (tmp_path / "allenai/qasper/test.jsonl").write_text("{broken\n")
    with pytest.raises(TaskError, match="allenai/qasper: its split 'test' cannot be read: .*--data DIR"):
        load_loco_v0(["qasper_title"], data=tmp_path)
    wrong = [{**row, "answer_pids": "qmsum_Passage_0"} for row in QUERIES]
    with pytest.raises(TaskError, match="answer_pids of 'qmsum_Query_0' is a str, not a list"):
        load_loco_v1(["qmsum"], data=write_v1(tmp_path / "a", "saved", queries=wrong))
    renamed = [{"id": row["pid"], "passage": row["passage"], "dataset": row["dataset"]} for row in DOCUMENTS]
    with pytest.raises(TaskError, match="no column 'pid'; the columns are id, passage, dataset"):
        load_loco_v1(["qmsum"], data=write_v1(tmp_path / "b", "saved", documents=renamed))


def test_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests have no network; `datasets` says so in an error of its own, which a user meets in ours."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(TaskError, match="the data set hazyresearch/LoCoV1-Documents: its split 'test' cannot be read"):
        load_loco_v1(["qmsum"])
