"""Search by meaning, by words and by both, in a folder and on a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_embedder import HashEmbedder
from support.collection_cases import DOCUMENTS, document

from m2rag.errors import InvalidInputError
from m2rag.index import Document, LongDocumentIndex, read_info

EMBEDDER = HashEmbedder()
QUERY = "w7 w11 w3"
MODES = ("hybrid", "dense", "lexical")


@pytest.fixture(scope="module", params=["folder", "server"])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LongDocumentIndex]:
    """Filled with `DOCUMENTS`; tests only read."""
    place = tmp_path_factory.mktemp("modes") / "index"
    if request.param == "server":
        place = f"{request.getfixturevalue('qdrant_url')}/modes"
        request.getfixturevalue("qdrant").delete_collection("modes")
    with LongDocumentIndex(place, EMBEDDER) as opened:
        opened.add(DOCUMENTS)
        yield opened


def cosine(query: str, id: str) -> float:
    text = next(document.text for document in DOCUMENTS if document.id == id)
    return float(EMBEDDER.embed_query(query) @ EMBEDDER.vector(text))


def best_passage(query: str, id: str) -> float:
    text = next(document.text for document in DOCUMENTS if document.id == id)
    return float((EMBEDDER.passages(text).vectors @ EMBEDDER.embed_query(query)).max())


def order(scores: dict[str, float]) -> list[str]:
    return sorted(scores, key=lambda id: -scores[id])


def scores(index: LongDocumentIndex, query: str, mode: Any, **options: Any) -> dict[str, float]:
    return {hit.id: hit.score for hit in index.search(query, 20, mode=mode, passages=False, **options)}


def test_what_an_index_offers(index: LongDocumentIndex) -> None:
    assert index.modes == MODES and index.info()["lexical"] == "english"
    assert index.search(QUERY, 5) == index.search(QUERY, 5, mode="hybrid", weights=(0.7, 1), rescore=0.5)


@pytest.mark.parametrize("mode", MODES)
def test_every_hit_has_its_cosine_and_passages(index: LongDocumentIndex, mode: Any) -> None:
    hits = index.search(QUERY, 6, mode=mode)
    assert len(hits) == 6 and [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        assert hit.document_score == pytest.approx(cosine(QUERY, hit.id), abs=1e-5)
        text = index.get(hit.id).text
        assert hit.passages and all(text[p.start : p.end] == p.text for p in hit.passages)
        for passage in hit.passages:
            near = float(EMBEDDER.vector(passage.text) @ EMBEDDER.embed_query(QUERY))
            assert passage.score == pytest.approx(near, abs=2e-3)
        if mode == "dense":
            assert hit.passages[0].score == pytest.approx(best_passage(QUERY, hit.id), abs=1e-3)


def test_by_meaning(index: LongDocumentIndex) -> None:
    found = scores(index, QUERY, "dense")
    assert found == pytest.approx({document.id: cosine(QUERY, document.id) for document in DOCUMENTS}, abs=1e-5)


def test_by_words(index: LongDocumentIndex) -> None:
    assert list(scores(index, "only3", "lexical")) == ["folder/03.txt"]
    words = {document.id for document in DOCUMENTS if {"w7", "w11"} & set(document.text.replace(".", "").split())}
    assert set(scores(index, "w7 w11", "lexical")) == words
    assert scores(index, "the of", "lexical") == {}, "nothing but stop words"


def test_titles_are_searched_too(index: LongDocumentIndex) -> None:
    [title] = [document.title for document in DOCUMENTS if document.id == "folder/04.txt"]
    assert index.search(title, 1, mode="lexical")[0].id == "folder/04.txt"


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0), (0.2, 1.0)])
def test_scores_of_the_fusion(index: LongDocumentIndex, weights: tuple[float, float]) -> None:
    meaning, words = scores(index, QUERY, "dense"), scores(index, QUERY, "lexical")
    top, last = max(meaning.values()), min(meaning.values())
    expected = {
        id: (weights[0] * (score - last) / (top - last) + weights[1] * words.get(id, 0) / max(words.values()))
        / sum(weights)
        for id, score in meaning.items()
    }
    assert top - last > 0.2
    found = scores(index, QUERY, "hybrid", weights=weights, rescore=0)
    assert found == pytest.approx(expected, abs=1e-4) and list(found) == order(found)


def test_one_weight_alone(index: LongDocumentIndex) -> None:
    assert list(scores(index, QUERY, "hybrid", weights=(1, 0), rescore=0)) == list(scores(index, QUERY, "dense"))
    words = list(scores(index, QUERY, "lexical"))
    assert list(scores(index, QUERY, "hybrid", weights=(0, 1), rescore=0))[: len(words)] == words
    nothing = scores(index, "the of", "hybrid", weights=(0, 1))
    assert len(nothing) == 20 and set(nothing.values()) == {0.0}
    assert list(scores(index, "the of", "hybrid", rescore=0)) == list(scores(index, "the of", "dense"))


def test_rescoring_by_meaning(index: LongDocumentIndex) -> None:
    found = scores(index, QUERY, "dense", rescore=0.25)
    expected = {d.id: 0.75 * cosine(QUERY, d.id) + 0.25 * best_passage(QUERY, d.id) for d in DOCUMENTS}
    assert found == pytest.approx(expected, abs=1e-3) and list(found) == order(found)
    wide = [hit.score for hit in index.search(QUERY, 3, mode="dense", rescore=1)]
    best = sorted((best_passage(QUERY, d.id) for d in DOCUMENTS), reverse=True)[:3]
    assert wide == pytest.approx(best, abs=1e-3), "documents beyond the first k get their chance"


def test_rescoring_by_words(index: LongDocumentIndex) -> None:
    plain = scores(index, QUERY, "lexical")
    assert scores(index, QUERY, "lexical", rescore=0) == plain
    passages = {id: best_passage(QUERY, id) for id in plain}
    top, last = max(passages.values()), min(passages.values())
    expected = {
        id: 0.4 * score / max(plain.values()) + 0.6 * (passages[id] - last) / (top - last)
        for id, score in plain.items()
    }
    found = scores(index, QUERY, "lexical", rescore=0.6)
    assert found == pytest.approx(expected, abs=5e-3) and list(found) == order(found)


def test_rescoring_by_both(index: LongDocumentIndex) -> None:
    meaning, words = scores(index, QUERY, "dense"), scores(index, QUERY, "lexical")
    top, last = max(meaning.values()), min(meaning.values())
    near = {id: (score + best_passage(QUERY, id)) / 2 for id, score in meaning.items()}
    expected = {
        id: (max(0, (score - last) / (top - last)) + words.get(id, 0) / max(words.values())) / 2
        for id, score in near.items()
    }
    found = scores(index, QUERY, "hybrid", weights=(1, 1), rescore=0.5)
    assert found == pytest.approx(expected, abs=5e-3) and list(found) == order(found)


@pytest.mark.parametrize("mode", MODES)
def test_filters(index: LongDocumentIndex, mode: Any) -> None:
    found = set(scores(index, "w7 w11 w3 w5", mode, filter={"even": True, "tags": "t1"}))
    assert found and found <= {document(i).id for i in (4, 10, 16)}
    assert scores(index, "w7", mode, filter={"tags": "no such"}) == {}


def test_wrong_arguments(index: LongDocumentIndex) -> None:
    for arguments, told in (
        ({"mode": "sparse"}, "hybrid, dense, lexical"),
        ({"weights": (0, 0)}, "nor both 0"),
        ({"weights": (-1, 1)}, "not negative"),
        ({"weights": (1, float("nan"))}, "finite"),
        ({"weights": (1, float("inf"))}, "finite"),
        ({"weights": (1,)}, "two"),
        ({"rescore": 1.5, "mode": "lexical"}, "between 0 and 1"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            index.search("w7", **arguments)


@pytest.fixture(params=["folder", "server"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, collection_url: str) -> Callable[..., LongDocumentIndex]:
    """Opens the test's own place."""
    place = tmp_path / "index" if request.param == "folder" else collection_url
    return lambda **options: LongDocumentIndex(place, EMBEDDER, **options)


