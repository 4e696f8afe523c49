"""Collections by every kind of client and in a folder: what they are made of, adding, searching, other models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fake_embedder import HashEmbedder
from qdrant_client import QdrantClient, models
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
    StoreError,
)
from m2rag.index import Document, LongDocumentIndex
from m2rag_qdrant import CollectionOptions, DocumentCollection, collection_config

__all__ = [
    "test_a_collection_of_another_model",
    "test_adding_again_changes_what_has_changed",
    "test_an_embedder_that_changes_its_mind_about_dimensions",
    "test_duplicate_ids",
    "test_none_there",
]


# Making one


@pytest.mark.parametrize("quantization", [None, "scalar", "binary"])
def test_the_collection_is_made_for_the_embedder(qdrant: QdrantClient, collection: str, quantization: Any) -> None:
    options = CollectionOptions(lexical="german", quantization=quantization, server={"on_disk_payload": True})
    made = DocumentCollection.on_server(qdrant, collection, HashEmbedder(dimension=48), options=options)
    config = qdrant.get_collection(collection).config
    doc, passages = config.params.vectors["doc"], config.params.vectors["passages"]
    assert (doc.size, doc.distance, passages.size) == (48, models.Distance.COSINE, 48)
    assert passages.multivector_config.comparator == models.MultiVectorComparator.MAX_SIM
    assert config.params.sparse_vectors["lexical"].modifier == models.Modifier.IDF
    assert (doc.quantization_config is not None) == (quantization is not None)
    if quantization:
        assert getattr(doc.quantization_config, quantization) is not None
    stored = config.metadata["m2rag"]
    assert (stored["fingerprint"], stored["dimension"], stored["lexical"]) == ("fake:64", 48, "german")
    assert made.location.endswith(f"/{collection}") and made.info()["lexical"] == "german"


def test_made_by_hand_from_the_config(qdrant: QdrantClient, collection: str) -> None:
    qdrant.create_collection(collection, **collection_config(HashEmbedder()))
    made = DocumentCollection.on_server(qdrant, collection, HashEmbedder(), create=False)
    made.add(DOCUMENTS[:3])
    assert made.ids() == [document.id for document in DOCUMENTS[:3]]
    assert set(qdrant.get_collection(collection).payload_schema) == {"id", "n_tokens", "n_windows"}


def test_options_that_are_wrong(qdrant: QdrantClient, collection: str) -> None:
    with pytest.raises(InvalidInputError, match="klingon"):
        DocumentCollection.on_server(qdrant, collection, HashEmbedder(), options=CollectionOptions(lexical="klingon"))
    assert not qdrant.collection_exists(collection)


# Other models


def test_a_collection_of_others(qdrant: QdrantClient, collection: str) -> None:
    qdrant.create_collection(collection, vectors_config=models.VectorParams(size=64, distance=models.Distance.COSINE))
    with pytest.raises(StoreError, match="not made by m2rag"):
        DocumentCollection.on_server(qdrant, collection, HashEmbedder())


# Adding


def test_documents_that_are_too_long_or_bad(make: Make) -> None:
    long, empty = Document("long", "word " * 2000), Document("empty", " ")
    poisoned = Document("poisoned", "This is poison.")
    embedder = HashEmbedder(poison={"poison": "nan"})
    with make(embedder) as opened:
        report = opened.add([long, empty, poisoned, DOCUMENTS[0]], on_too_long="error")
        causes = {failure.id: failure.cause for failure in report.failed}
        assert set(causes) == {"long", "empty", "poisoned"} and isinstance(causes["long"], InputTooLongError)
        assert opened.ids() == ["folder/00.txt"]
        assert opened.add(long).added == 1  # in windows


# Searching


@pytest.fixture
def filled(make: Make) -> Any:
    with make() as opened:
        opened.add(DOCUMENTS)
        yield opened


def test_modes(filled: Any) -> None:
    embedder = HashEmbedder()
    query = embedder.embed_query("w7 w7 w11 only3")
    cosines = {document.id: float(query @ embedder.vector(document.text)) for document in DOCUMENTS}

    dense = filled.search("w7 w7 w11 only3", 5, mode="dense")
    assert [hit.id for hit in dense] == sorted(cosines, key=lambda id: -cosines[id])[:5]
    assert [hit.score for hit in dense] == [hit.document_score for hit in dense]

    lexical = filled.search("only3", 5, mode="lexical")
    assert [hit.id for hit in lexical] == ["folder/03.txt"] and lexical[0].score > 1
    words = {document.id for document in DOCUMENTS if {"w7", "w11"} & set(document.text.replace(".", "").split())}
    assert {hit.id for hit in filled.search("w7 w11", 99, mode="lexical")} == words

    hybrid = filled.search("w7 w7 w11 only3", 5)
    assert filled.search("only3", 5)[0].id == "folder/03.txt", "first in both rankings"
    assert [hit.score for hit in hybrid] == sorted((hit.score for hit in hybrid), reverse=True)
    for hit in (*dense, *lexical, *hybrid):
        at = "only3" if hit in lexical else "w7 w7 w11 only3"
        expected = float(embedder.embed_query(at) @ embedder.vector(filled.get(hit.id).text))
        assert hit.document_score == pytest.approx(expected, abs=1e-5)
        text = filled.get(hit.id).text
        assert hit.passages and all(text[p.start : p.end] == p.text for p in hit.passages)


def test_weights(filled: Any) -> None:
    query = "w7 w11 w3"
    dense, lexical = ([hit.id for hit in filled.search(query, 20, mode=mode)] for mode in ("dense", "lexical"))
    assert [hit.id for hit in filled.search(query, 20, weights=(1, 0), rescore=0)] == dense
    assert [hit.id for hit in filled.search(query, 3, weights=(0, 1), rescore=0)] == lexical[:3]
    both = [hit.id for hit in filled.search(query, 20, weights=(1, 1), rescore=0)]
    assert set(both) == {*dense, *lexical} and both not in (dense, lexical)


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_filters(filled: Any, mode: str) -> None:
    found = filled.search("w7 w11 w3 w5", 20, mode=mode, filter={"even": True, "tags": "t1"})
    assert {hit.id for hit in found} <= {document(i).id for i in (4, 10, 16)} and found


def test_queries_without_words(filled: Any) -> None:
    assert filled.search("the of", 3, mode="lexical") == []
    assert len(filled.search("the of", 3)) == 3


def test_bad_arguments(filled: Any) -> None:
    for arguments in (
        {"mode": "sparse"},
        {"k": 0},
        {"k": 0, "mode": "dense"},
        {"n_passages": -1},
        {"weights": (0.0, 0.0)},
        {"weights": (-1.0, 1.0)},
        {"rescore": 1.5},
        {"filter": {"a": None}},
    ):
        with pytest.raises(InvalidInputError):
            filled.search("w7", **arguments)
    with pytest.raises(InvalidInputError, match="empty"):
        filled.search(" ")


def test_an_index_without_bm25_vectors(make: Make) -> None:
    with make(options=CollectionOptions(lexical=None)) as opened:
        opened.add(DOCUMENTS[:3])
        assert opened.search("w7", 1)[0].score == opened.search("w7", 1)[0].document_score
        with pytest.raises(InvalidInputError, match="no words"):
            opened.search("w7", mode="hybrid")


def test_long_document_index_opens_it_and_keeps_it_complete(tmp_path: Path, collection_url: str, make: Make) -> None:
    """What the library adds by itself, on the same place, has BM25 vectors too."""
    with make() as opened:
        location = opened.location
    with LongDocumentIndex(location, HashEmbedder(), create=False) as index:
        index.add(DOCUMENTS[:5])
        assert index.search("w7", 1)
    with make() as opened:
        assert [hit.id for hit in opened.search("only3", mode="lexical")] == ["folder/03.txt"]


def test_all_kinds_find_the_same(
    tmp_path: Path, qdrant: QdrantClient, collection: str, async_qdrant: Any, loop: Any
) -> None:
    from m2rag_qdrant import AsyncDocumentCollection

    with DocumentCollection.in_folder(tmp_path / "folder", HashEmbedder()) as folder:
        folder.add(DOCUMENTS)
        memory = DocumentCollection.on_server(QdrantClient(":memory:"), "c", HashEmbedder())
        memory.add(DOCUMENTS)
        server = DocumentCollection.on_server(qdrant, collection, HashEmbedder())
        server.add(DOCUMENTS)
        through_loop = loop.run(AsyncDocumentCollection.on_server(async_qdrant, collection, HashEmbedder()))
        for mode in ("dense", "lexical", "hybrid"):
            for query in ("w7 w11 w3", "only3 w2", "w1 w1 w1 w30"):
                expected = folder.search(query, 8, mode=mode)
                others = [
                    server.search(query, 8, mode=mode),
                    loop.run(through_loop.search(query, 8, mode=mode)),
                    memory.search(query, 8, mode=mode),
                ]
                for found in others:
                    assert {hit.id for hit in found} == {hit.id for hit in expected}
                    by_id = {hit.id: hit for hit in found}
                    for hit in expected:
                        assert by_id[hit.id].score == pytest.approx(hit.score, rel=1e-3)  # 16 bits
                        assert by_id[hit.id].document_score == pytest.approx(hit.document_score, abs=1e-5)
                        passages = [passage.score for passage in by_id[hit.id].passages]
                        assert passages == pytest.approx([passage.score for passage in hit.passages], abs=1e-3)
