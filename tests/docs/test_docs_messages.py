"""Every message that the page on troubleshooting quotes is one that the code can give."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from support.pages import blocks

from m2rag import LongDocumentIndex, M2Embedder
from m2rag.errors import M2RagError
from m2rag.models.checkpoints import BUNDLED

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "troubleshooting.md"
QUOTED = [block for block in blocks(PAGE.read_text(encoding="utf-8")) if block.note == "message"]
CODE = [REPOSITORY / "m2rag", REPOSITORY / "train", REPOSITORY / "kernels", *REPOSITORY.glob("integrations/*/")]

LEAST = 20
"""Letters of its own that a string in the code must have to count as the source of a message."""


@lru_cache(maxsize=1)
def templates() -> list[re.Pattern[str]]:
    """All strings of the code as patterns, what is filled in as anything."""
    found: list[re.Pattern[str]] = []
    for folder in CODE:
        for path in folder.rglob("*.py"):
            if "tests" not in path.parts:
                found += _patterns(ast.parse(path.read_text(encoding="utf-8")))
    return found


def _patterns(tree: ast.AST) -> Iterator[re.Pattern[str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) >= LEAST:
            yield re.compile(re.escape(node.value))
        elif isinstance(node, ast.JoinedStr):
            parts = [str(one.value) if isinstance(one, ast.Constant) else None for one in node.values]
            if sum(len(part) for part in parts if part) >= LEAST:
                yield re.compile("".join(".+?" if part is None else re.escape(part) for part in parts), re.S)


@pytest.mark.parametrize("block", QUOTED, ids=lambda block: f"line {block.line}")
def test_the_code_has_it(block: object) -> None:
    message = block.code.rstrip("\n")  # type: ignore[attr-defined]
    assert any(template.fullmatch(message) for template in templates()), message


def test_there_are_messages_and_a_made_up_one_is_caught() -> None:
    assert len(QUOTED) > 20
    assert not any(template.fullmatch("sorry, there is no index at papers.m2rag") for template in templates())


def _locked() -> None:
    embedder = M2Embedder()
    with LongDocumentIndex("papers.m2rag", embedder):
        LongDocumentIndex("papers.m2rag", embedder)


def _other_model() -> None:
    LongDocumentIndex("papers.m2rag", M2Embedder()).close()
    LongDocumentIndex("papers.m2rag", M2Embedder(document_prompt="passage: "))


def _without_words() -> None:
    with LongDocumentIndex("papers.m2rag", M2Embedder(), lexical=None) as index:
        index.search("anything", mode="lexical")


RAISED: dict[str, Callable[[], object]] = {
    "input 0 has": lambda: M2Embedder().embed_documents(["word " * 40_000]),
    "texts is a single str": lambda: M2Embedder().embed_documents("word"),
    "no checkpoint at": lambda: M2Embedder("runs/mine/modle"),
    "there is no index": lambda: LongDocumentIndex("papers.m2rag", M2Embedder(), create=False),
    "the index at papers.m2rag is open": _locked,
    "the index at papers.m2rag was built with": _other_model,
    "the index at papers.m2rag has no words": _without_words,
    "papers is not an index": lambda: LongDocumentIndex("papers", M2Embedder()),
    "no BM25": lambda: LongDocumentIndex("papers.m2rag", M2Embedder(), lexical="klingon"),
    "the URL of a Qdrant server": lambda: LongDocumentIndex("http://localhost:6333/papers?api-key=k", M2Embedder()),
    "openai needs": lambda: M2Embedder("text-embedding-3-small", base_url="openai"),
    "base_url is": lambda: M2Embedder("any-model", base_url="localhost:8000"),
    "any-model gives": lambda: M2Embedder("any-model", base_url="https://host/v1").embed_passages("A text."),
}


@pytest.mark.skipif(not (BUNDLED / "m2rag-mini").is_dir(), reason="the bundled checkpoint is not here")
@pytest.mark.parametrize("beginning", RAISED)
def test_it_is_raised_as_quoted(beginning: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    [quoted] = [block.code.rstrip("\n") for block in QUOTED if block.code.startswith(beginning)]
    with pytest.raises((M2RagError, ValueError)) as raised:
        RAISED[beginning]()
    assert _comparable(str(raised.value)) == _comparable(quoted)


def _comparable(message: str) -> str:
    """Without what differs from machine to machine and from checkpoint to checkpoint."""
    message = re.sub(r"sha256:[0-9a-f]+", "sha256:0", message)
    return re.sub(r"another process \(pid \d+\)|this process", "a process", message)