def test_an_index_without_words(opened: Callable[..., LongDocumentIndex]) -> None:
    """As all older ones are."""
    with opened(lexical=None) as index:
        index.add(DOCUMENTS[:3])
        place = index.location
    with opened() as index:
        assert index.modes == ("dense",) and index.info()["lexical"] is None
        assert index.search("w7", 2) == index.search("w7", 2, mode="dense")
        for mode in ("hybrid", "lexical"):
            with pytest.raises(InvalidInputError, match="no words"):
                index.search("w7", mode=mode)  # type: ignore[arg-type]
    assert read_info(place)["lexical"] is None


def test_languages(opened: Callable[..., LongDocumentIndex], tmp_path: Path) -> None:
    with opened(lexical="german") as index:
        index.add([Document("a", "Die Katzen schlafen."), Document("b", "Der Hund und die Maus wachen.")])
    with opened() as index:  # the language stays
        assert index.info()["lexical"] == "german"
        assert [hit.id for hit in index.search("eine Katze", mode="lexical")] == ["a"]
        assert index.search("und", mode="lexical") == []
    with pytest.raises(InvalidInputError, match="klingon"):
        LongDocumentIndex(tmp_path / "other", EMBEDDER, lexical="klingon")
    assert not (tmp_path / "other").exists()


def test_words_follow_the_documents(opened: Callable[..., LongDocumentIndex]) -> None:
    with opened() as index:
        index.add([Document("a", "Rivers flow."), Document("b", "Houses stand.")])
        index.add([Document("a", "Mountains rise.")])
        assert index.search("river", mode="lexical") == []
        assert [hit.id for hit in index.search("mountain", mode="lexical")] == ["a"]
        index.delete("a")
        assert index.search("mountain", mode="lexical") == []
        assert [hit.id for hit in index.search("mountain")] == ["b"]


def test_one_document_and_none(opened: Callable[..., LongDocumentIndex]) -> None:
    with opened() as index:
        for mode in MODES:
            assert index.search("rivers", mode=mode, rescore=0.5) == []  # type: ignore[arg-type]
        index.add(Document("a", "Rivers flow."))
        assert index.search("rivers", rescore=0)[0].score == pytest.approx(1, abs=1e-5)
        assert [hit.id for hit in index.search("mountains")] == ["a"]


def test_documents_that_came_without_passages(opened: Callable[..., LongDocumentIndex]) -> None:
    class Bare(HashEmbedder):
        has_passages = False

    with opened() as index:
        index._embedder = Bare()
        index.add([Document("a", "Rivers flow."), Document("b", "Rivers stand, and houses.")])
        for mode in MODES:
            hits = index.search("rivers flow", mode=mode, rescore=0.5)  # type: ignore[arg-type]
            assert [hit.id for hit in hits] == ["a", "b"]
            # Chosen by their words, and scored as their documents.
            for hit, text in zip(hits, ("Rivers flow.", "Rivers stand, and houses."), strict=True):
                assert [(p.text, p.score, p.own_score) for p in hit.passages] == [(text, hit.document_score, False)]
        assert [hit.passages for hit in index.search("mountains", mode="dense")] == [[], []]
