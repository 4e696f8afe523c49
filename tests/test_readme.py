"""The README's examples run as printed, on the bundled checkpoint."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from m2rag.models.checkpoints import BUNDLED

README = Path(__file__).resolve().parents[1] / "README.md"

pytestmark = pytest.mark.skipif(not (BUNDLED / "m2rag-mini").is_dir(), reason="the bundled checkpoint is not here")


def snippets(section: str) -> list[str]:
    text = README.read_text(encoding="utf-8")
    body = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    assert body, f"README has no section {section!r}"
    return re.findall(r"```python\n(.*?)```", body[1], re.DOTALL)


def test_first_example_finds_the_right_document(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "path" / "to" / "folder"
    folder.mkdir(parents=True)
    (folder / "delivery.txt").write_text(
        "Terms of delivery\n\nThe carrier answers for every loss that follows from late arrival of the goods. " * 20
    )
    (folder / "bread.txt").write_text("Baking bread\n\nMix flour, water, salt and yeast, and let the dough rise. " * 20)
    monkeypatch.chdir(tmp_path)
    [code] = snippets("First example")
    exec(compile(code, str(README), "exec"), {})
    hits = [line for line in capsys.readouterr().out.splitlines() if re.match(r"\d\.\d{3}  ", line)]
    assert len(hits) == 2
    assert "delivery" in hits[0]


def test_vector_example():
    [code] = snippets("Vectors")
    texts = ["A first text.", "A second, somewhat longer text about something else."]

    async def run(scope: dict) -> None:
        lines = code.splitlines()
        assert lines[-1].startswith("vectors = await ")
        exec("\n".join(lines[:-1]), scope)
        scope["vectors"] = await eval(lines[-1].removeprefix("vectors = await "), scope)

    from m2rag import M2Embedder

    scope: dict = {"embedder": M2Embedder(), "texts": texts, "text": texts[1]}
    asyncio.run(run(scope))
    assert scope["result"].vectors.shape == scope["vectors"].vectors.shape == (2, 384)
    assert not scope["result"].truncated.any()
    assert len(scope["passages"]) >= 1


def test_the_search_example(tmp_path, monkeypatch, capsys):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "delivery.txt").write_text("The carrier answers for late delivery of the goods. " * 30)
    (tmp_path / "papers" / "law.txt").write_text("§ 437 BGB names the rights of the buyer. " * 30)
    monkeypatch.chdir(tmp_path)
    code, filters = snippets("The index")
    scope: dict = {}
    exec(compile(code, str(README), "exec"), scope)
    assert capsys.readouterr().out == "('hybrid', 'dense', 'lexical')\n"
    assert [hit.id for hit in scope["hits"]][0] == "delivery.txt"

    from m2rag import LongDocumentIndex, M2Embedder

    with LongDocumentIndex("papers.m2rag", M2Embedder()) as index:
        for line in filters.strip().splitlines():
            eval(line, {"index": index})
        assert index.search("late delivery", filter={"suffix": {"in": [".pdf", ".txt"]}})
