"""The benchmark of hybrid search on a task of toy size, with a stand-in for the model."""

from __future__ import annotations

from pathlib import Path

import hybrid
import pytest
from fake_embedder import HashEmbedder

from m2rag.evaluation import Task

WORDS = {"cats": "Cats purr softly.", "bread": "Bake the bread slowly.", "stars": "Planets circle stars."}
TASK = Task("toy", WORDS, {"q1": "a purring cat", "q2": "slow baking"}, {"q1": {"cats": 1}, "q2": {"bread": 1}})


def test_every_system_is_measured_and_a_second_run_embeds_nothing(tmp_path: Path) -> None:
    embedder = HashEmbedder()
    for _ in range(2):
        entry = hybrid.measure(TASK, hybrid.Remembering(embedder), tmp_path)
    assert len(embedder.embedded) == 3
    assert entry["systems"].keys() == {"bm25", *hybrid.SYSTEMS}
    for key in ("bm25", "lexical", "hybrid"):
        assert entry["systems"][key]["metrics"]["ndcg@10"] == 1
    less = entry["hybrid_minus"]["dense"]["ndcg@10"]
    assert less == pytest.approx(1 - entry["systems"]["dense"]["metrics"]["ndcg@10"])


def test_the_table(tmp_path: Path) -> None:
    entry = hybrid.measure(TASK, hybrid.Remembering(HashEmbedder()), tmp_path)
    development = {**entry, "task": "qmsum_val_question"}
    settings = {"weights": [0.7, 1.0], "rescore": 0.5}
    content = {"model": "toy", "machine": "here", "settings": settings, "tasks": [entry, development]}
    lines = hybrid.markdown(content).splitlines()
    [toy] = [line for line in lines if line.startswith("| toy ")]
    [mean] = [line for line in lines if "mean of 1" in line]
    assert "| 3 | 2 | 100.0 |" in toy and "qmsum_val_* left out" in mean and "**100.0**" in mean
    header = next(line for line in lines if line.startswith("| task"))
    assert header.count("|") == toy.count("|") == mean.count("|")
