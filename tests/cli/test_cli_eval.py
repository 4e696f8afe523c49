"""`m2rag eval`: the table, its JSON, and tasks that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def task(tmp_path: Path) -> Path:
    folder = tmp_path / "animals"
    folder.mkdir()
    corpus = {"a": "The cat sat on the mat.", "b": "Dogs ran far away.", "c": "Rain fell over stone houses."}
    queries = {"q1": "where sat the cat", "q2": "rain over houses"}
    for name, texts in (("corpus", corpus), ("queries", queries)):
        lines = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq1\ta\t1\nq2\tc\t1\n")
    return folder


def test_table_with_bm25(run, task: Path, model: Path) -> None:
    told = run("eval", task, "-m", model)
    assert told.exit_code == 0
    rows = [line for line in told.stdout.splitlines() if "animals" in line]
    assert len(rows) == 2 and "BM25" in rows[0] and "100.0" in rows[0] and "tiny" in rows[1]
    assert "NDCG@10" in told.stdout and "95 %" in told.stdout and "recall@10" in told.stdout
    assert told.stderr.splitlines() == ["[1/2] animals: BM25", "[2/2] animals: tiny"]


def test_json_and_file(run, data, task: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    told = run("eval", task, "-m", model, "--no-bm25", "--json", "--out", out)
    (report,) = data(told)
    (system,) = report["systems"]
    assert (report["task"], report["n_documents"], report["n_queries"], system["system"]) == ("animals", 3, 2, "tiny")
    assert 0 <= system["metrics"]["ndcg@10"] <= 1 and "per_query" not in system
    (kept,) = json.loads(out.read_text())
    assert set(kept["systems"][0].pop("per_query")) == {"q1", "q2"}
    assert kept == report


def test_broken_tasks(run, task: Path, model: Path, tmp_path: Path) -> None:
    nowhere = run("eval", tmp_path / "nowhere", "-m", model)
    assert nowhere.exit_code == 1 and "not a folder" in nowhere.stderr
    with (task / "corpus.jsonl").open("a") as file:
        file.write("\nno json")
    broken = run("eval", task, "-m", model)
    assert broken.exit_code == 1 and "corpus.jsonl, line 4" in broken.stderr and broken.stdout == ""
    assert run("eval", task, "--out", tmp_path / "nowhere" / "x.json", "-m", "nowhere").exit_code == 2
