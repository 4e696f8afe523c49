"""The comparison of chunks, whole documents and hybrid search, on a task of three short documents."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXTS = {
    "boats": "The harbour master counts the boats at dawn. " * 60,
    "bees": "The bees of the monastery fly to the lime trees. " * 60,
    "trains": "A steam locomotive needs water every forty miles. " * 20,
}
QUERIES = {"q1": ("Where do the bees fly?", "bees"), "q2": ("How often does an engine need water?", "trains")}


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("compare_chunking", EXAMPLES / "compare_chunking.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["compare_chunking"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["compare_chunking"]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    rows = [json.dumps({"_id": id, "title": "", "text": text}) for id, text in TEXTS.items()]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    rows = [json.dumps({"_id": id, "text": query}) for id, (query, _) in QUERIES.items()]
    (folder / "queries.jsonl").write_text("\n".join(rows))
    judged = [f"{id}\t{document}\t1" for id, (_, document) in QUERIES.items()]
    (folder / "qrels.tsv").write_text("\n".join(judged))
    return folder


def test_table_and_plot(example: Any, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row.system: row for row in example.main([str(task), "--out", str(tmp_path / "out")])}
    whole, chunks, index = rows["m2rag-mini whole"], rows["m2rag-mini chunks"], rows["m2rag index (default)"]
    assert rows["BM25"].vectors == 0 and rows["BM25"].size_bytes > 0
    assert whole.vectors == 3 and whole.size_bytes == 3 * 384 * 4
    # Of 540, 660 and 200 words, in chunks of at most 254 tokens without the special ones.
    assert 7 <= chunks.vectors <= 9
    assert index.vectors > 3, "the passages were not counted"
    assert rows["BM25 + m2rag-mini whole"].size_bytes == rows["BM25"].size_bytes + whole.size_bytes
    for row in rows.values():
        assert row.ndcg == 1.0 and row.low <= row.ndcg <= row.high, row.system
        assert row.query_ms >= 0
    assert all(row.index_seconds > 0 for row in rows.values())
    if "MiniLM-L6 chunks" in rows:  # its package is an extra of developers
        hybrid = rows["BM25 + MiniLM-L6 chunks"]
        assert hybrid.index_seconds == rows["BM25"].index_seconds + rows["MiniLM-L6 chunks"].index_seconds
    said = capsys.readouterr().out
    assert all(name in said for name in rows)
    out = tmp_path / "out"
    stored = json.loads((out / "small.json").read_text())
    assert [row["system"] for row in stored["systems"]] == [*rows]
    assert (out / "small.md").read_text().count("\n| ") == len(rows) + 1
    assert "</svg>" in (out / "small.svg").read_text()


def test_the_task_of_the_demos_documents(example: Any) -> None:
    task = example.demo_task(12)
    assert len(task.corpus) == 12 and len(task.queries) == 12 + 7
    for query, grades in task.qrels.items():
        assert query in task.queries and set(grades) <= set(task.corpus)
    assert len(example.demo_task(3).queries) == 6, "questions of documents that are left out are left out too"


def test_the_run_that_is_kept_has_its_table_and_plot() -> None:
    kept = sorted((EXAMPLES / "compare_chunking").glob("*.json"))
    assert kept
    for file in kept:
        content = json.loads(file.read_text())
        table = file.with_suffix(".md").read_text()
        assert file.with_suffix(".svg").is_file() and content["title"] in table and content["measured"] in table
        for row in content["systems"]:
            assert f"| {row['system']} | {100 * row['ndcg']:.1f} |" in table
