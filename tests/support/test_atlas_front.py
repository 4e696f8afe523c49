"""The test double of MongoDB Atlas keeps the rules that the tests of others rely on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pymongo", reason="pymongo is not installed: it comes with integrations/mongodb")

from bson.binary import Binary, BinaryVectorDtype
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.errors import AutoReconnect, OperationFailure, ServerSelectionTimeoutError
from pymongo.operations import SearchIndexModel
from support.atlas_fixtures import front, mongod
from support.atlas_front import AtlasFront

__all__ = ["front", "mongod"]

Docs = Collection[dict[str, Any]]
ROWS = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float64)
DEFINITION = {
    "fields": [
        {"type": "vector", "path": "v", "numDimensions": 3, "similarity": "cosine"},
        {"type": "filter", "path": "n"},
    ]
}
NEAREST = {"index": "vectors", "path": "v", "queryVector": [1.0, 0.0, 0.0], "limit": 2, "exact": True}


@pytest.fixture
def docs(front: AtlasFront) -> Iterator[Docs]:
    client: MongoClient[dict[str, Any]] = MongoClient(front.uri, serverSelectionTimeoutMS=1500)
    collection = client["m2rag_front"]["docs"]
    collection.insert_many(
        {"_id": i, "v": row.tolist(), "n": i, "tags": [f"t{i}", "all"], "text": f"word{i} shared " * (i + 1)}
        for i, row in enumerate(ROWS)
    )
    yield collection
    front.start() if front._listening is None else None
    client.drop_database("m2rag_front")
    client.close()


@pytest.fixture
def indexed(docs: Docs) -> Docs:
    docs.create_search_index(SearchIndexModel(DEFINITION, "vectors", "vectorSearch"))
    docs.create_search_index(SearchIndexModel({"mappings": {"fields": {"text": {"type": "string"}}}}, "words"))
    return docs


def found(docs: Docs, *rest: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    stage = {key: value for key, value in {**NEAREST, **changes}.items() if value is not None}
    return list(docs.aggregate([{"$vectorSearch": stage}, *rest]))


def refused(docs: Docs, **changes: Any) -> str:
    with pytest.raises(OperationFailure) as caught:
        found(docs, **changes)
    return str(caught.value)


def test_what_is_not_search_is_the_stores(docs: Docs, front: AtlasFront) -> None:
    assert docs.count_documents({"tags": "all", "n": {"$gt": 1}}) == 2
    assert [one["n"] for one in docs.aggregate([{"$match": {"n": 3}}, {"$set": {"n": {"$add": ["$n", 1]}}}])] == [4]
    assert {"insert", "aggregate"} <= set(front.commands) and "hello" not in front.commands


def test_an_index_is_built_changed_and_dropped(docs: Docs, front: AtlasFront) -> None:
    front.build_seconds = 0.2
    docs.create_search_index(SearchIndexModel(DEFINITION, "vectors", "vectorSearch"))
    [told] = docs.list_search_indexes("vectors")
    assert (told["status"], told["queryable"], told["latestDefinition"]) == ("BUILDING", False, DEFINITION)
    assert found(docs) == []
    front.building_is_an_error = True
    assert "INITIAL_SYNC" in refused(docs)
    time.sleep(0.25)
    [told] = docs.list_search_indexes()
    assert (told["status"], told["queryable"], len(found(docs))) == ("READY", True, 2)
    with pytest.raises(OperationFailure) as caught:
        docs.create_search_index(SearchIndexModel(DEFINITION, "vectors", "vectorSearch"))
    assert caught.value.code == 68
    docs.update_search_index("vectors", {"fields": DEFINITION["fields"][:1]})
    [told] = docs.list_search_indexes()
    assert (told["status"], told["queryable"]) == ("BUILDING", True)
    assert len(found(docs, filter={"n": 1})) == 1, "until it is built, queries go by the old definition"
    time.sleep(0.25)
    assert "indexed as filter" in refused(docs, filter={"n": 1})
    docs.drop_search_index("vectors")
    assert found(docs) == [] and list(docs.list_search_indexes()) == []


def test_an_index_that_fails_or_hangs(indexed: Docs, front: AtlasFront) -> None:
    front.hold = True
    assert {one["status"] for one in indexed.list_search_indexes()} == {"BUILDING"}
    front.broken = "no room"
    assert {(one["status"], one["message"]) for one in indexed.list_search_indexes()} == {("FAILED", "no room")}


@pytest.mark.parametrize(
    "field",
    [
        {"type": "vector", "path": "v", "numDimensions": 0, "similarity": "cosine"},
        {"type": "vector", "path": "v", "numDimensions": 3, "similarity": "near"},
        {"type": "vector", "path": "v", "numDimensions": 3, "similarity": "cosine", "quantization": "half"},
        {"type": "vector", "path": "v", "numDimensions": 3, "similarity": "cosine", "size": 3},
    ],
)
def test_definitions_that_are_wrong(docs: Docs, field: dict[str, Any]) -> None:
    with pytest.raises(OperationFailure):
        docs.create_search_index(SearchIndexModel({"fields": [field]}, "vectors", "vectorSearch"))


def test_an_index_needs_its_collection(docs: Docs) -> None:
    with pytest.raises(OperationFailure, match="does not exist"):
        docs.database["nothing"].create_search_index(SearchIndexModel(DEFINITION, "vectors", "vectorSearch"))


def test_the_nearest_and_their_scores(indexed: Docs) -> None:
    score = {"$set": {"score": {"$meta": "vectorSearchScore"}}}
    both = found(indexed, score)
    assert [one["_id"] for one in both] == [0, 1]
    assert [one["score"] for one in both] == pytest.approx([1, (1 + 0.9 / np.hypot(0.9, 0.1)) / 2])
    assert all("__score" not in one and "__rank" not in one for one in both)
    assert found(indexed, {"$project": {"n": 1}}, score, {"$project": {"score": 1}})[0] == {"_id": 0, "score": 1.0}
    assert [one["_id"] for one in found(indexed, exact=None, numCandidates=10, limit=4)] == [0, 1, 2, 3]
    assert [one["_id"] for one in found(indexed, {"$match": {"n": 1}})] == [1]
    assert found(indexed, index="misspelt") == []


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ({"n": 2}, {2}),
        ({"n": {"$gte": 1, "$lt": 3}}, {1, 2}),
        ({"$or": [{"n": 0}, {"n": {"$in": [3]}}]}, {0, 3}),
        ({"$and": [{"n": {"$ne": 0}}, {"n": {"$nin": [1, 2]}}]}, {3}),
    ],
)
def test_filters(indexed: Docs, where: dict[str, Any], ids: set[int]) -> None:
    assert {one["_id"] for one in found(indexed, limit=9, filter=where)} == ids


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limit": 0}, "limit"),
        ({"exact": None}, "numCandidates"),
        ({"exact": None, "numCandidates": 1}, "bounds"),
        ({"exact": None, "numCandidates": 20_000}, "bounds"),
        ({"queryVector": [1.0]}, "3 dimensions but queried with 1"),
        ({"path": "text"}, "indexed as vector"),
        ({"filter": {"tags": "all"}}, "indexed as filter"),
        ({"filter": {"n": {"$regex": "1"}}}, "not allowed"),
        ({"fuzzy": True}, "does not know fuzzy"),
    ],
)
def test_queries_that_are_wrong(indexed: Docs, changes: dict[str, Any], said: str) -> None:
    assert said in refused(indexed, **changes)


def test_vectors_of_every_kind(docs: Docs) -> None:
    """Found by a query of their own kind and by no other."""
    kinds = {
        "f": (BinaryVectorDtype.FLOAT32, [1.0] * 8, "cosine"),
        "i": (BinaryVectorDtype.INT8, [127] * 8, "dotProduct"),
        "b": (BinaryVectorDtype.PACKED_BIT, [255], "euclidean"),
    }
    vectors = {name: Binary.from_vector(numbers, dtype) for name, (dtype, numbers, _) in kinds.items()}
    docs.insert_one({"_id": "all", **vectors})
    for name, (_, _, similarity) in kinds.items():
        field = {"type": "vector", "path": name, "numDimensions": 8, "similarity": similarity}
        docs.create_search_index(SearchIndexModel({"fields": [field]}, name, "vectorSearch"))
        for other, vector in vectors.items():
            hits = found(docs, index=name, path=name, queryVector=vector)
            assert [one["_id"] for one in hits] == (["all"] if other == name else [])
    assert found(docs, index="f", path="f", queryVector=[1.0] * 8)[0]["_id"] == "all"


def test_words(indexed: Docs) -> None:
    def search(query: str, **more: Any) -> list[dict[str, Any]]:
        stage = {"index": "words", "text": {"query": query, "path": "text"}, **more}
        return list(indexed.aggregate([{"$search": stage}, {"$set": {"score": {"$meta": "searchScore"}}}]))

    assert [one["_id"] for one in search("word2")] == [2] and search("word2")[0]["score"] > 0
    assert {one["_id"] for one in search("shared WORD3")} == {0, 1, 2, 3} and search("shared word3")[0]["_id"] == 3
    assert search("nothing") == []
    with pytest.raises(OperationFailure, match="does not know compound"):
        search("word2", compound={})


def test_fusion(indexed: Docs, front: AtlasFront) -> None:
    pipelines = {
        "one": [{"$vectorSearch": NEAREST}],
        "two": [{"$search": {"index": "words", "text": {"query": "word1 word2", "path": "text"}}}, {"$limit": 2}],
    }
    stage = {"$rankFusion": {"input": {"pipelines": pipelines}, "combination": {"weights": {"two": 3}}}}
    fused = list(indexed.aggregate([stage, {"$project": {"score": {"$meta": "score"}}}]))
    words = [one["_id"] for one in indexed.aggregate(pipelines["two"])]
    expected = {0: 1 / 61, 1: 1 / 62}
    for rank, id in enumerate(words, start=1):
        expected[id] = expected.get(id, 0) + 3 / (60 + rank)
    assert {one["_id"]: one["score"] for one in fused} == pytest.approx(expected)
    assert [one["score"] for one in fused] == sorted(expected.values(), reverse=True)
    front.rank_fusion = False
    with pytest.raises(OperationFailure) as caught:
        indexed.aggregate([stage])
    assert caught.value.code == 40324


def test_what_is_written_later_is_not_seen(indexed: Docs, front: AtlasFront) -> None:
    front.freeze()
    indexed.insert_one({"_id": "new", "v": [1.0, 0.0, 0.0]})
    assert "new" not in [one["_id"] for one in found(indexed, limit=9)]
    front.frozen = None
    assert "new" in [one["_id"] for one in found(indexed, limit=9)]


@pytest.mark.parametrize("done_first", [False, True])
def test_faults(docs: Docs, front: AtlasFront, done_first: bool) -> None:
    front.fail(1, "insert", code=8000, text="no", done_first=done_first, after=1)
    docs.insert_one({"_id": "first"})
    with pytest.raises(OperationFailure, match="no") as caught:
        docs.insert_one({"_id": "second"})
    assert caught.value.code == 8000
    assert docs.count_documents({"_id": "second"}) == done_first
    front.fail(2, "delete", code=0, done_first=done_first)  # the driver tries a second time by itself
    with pytest.raises(AutoReconnect):
        docs.delete_one({"_id": "first"})
    assert docs.count_documents({"_id": "first"}) == (not done_first)


def test_stopped_and_started(docs: Docs, front: AtlasFront) -> None:
    front.stop()
    with pytest.raises((AutoReconnect, ServerSelectionTimeoutError)):
        docs.count_documents({})
    front.start()
    assert docs.count_documents({}) == 4
