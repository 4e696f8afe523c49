"""The migration on a few texts: what may stay, what may not, and when the new index takes the old one's place."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from support.embedding_server import serving, vector_of
from support.qdrant_fixtures import double
from support.qdrant_server import QdrantTestServer

from m2rag import LongDocumentIndex, M2Embedder
from m2rag.errors import M2RagError

__all__ = ["double"]

EXAMPLE = Path(__file__).parents[2] / "examples" / "migrate_from_together.py"
SUBJECTS = ("harbour", "orchard", "glacier", "violin", "pottery", "railway")
TEXTS = [f"The committee spoke about the {name}. " * n for n, name in enumerate(SUBJECTS, start=1)]


@pytest.fixture(scope="module")
def embedder() -> M2Embedder:
    return M2Embedder()


@pytest.fixture(scope="module")
def vectors(embedder: M2Embedder) -> np.ndarray:
    """As the model that comes with m2rag has them, but half as long and with few decimals."""
    return (embedder.embed_documents(TEXTS).vectors / 2).round(4)


@pytest.fixture
def example(embedder: M2Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The example's names; the model is loaded once for all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    found = runpy.run_path(str(EXAMPLE))
    found["main"].__globals__["M2Embedder"] = lambda *_, **__: embedder
    return found


@pytest.fixture
def run(example: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def told(*arguments: str) -> str:
        example["main"](list(arguments))
        return capsys.readouterr().out

    return told


def export(vectors: np.ndarray, name: str = "export.jsonl") -> str:
    rows = [
        {"id": name, "text": text, "vector": vector.tolist(), "metadata": {"n": n}}
        for n, (name, text, vector) in enumerate(zip(SUBJECTS, TEXTS, vectors, strict=True))
    ]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def test_without_arguments_both_ways_are_shown(run: Callable[..., str]) -> None:
    said = run()
    same, cut = said.split("Vectors of the same model, of a host that read 1,000 characters")
    assert "The stored vectors may stay" in same
    assert "12 documents written and found again, none of them embedded" in same
    assert "new fingerprint: model=" in same and "of 384 numbers, of length 1.000 to 1.000" in same
    assert "texts of up to 800 characters agree and longer ones do not" in cut
    assert "All texts must be embedded anew" in cut and "tokens embedded" in cut
    assert "Traceback" not in said


def test_vectors_that_stay_are_those_of_the_export(
    run: Callable[..., str], vectors: np.ndarray, embedder: M2Embedder
) -> None:
    assert "Nothing was written" in run(export(vectors)) and not list(Path().glob("*.m2rag*"))
    said = run(export(vectors), "--to", "papers.m2rag")
    assert "of length 0.500 to 0.500" in said and "papers.m2rag is the new index" in said
    with LongDocumentIndex("papers.m2rag", embedder, create=False) as index:
        [hit] = index.search("the violin", 1, mode="dense")
        assert hit.id == "violin" and hit.metadata == {"n": 3} and "violin" in hit.passages[0].text
        ours = float(embedder.embed_query("the violin") @ vectors[3] * 2)
        assert hit.document_score == pytest.approx(ours, abs=1e-3)
        assert index.add([index.get("violin")], on_too_long="truncate").unchanged == 1


def test_other_vectors_are_made_anew_and_the_old_index_stays_beside(
    run: Callable[..., str], vectors: np.ndarray, embedder: M2Embedder
) -> None:
    run(export(vectors), "--to", "papers.m2rag")
    said = run(export(vectors[::-1]), "--to", "papers.m2rag")
    assert "they differ, by their model, padding or pooling" in said
    assert "papers.m2rag is the new index, papers.m2rag.old the one before" in said
    with LongDocumentIndex("papers.m2rag", embedder, create=False) as index:
        assert index.search("the violin", 1, mode="dense")[0].id == "violin" and len(index) == 6
    with pytest.raises(ValueError, match=r"papers.m2rag.old is there, from an earlier migration"):
        run(export(vectors), "--to", "papers.m2rag")


def test_another_dimension(run: Callable[..., str], vectors: np.ndarray) -> None:
    assert "the old vectors have 100 numbers, the new model's 384" in run(export(vectors[:, :100]))


def test_to_another_endpoint(
    vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with serving() as server:
        there = np.stack([vector_of(text) for text in TEXTS])
        run = runpy.run_path(str(EXAMPLE))["main"]
        run([export(there), "--model", "any-model", "--base-url", server.url, "--to", "papers.m2rag"])
    said = capsys.readouterr().out
    assert "model=any-model" in said and "The stored vectors may stay" in said
    embedded = [text for request in server.requests for text in request.inputs if text in TEXTS]
    assert sorted(embedded) == sorted(TEXTS), "the sample, and nothing twice"


@pytest.mark.parametrize(
    ("cosines", "said"),
    [
        ([1, 0.9999, 0.9995], None),
        ([1, 0.9, 0.8], "texts of up to 10 characters agree and longer ones do not"),
        ([0.9, 0.99, 1], "texts of 30 characters and more agree and shorter ones do not"),
        ([1, 0.9, 1], "they differ"),
        ([0.9, 0.9, 0.9], "they differ"),
    ],
)
def test_what_cosines_say(example: dict[str, Any], cosines: list[float], said: str | None) -> None:
    reason = example["explained"]([10, 20, 30], np.array(cosines))
    assert reason is None if said is None else said in reason


def test_a_new_index_that_is_not_whole_takes_no_place(
    run: Callable[..., str], vectors: np.ndarray, embedder: M2Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(export(vectors), "--to", "papers.m2rag")
    ids = LongDocumentIndex.ids
    with monkeypatch.context() as lossy:
        lossy.setattr(LongDocumentIndex, "ids", lambda self: ids(self)[1:])
        with pytest.raises(M2RagError, match="1 documents are not in papers.m2rag.embedded, so it did not take"):
            run(export(vectors[::-1]), "--to", "papers.m2rag")
    assert not Path("papers.m2rag.old").exists()
    with LongDocumentIndex("papers.m2rag", embedder, create=False) as index:
        assert index.search("the violin", 1, mode="dense")[0].id == "violin"


def test_killed_between_the_two_renames_it_goes_on(run: Callable[..., str], vectors: np.ndarray) -> None:
    run(export(vectors), "--to", "papers.m2rag")
    Path("papers.m2rag").rename("papers.m2rag.kept")
    Path("papers.m2rag.old").mkdir()
    assert "papers.m2rag is the new index" in run(export(vectors), "--to", "papers.m2rag")


def test_bad_exports(run: Callable[..., str], vectors: np.ndarray) -> None:
    for text, message in [
        ("", "export.jsonl is empty"),
        ('{"id": "a", "text": "b"}\n', r"export.jsonl:1 is not .*KeyError\('vector'\)"),
        (
            '{"id": "a", "text": "b", "vector": [1]}\n{"id": "b", "text": "b", "vector": [1, 2]}\n',
            "export.jsonl:2 .*shape",
        ),
        ('{"id": "a", "text": " ", "vector": [1]}\n', "the text of a is empty"),
    ]:
        Path("export.jsonl").write_text(text)
        with pytest.raises(ValueError, match=message):
            run("export.jsonl")


def test_from_one_collection_to_another_behind_an_alias(
    run: Callable[..., str], double: QdrantTestServer, vectors: np.ndarray, embedder: M2Embedder
) -> None:
    client = QdrantClient(double.url, check_compatibility=False)
    client.create_collection("old", vectors_config=models.VectorParams(size=384, distance=models.Distance.COSINE))
    points = [
        models.PointStruct(id=n, vector=vector.tolist(), payload={"page_content": text, "subject": name})
        for n, (name, text, vector) in enumerate(zip(SUBJECTS, TEXTS, vectors, strict=True))
    ]
    client.upsert("old", points, wait=True)
    with pytest.raises(ValueError, match="no text in 'text' .it has page_content, subject.: give --text-field"):
        run(f"{double.url}/old")
    with pytest.raises(ValueError, match="there is no collection at"):
        run(f"{double.url}/older")
    with pytest.raises(M2RagError, match="http://127.0.0.1:1 does not answer as a Qdrant server does"):
        run("http://127.0.0.1:1/old")
    arguments = (f"{double.url}/old", "--text-field", "page_content", "--to")
    with pytest.raises(ValueError, match="old is a collection, which cannot change its name at once"):
        run(*arguments, f"{double.url}/old")
    said = run(*arguments, f"{double.url}/papers")
    assert "The stored vectors may stay" in said and "papers stands for papers-kept-" in said
    with LongDocumentIndex(f"{double.url}/papers", embedder, create=False) as index:
        [hit] = index.search("the violin", 1)
        assert hit.id == "3" and hit.metadata == {"subject": "violin"}
    client.upsert("old", [points[0].model_copy(update={"vector": vectors[1].tolist()})], wait=True)
    said = run(*arguments, f"{double.url}/papers")
    assert "papers stands for papers-embedded-" in said and "which is still there" in said
    assert len([name for name in double.collections if name.startswith("papers-")]) == 2
    client.close()
