"""Result files: figures with what they depend on, and Markdown that a README can take as it is."""

from __future__ import annotations

import json

from m2rag.evaluation import BM25Ranker, FusionRanker, Task, as_json, as_markdown, evaluate_tasks, length_table


class Fixed:
    """Finds the right document for queries whose name is given."""

    def __init__(self, name: str, right: set[str], **settings) -> None:
        self.name, self.right, self.settings = name, right, settings

    def rank(self, corpus, queries, k):
        return {query: {"a" if query in self.right else "b": 1.0} for query in queries}


def task(name: str, length: int | None = None) -> Task:
    queries = {"1": "storm", "2": "harbour"}
    return Task(name, {"a": "storm over a harbour", "b": "bread"}, queries, {q: {"a": 1} for q in queries}, length)


def test_json_says_what_figures_depend_on() -> None:
    rankers = [BM25Ranker(k1=1.2), Fixed("ours", {"1"}, fingerprint="weights=sha256:00")]
    reports = evaluate_tasks([task("one"), task("needle-256", 256)], rankers)
    content = as_json(reports, rankers)
    assert json.loads(json.dumps(content)) == content
    assert content["systems"]["ours"] == {"fingerprint": "weights=sha256:00"}
    assert content["systems"]["BM25"]["k1"] == 1.2
    assert content["versions"]["m2rag"] and content["versions"]["bm25s"] and content["date"] and content["python"]
    assert [entry["length"] for entry in content["tasks"]] == [None, 256]
    assert [system["metrics"]["accuracy@1"] for system in content["tasks"][0]["systems"]] == [1.0, 0.5]
    full = as_json(reports, rankers, per_query=True)
    assert set(full["tasks"][0]["systems"][1]["per_query"]) == {"1", "2"}


def rows_of(markdown: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line.startswith("|")
    ]


def test_markdown_table_by_system() -> None:
    rankers = [Fixed("all", {"1", "2"}), Fixed("half", {"1"}, dtype="float32", parameters=7, fingerprint="f=1")]
    shown = as_markdown(evaluate_tasks([task("one"), task("two")], rankers), rankers)
    assert rows_of(shown) == [
        ["task", "docs", "queries", "all", "half"],
        ["---"] * 5,
        ["one", "2", "2", "100.0 (100.0-100.0)", "50.0 (0.0-100.0)"],
        ["two", "2", "2", "100.0 (100.0-100.0)", "50.0 (0.0-100.0)"],
        ["**mean of 2**", "", "", "**100.0**", "**50.0**"],
    ]
    assert "- half: dtype `float32`, fingerprint `f=1`\n" in shown, "what the fingerprint holds is not said twice"
    assert "m2rag 0." in shown


def test_lengths_have_a_table_of_their_own() -> None:
    rankers = [Fixed("all", {"1", "2"}), Fixed("none", set())]
    reports = evaluate_tasks([task("needle-256", 256), task("needle-1024", 1024), task("passkey-256", 256)], rankers)
    header, rows = length_table(reports)
    assert header == ["task", "metric", "system", "256", "1024", "mean"]
    assert rows[0] == ["needle", "accuracy@1", "all", "100.0", "100.0", "100.0"]
    assert ["needle", "NDCG@10", "none", "0.0", "0.0", "0.0"] in rows
    assert ["passkey", "NDCG@10", "all", "100.0", "", ""] in rows, "no mean over other lengths than the others'"
    shown = as_markdown(reports, rankers)
    assert rows_of(shown)[0] == header and "2 documents and 2 queries at each length" in shown
    assert "| docs |" not in shown


def test_fusion_says_of_what() -> None:
    settings = FusionRanker(BM25Ranker(), Fixed("x", set())).settings
    assert settings == {"fusion": "scores", "weights": [0.7, 1.0], "of": ["x", "BM25"]}
