"""Collections by either client: what they are made of, adding, searching, other models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Doc
from fake_embedder import HashEmbedder
from pymongo import AsyncMongoClient
from pymongo.database import Database
from support.atlas_front import AtlasFront
from support.collection_cases import (
    DOCUMENTS,
    Make,
    document,
    test_a_collection_of_another_model,
    test_adding_again_changes_what_has_changed,
    test_an_embedder_that_changes_its_mind_about_dimensions,
    test_duplicate_ids,
    test_none_there,
)

from m2rag.errors import (
    InputTooLongError,
    InvalidInputError,
    PointTooLargeError,
    StoreError,
)
from m2rag.index import Document
from m2rag_mongodb import (
    AsyncDocumentCollection,
    CollectionOptions,
    DocumentCollection,
    IndexNotReadyError,
    UnstorableError,
    layout,
)

__all__ = [
    "test_a_collection_of_another_model",
    "test_adding_again_changes_what_has_changed",
    "test_an_embedder_that_changes_its_mind_about_dimensions",
    "test_duplicate_ids",
    "test_none_there",
]

OPTIONS = CollectionOptions(filter_fields=("year", "tags"))


# Making one


@pytest.mark.parametrize(
    ("options", "vector"),
    [
        (CollectionOptions(), {"similarity": "cosine"}),
        (CollectionOptions(quantization="scalar"), {"similarity": "cosine", "quantization": "scalar"}),
        (CollectionOptions(vectors="int8", lexical=None), {"similarity": "cosine"}),
        (CollectionOptions(vectors="packed_bit", lexical="german"), {"similarity": "euclidean"}),
    ],
)
def test_the_collection_is_made_for_the_embedder(database: Database[Doc], options: Any, vector: Doc) -> None:
    made = DocumentCollection.on_server(database["docs"], HashEmbedder(dimension=48), options=options)
    made.wait_until_ready(120)
    indexes = {one["name"]: one["latestDefinition"] for one in database["docs"].list_search_indexes()}
    fields = indexes["m2rag_doc"]["fields"]
    assert {**vector, "type": "vector", "path": "doc", "numDimensions": 48}.items() <= fields[0].items()
    assert {"type": "filter", "path": "m2rag.filters"} in fields
    assert set(indexes) == {"m2rag_doc", *(["m2rag_text"] if options.lexical else [])}
    if options.lexical:
        assert indexes["m2rag_text"]["mappings"]["fields"]["text"]["analyzer"] == f"lucene.{options.lexical}"
    stored = database["docs"].find_one({"_id": "m2rag"})
    assert stored is not None and stored["manifest"]["fingerprint"] == "fake:64"
    assert made.location == f"{database.name}.docs" and made.info()["dimension"] == 48 and len(made) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"vectors": "half"},
        {"vectors": "int8", "quantization": "scalar"},
        {"quantization": "ternary"},
        {"filter_fields": "year"},
    ],
)
def test_options_that_are_wrong(database: Database[Doc], options: Doc) -> None:
    with pytest.raises(InvalidInputError):
        DocumentCollection.on_server(database["docs"], HashEmbedder(), options=CollectionOptions(**options))
    assert database.list_collection_names() == []


# Other models


# Adding


def test_documents_that_are_bad_are_named_and_the_rest_goes_on(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "INLINE_BYTES", 50_000)
    bad = {
        "long": (Document("long", "word " * 2000), InputTooLongError),
        "empty": (Document("empty", " "), InvalidInputError),
        "huge": (Document("huge", "Text.", metadata={"abstract": "a" * 60_000}), PointTooLargeError),
        "odd": (Document("odd", "Text.", metadata={"a\0b": 1}), UnstorableError),
    }
    large = Document("large", "Word. " * 900 + "x" * 90_000, metadata={"year": 1})
    with make() as opened:
        report = opened.add([*(one for one, _ in bad.values()), large, *DOCUMENTS[:3]], on_too_long="error")
        assert {failure.id: type(failure.cause) for failure in report.failed} == {
            id: cause for id, (_, cause) in bad.items()
        }
        assert report.added == len(opened) == 4 and opened.get("large") == large
        assert opened.add(bad["long"][0]).added == 1  # in windows


# Searching


@pytest.fixture
def filled(make: Make) -> Any:
    with make(options=OPTIONS) as opened:
        opened.add(DOCUMENTS)
        opened.wait_until_ready(120)
        yield opened


def test_modes(filled: Any) -> None:
    embedder = HashEmbedder()
    query = embedder.embed_query("w7 w7 w11 only3")
    cosines = {document.id: float(query @ embedder.vector(document.text)) for document in DOCUMENTS}

    dense = filled.search("w7 w7 w11 only3", 5, mode="dense")
    assert [hit.id for hit in dense] == sorted(cosines, key=lambda id: -cosines[id])[:5]
    assert [hit.score for hit in dense] == pytest.approx([hit.document_score for hit in dense])

    lexical = filled.search("only3", 5, mode="lexical")
    assert [hit.id for hit in lexical] == ["folder/03.txt"] and lexical[0].score > 0
    words = {document.id for document in DOCUMENTS if {"w7", "w11"} & set(document.text.replace(".", "").split())}
    assert {hit.id for hit in filled.search("w7 w11", 99, mode="lexical")} == words
    assert filled.search("Number 4", 1, mode="lexical")[0].title == "Number 4", "titles count too"

    hybrid = filled.search("w7 w7 w11 only3", 5)
    assert filled.search("only3", 5)[0].id == "folder/03.txt", "first in both rankings"
    assert [hit.score for hit in hybrid] == sorted((hit.score for hit in hybrid), reverse=True)
    for hit in (*dense, *lexical, *hybrid):
        at = "only3" if hit in lexical else "w7 w7 w11 only3"
        text = filled.get(hit.id).text
        assert hit.document_score == pytest.approx(float(embedder.embed_query(at) @ embedder.vector(text)), abs=1e-5)
        assert hit.passages and all(text[p.start : p.end] == p.text for p in hit.passages)


def test_rescoring_by_the_best_passage(filled: Any) -> None:
    embedder = HashEmbedder()
    query = embedder.embed_query("w7 w11")
    for hit in filled.search("w7 w11", 5, mode="dense", rescore=1.0):
        text = filled.get(hit.id).text
        assert hit.score == pytest.approx(float((embedder.passages(text).vectors @ query).max()), abs=2e-3)


@pytest.mark.parametrize("vectors", ["float32", "int8", "packed_bit"])
def test_weights_and_scores_of_the_fusion(own: Callable[..., DocumentCollection], vectors: Any) -> None:
    opened = own(options=CollectionOptions(vectors=vectors))
    opened.add(DOCUMENTS)

    def scores(mode: Any, **options: Any) -> dict[str, float]:
        hits = opened.search("w7 w11 w3", 20, mode=mode, filter={"tags": "t1"}, passages=False, **options)
        return {hit.id: hit.score for hit in hits}

    meaning, words = scores("dense"), scores("lexical")
    top, last = max(meaning.values()), min(meaning.values())
    assert top - last > 0.2
    for weights in ((1.0, 1.0), (1.0, 3.0), (1.0, 0.0), (0.0, 1.0)):
        expected = {
            id: (weights[0] * (score - last) / (top - last) + weights[1] * words.get(id, 0) / max(words.values()))
            / sum(weights)
            for id, score in meaning.items()
        }
        assert scores("hybrid", weights=weights, rescore=0) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_filters(filled: Any, mode: str) -> None:
    def found(**conditions: Any) -> set[str]:
        return {hit.id for hit in filled.search("w7 w11 w3 w5", 20, mode=mode, **conditions)}

    assert found(filter={"even": True, "tags": "t1"}) <= {document(i).id for i in (4, 10, 16)}
    late = found(where={"metadata.year": {"$gte": 2015}})
    assert late and late <= {document(i).id for i in range(15, 20)}
    assert found(filter={"even": True}, where={"metadata.year": {"$gte": 2015}}) == late & {
        document(i).id for i in (16, 18)
    }
    assert found(filter={"even": "True"}) == found(filter={"unknown": 1}) == set()


def test_queries_without_words_of_the_collection(filled: Any) -> None:
    assert filled.search("nowhere", 3, mode="lexical") == []
    assert len(filled.search("nowhere", 3)) == 3


def test_bad_arguments(filled: Any) -> None:
    for arguments in (
        {"mode": "sparse"},
        {"k": 0},
        {"k": 0, "mode": "dense"},
        {"n_passages": -1},
        {"weights": (0.0, 0.0)},
        {"weights": (-1.0, 1.0)},
        {"rescore": 1.5},
        {"rescore": 1.5, "mode": "dense"},
        {"filter": {"a": None}},
    ):
        with pytest.raises(InvalidInputError):
            filled.search("w7", **arguments)
    with pytest.raises(InvalidInputError, match="empty"):
        filled.search(" ")
    with pytest.raises(StoreError, match="refused to aggregate"):
        filled.search("w7", mode="dense", where={"metadata.even": True})


def test_without_a_text_index(own: Callable[..., DocumentCollection]) -> None:
    opened = own(options=CollectionOptions(lexical=None))
    opened.add(DOCUMENTS)
    assert [hit.score for hit in opened.search("w7", 3)] == [hit.score for hit in opened.search("w7", 3, mode="dense")]
    for mode in ("hybrid", "lexical"):
        with pytest.raises(InvalidInputError, match="no words"):
            opened.search("w7", mode=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_an_index_that_is_still_building(
    front: AtlasFront, own: Callable[..., DocumentCollection], mode: Any, caplog: pytest.LogCaptureFixture
) -> None:
    front.hold = True
    opened = own(options=CollectionOptions(), ready_seconds=0.2)
    assert opened.add(DOCUMENTS).added == 20
    assert "all is stored, but searches do not find all of it yet" in caplog.text
    with pytest.raises(IndexNotReadyError, match="is not ready.*BUILDING"):
        opened.search("w7", mode=mode)
    with pytest.raises(IndexNotReadyError):
        opened.wait_until_ready(0.1)
    front.hold = False
    opened.wait_until_ready(5)
    assert opened.search("w7", mode=mode)


# With an event loop


def test_the_loop_goes_on_while_documents_are_added(front: AtlasFront) -> None:
    async def main() -> int:
        client: AsyncMongoClient[Doc] = AsyncMongoClient(front.uri)
        collection = client["m2rag_own"]["docs"]
        async with await AsyncDocumentCollection.on_server(collection, HashEmbedder(seconds_per_text=0.02)) as opened:
            ticks = 0
            adding = asyncio.create_task(opened.add(DOCUMENTS, batch_tokens=60))
            while not adding.done():
                await asyncio.sleep(0.005)
                ticks += 1
            assert (await adding).added == await opened.count() == 20
            assert (await opened.info())["documents"] == 20 and opened.location == "m2rag_own.docs"
        await client.close()
        return ticks

    assert asyncio.run(main()) > 5  # of about 80; a loop that is held up has none


def test_cancelled_it_stops_and_keeps_what_is_done(front: AtlasFront) -> None:
    async def main() -> None:
        client: AsyncMongoClient[Doc] = AsyncMongoClient(front.uri)
        embedder = HashEmbedder(seconds_per_text=0.05)
        opened = await AsyncDocumentCollection.on_server(client["m2rag_own"]["docs"], embedder)
        seen = asyncio.Event()
        loop = asyncio.get_running_loop()

        def watch(state: Any) -> None:
            if state.done >= 5:
                loop.call_soon_threadsafe(seen.set)

        adding = asyncio.create_task(opened.add(DOCUMENTS, batch_tokens=60, progress=watch))
        await seen.wait()
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        await asyncio.sleep(0.3)
        kept = await opened.count()
        embedded = len(embedder.embedded)
        await asyncio.sleep(0.2)
        assert 5 <= kept < 20 and len(embedder.embedded) == embedded, "the thread went on"
        await client.close()

    asyncio.run(main())
