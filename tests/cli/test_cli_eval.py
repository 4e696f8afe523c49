"""`m2rag eval`: the table, its JSON, and tasks that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset
from support.embedding_server import serving

from m2rag.cli.evaluation import _LENGTHS
from m2rag.evaluation import LENGTHS


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


def test_json_and_files(run, data, task: Path, model: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "figures.json", tmp_path / "figures.md"
    told = run("eval", task, "-m", model, "--no-bm25", "--json", "--out", out, "--out", table)
    content = data(told)
    (report,), settings = content["tasks"], content["systems"]["tiny"]
    (system,) = report["systems"]
    assert (report["task"], report["n_documents"], report["n_queries"], system["system"]) == ("animals", 3, 2, "tiny")
    assert 0 <= system["metrics"]["ndcg@10"] <= 1 and "per_query" not in system
    assert "weights=sha256:" in settings["fingerprint"] and content["versions"]["torch"] and content["date"]
    assert str(tmp_path) not in json.dumps(content), "results do not tell where somebody's files lie"
    kept = json.loads(out.read_text())
    assert set(kept["tasks"][0]["systems"][0].pop("per_query")) == {"q1", "q2"}
    assert kept == content
    assert "| animals | 3 | 2 |" in table.read_text() and settings["fingerprint"] in table.read_text()


def test_every_kind_of_system_in_one_table(run, data, task: Path, model: Path, other_model: Path) -> None:
    others = ["--baseline", f"other={other_model}", "-b", f"{other_model}:chunk-max", "-b", f"{model}:chunk-mean"]
    told = run("eval", task, "-m", model, *others, "--chunk-tokens", 8, "--hybrid", "--json")
    (report,) = data(told)["tasks"]
    names = [system["system"] for system in report["systems"]]
    assert names == ["BM25", "other", "other chunk-max", "tiny chunk-mean", "tiny", "BM25 + tiny"]


def test_remote_model(run, data, task: Path) -> None:
    with serving() as server:
        options = ["--base-url", server.url, "-m", "their-model", "--max-tokens", 512]
        told = run("eval", task, *options, "--json")
    content = data(told)
    assert [system["system"] for system in content["tasks"][0]["systems"]] == ["BM25", "their-model"]
    assert {"The cat sat on the mat.", "where sat the cat"} <= set(server.texts)


def test_by_name_and_length(run, data, model: Path) -> None:
    told = run("eval", "passkey", "needle", "--lengths", "128,256", "-m", model)
    rows = [line for line in told.stdout.splitlines() if "NDCG@10" in line and "BM25" in line]
    assert len(rows) == 2 and "passkey" in rows[0] and "100.0" in rows[0] and "needle" in rows[1]
    assert "128" in told.stdout and "256" in told.stdout and "docs" not in told.stdout
    assert run("eval", "needle", "--lengths", "many", "-m", model).exit_code == 2
    assert run("eval", "needle", "--lengths", "16", "-m", model).exit_code == 1


def test_lengths_are_those_of_the_tasks() -> None:
    assert _LENGTHS == ",".join(map(str, LENGTHS)), "written out in the command, which imports no more than it needs"


def test_loco_from_a_folder_named_in_the_environment(
    run, data, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {
        "LoCoV1-Documents": [{"pid": "p", "passage": "Rain fell.", "dataset": "stackoverflow"}],
        "LoCoV1-Queries": [{"qid": "q", "query": "rain", "answer_pids": ["p"], "dataset": "stackoverflow"}],
    }
    for name, content in rows.items():
        Dataset.from_list(content).save_to_disk(tmp_path / "hazyresearch" / name)
    monkeypatch.setenv("M2RAG_DATASETS", str(tmp_path))
    (report,) = data(run("eval", "loco-v1/stackoverflow", "-m", model, "--json"))["tasks"]
    assert (report["task"], report["n_documents"], report["n_queries"]) == ("loco-v1/stackoverflow", 1, 1)
    assert [system["metrics"]["accuracy@1"] for system in report["systems"]] == [1, 1]


def test_wrong_usage(run, task: Path, model: Path, tmp_path: Path) -> None:
    for options, said in (
        (["--out", tmp_path / "figures.csv"], "neither in .json nor in .md"),
        (["--base-url", "https://host/v1"], "--model"),
        (["-m", model, "-b", model], "two systems would be called tiny"),
        (["-m", model, "-b", f"{model}:chunk-max", "--chunk-tokens", 999], "takes at most 256"),
    ):
        told = run("eval", task, *options)
        assert told.exit_code == 2 and said in told.stderr.replace("\n", " ").replace("│ ", ""), told.stderr


def test_broken_tasks(run, task: Path, model: Path, tmp_path: Path) -> None:
    nowhere = run("eval", tmp_path / "nowhere", "-m", model)
    assert nowhere.exit_code == 1 and "not a folder" in nowhere.stderr
    with (task / "corpus.jsonl").open("a") as file:
        file.write("\nno json")
    broken = run("eval", task, "-m", model)
    assert broken.exit_code == 1 and "corpus.jsonl, line 4" in broken.stderr and broken.stdout == ""
    assert run("eval", task, "--out", tmp_path / "nowhere" / "x.json", "-m", "nowhere").exit_code == 2
