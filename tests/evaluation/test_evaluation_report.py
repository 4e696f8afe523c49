"""The report: right figures for right systems, plain data, progress counted over everything, tasks checked first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from m2rag.errors import TaskError
from m2rag.evaluation import BM25Ranker, evaluate_tasks, table


class Constant:
    """Ranks documents in one given order for every query."""

    def __init__(self, name: str, ids: list[str]) -> None:
        self.name = name
        self.ids = ids
        self.calls = 0

    def rank(self, corpus, queries, k):
        self.calls += 1
        return {query: {i: -float(place) for place, i in enumerate(self.ids)} for query in queries}


@pytest.fixture
def tasks(tmp_path: Path) -> list[Path]:
    folders = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "corpus.jsonl").write_text(
            '{"_id": "a", "text": "storm over the harbour"}\n{"_id": "b", "text": "bread and salt"}\n'
        )
        (folder / "queries.jsonl").write_text('{"_id": "1", "text": "a storm"}\n{"_id": "2", "text": "some salt"}\n')
        (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n2\tb\t1\n")
        folders.append(folder)
    return folders


def test_figures_go_to_their_systems(tasks: list[Path]) -> None:
    reports = evaluate_tasks(tasks, [BM25Ranker(), Constant("fixed", ["a", "b"]), Constant("silent", [])])
    assert [(r.task, r.n_documents, r.n_queries) for r in reports] == [("one", 2, 2), ("two", 2, 2)]
    for report in reports:
        figures = {system.system: system.metrics["accuracy@1"] for system in report.systems}
        assert figures == {"BM25": 1.0, "fixed": 0.5, "silent": 0.0}
        fixed = report.systems[1]
        assert fixed.per_query["1"]["ndcg@10"] == 1 > fixed.per_query["2"]["ndcg@10"]
        assert fixed.ndcg_interval[0] < fixed.metrics["ndcg@10"] < fixed.ndcg_interval[1]


def test_plain_data_survives_json(tasks: list[Path]) -> None:
    (report,) = evaluate_tasks(tasks[:1], [BM25Ranker()])
    plain = report.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert "per_query" not in plain["systems"][0]
    full = report.to_dict(per_query=True)
    assert json.loads(json.dumps(full)) == full
    assert set(full["systems"][0]["per_query"]) == {"1", "2"}


def test_table_has_a_row_per_task_and_system(tasks: list[Path]) -> None:
    header, rows = table(evaluate_tasks(tasks, [BM25Ranker(), Constant("silent", [])]))
    assert [(row[0], row[3]) for row in rows] == [(t, s) for t in ("one", "two") for s in ("BM25", "silent")]
    assert all(len(row) == len(header) for row in rows)
    assert dict(zip(header, rows[0], strict=True))["NDCG@10"] == "100.0"
    assert dict(zip(header, rows[1], strict=True))["NDCG@10"] == "0.0"


def test_progress_counts_over_tasks_and_systems(tasks: list[Path]) -> None:
    seen: list[tuple[str, str, int, int]] = []
    evaluate_tasks(tasks, [Constant("x", ["a"]), Constant("y", ["b"])], lambda *step: seen.append(step))
    assert seen == [
        ("one", "x", 0, 4),
        ("one", "y", 1, 4),
        ("one", "", 2, 4),
        ("two", "x", 2, 4),
        ("two", "y", 3, 4),
        ("two", "", 4, 4),
    ]


def test_broken_task_is_told_before_any_work(tasks: list[Path], tmp_path: Path) -> None:
    ranker = Constant("x", ["a"])
    with pytest.raises(TaskError, match="missing"):
        evaluate_tasks([*tasks, tmp_path / "missing"], [ranker])
    assert ranker.calls == 0
