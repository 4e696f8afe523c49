"""The test double itself: that it answers as a Qdrant server does (QDRANT_URL asks a real one), and what it refuses."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from support.qdrant_server import QdrantTestServer

VECTORS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.8, 0.0]]


@pytest.fixture
def unnamed(qdrant: QdrantClient, collection: str) -> Iterator[str]:
    """A collection with one vector without a name, as the adapters of frameworks make them."""
    qdrant.create_collection(collection, vectors_config=models.VectorParams(size=3, distance=models.Distance.COSINE))
    points = [
        models.PointStruct(id=i + 1, vector=vector, payload={"n": i, "meta": {"kind": "ab"[i % 2]}})
        for i, vector in enumerate(VECTORS)
    ]
    qdrant.upsert(collection, points, wait=True)
    yield collection


def test_existence_and_listing(qdrant: QdrantClient, collection: str) -> None:
    assert not qdrant.collection_exists(collection)
    qdrant.create_collection(collection, vectors_config=models.VectorParams(size=3, distance=models.Distance.DOT))
    assert qdrant.collection_exists(collection)
    assert collection in [found.name for found in qdrant.get_collections().collections]
    assert qdrant.delete_collection(collection) and not qdrant.delete_collection(collection)


@pytest.mark.parametrize(
    ("status", "call"),
    [
        (404, lambda client, name: client.count(name + "-missing")),
        (404, lambda client, name: client.get_collection(name + "-missing")),
        (409, lambda client, name: client.create_collection(name, vectors_config={})),
        (400, lambda client, name: client.upsert(name, [models.PointStruct(id=9, vector=[1.0, 2.0])])),
        (400, lambda client, name: client.upsert(name, [models.PointStruct(id="no uuid", vector=[1.0, 2.0, 3.0])])),
        (400, lambda client, name: client.query_points(name, query=[1.0, 2.0])),
        (400, lambda client, name: client.query_points(name, query=[1.0, 2.0, 3.0], using="nobody")),
        (400, lambda client, name: client.facet(name, key="n")),
    ],
    ids=["count", "get", "create", "dimension", "id", "query", "name", "facet"],
)
def test_errors_have_the_servers_status(qdrant: QdrantClient, unnamed: str, status: int, call: Any) -> None:
    with pytest.raises(UnexpectedResponse) as caught:
        call(qdrant, unnamed)
    assert caught.value.status_code == status
    assert json.loads(caught.value.content)["status"]["error"]


def test_query_scroll_count_delete(qdrant: QdrantClient, unnamed: str) -> None:
    found = qdrant.query_points(unnamed, query=[1.0, 0.0, 0.0], limit=2, with_vectors=True).points
    assert [point.id for point in found] == [1, 3] and found[1].score == pytest.approx(0.6)
    assert found[0].vector == [1.0, 0.0, 0.0] and found[0].payload["n"] == 0
    only = models.Filter(must=[models.FieldCondition(key="meta.kind", match=models.MatchValue(value="a"))])
    assert [point.id for point in qdrant.scroll(unnamed, scroll_filter=only)[0]] == [1, 3]
    first, following = qdrant.scroll(unnamed, limit=2, with_payload=False)
    rest, end = qdrant.scroll(unnamed, limit=2, offset=following)
    assert [point.id for point in first + rest] == [1, 2, 3] and end is None and first[0].payload is None
    assert qdrant.count(unnamed, count_filter=only).count == 2
    qdrant.delete(unnamed, models.FilterSelector(filter=only), wait=True)
    assert [point.id for point in qdrant.retrieve(unnamed, [1, 2, 3])] == [2]


def test_conditions(qdrant: QdrantClient, unnamed: str) -> None:
    def ids(**kinds: Any) -> list[Any]:
        return [point.id for point in qdrant.scroll(unnamed, scroll_filter=models.Filter(**kinds))[0]]

    n = models.FieldCondition(key="n", range=models.Range(gt=0, lt=2))
    b = models.FieldCondition(key="meta.kind", match=models.MatchAny(any=["b", "c"]))
    assert ids(must=[n, b]) == [2] and ids(must_not=[n]) == [1, 3] and ids(should=[n, b]) == [2]
    assert ids(must=[models.HasIdCondition(has_id=[1, 7])]) == [1]
    assert ids(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key="absent"))]) == [1, 2, 3]
    assert ids(must=[models.Filter(should=[n, models.HasIdCondition(has_id=[1])])]) == [1, 2]
    assert ids(must=[models.FieldCondition(key="meta.kind", match=models.MatchExcept(**{"except": ["a"]}))]) == [2]


def test_named_sparse_and_fusion(qdrant: QdrantClient, collection: str) -> None:
    qdrant.create_collection(
        collection,
        vectors_config={"dense": models.VectorParams(size=3, distance=models.Distance.COSINE)},
        sparse_vectors_config={"words": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        metadata={"a": 1},
    )
    words = [[1, 2], [2, 3], [2, 4]]
    points = [
        models.PointStruct(id=i, vector={"dense": VECTORS[i], "words": models.SparseVector(indices=at, values=[1, 1])})
        for i, at in enumerate(words)
    ]
    qdrant.upload_points(collection, points, wait=True)
    assert qdrant.get_collection(collection).config.metadata == {"a": 1}
    asked = models.SparseVector(indices=[4], values=[1])
    sparse = qdrant.query_points(collection, query=asked, using="words", with_vectors=["words"]).points
    assert [point.id for point in sparse] == [2] and sparse[0].vector["words"].indices == [2, 4]
    both = [
        models.Prefetch(query=VECTORS[0], using="dense", limit=3),
        models.Prefetch(query=asked, using="words", limit=3),
    ]
    for fusion in (
        models.FusionQuery(fusion=models.Fusion.RRF),
        models.RrfQuery(rrf=models.Rrf(k=60, weights=[1, 3])),
        models.FusionQuery(fusion=models.Fusion.DBSF),
    ):
        fused = qdrant.query_points(collection, prefetch=both, query=fusion).points
        assert fused[0].id == 2 and len(fused) == 3
    again = qdrant.query_points(collection, prefetch=both, query=VECTORS[0], using="dense", limit=1).points
    assert [point.id for point in again] == [0]


def test_wait_is_answered(double: QdrantTestServer) -> None:
    client = QdrantClient(double.url, check_compatibility=False)
    client.create_collection("c", vectors_config=models.VectorParams(size=3, distance=models.Distance.DOT))
    point = models.PointStruct(id=1, vector=VECTORS[0])
    assert client.upsert("c", [point], wait=True).status == models.UpdateStatus.COMPLETED
    assert client.upsert("c", [point], wait=False).status == models.UpdateStatus.ACKNOWLEDGED
    client.close()


def test_aliases_change_all_at_once(double: QdrantTestServer) -> None:
    client = QdrantClient(double.url, check_compatibility=False)
    for name in ("old", "new"):
        client.create_collection(name, vectors_config=models.VectorParams(size=3, distance=models.Distance.DOT))
    client.upsert("new", [models.PointStruct(id=1, vector=VECTORS[0])], wait=True)

    def create(name: str, alias: str = "live") -> models.CreateAliasOperation:
        return models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=name, alias_name=alias))

    delete = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name="live"))
    client.update_collection_aliases([create("old")])
    assert client.collection_exists("live") and client.count("live").count == 0
    for refused in ([delete, create("none")], [delete, create("old", "new")], [delete, delete]):
        with pytest.raises(UnexpectedResponse):
            client.update_collection_aliases(refused)
        assert client.count("live").count == 0, "nothing has changed"
    client.update_collection_aliases([delete, create("new")])
    assert client.count("live").count == 1
    assert [(one.alias_name, one.collection_name) for one in client.get_aliases().aliases] == [("live", "new")]
    client.delete_collection("new")
    assert not client.get_aliases().aliases and not client.collection_exists("live")
    client.close()


def test_what_it_does_not_know_it_refuses(double: QdrantTestServer) -> None:
    client = QdrantClient(double.url, check_compatibility=False)
    client.create_collection("c", vectors_config=models.VectorParams(size=3, distance=models.Distance.DOT))
    for call in (
        lambda: client.list_full_snapshots(),
        lambda: client.create_snapshot("c"),
        lambda: client.query_points("c", query=models.RecommendQuery(recommend=models.RecommendInput(positive=[1]))),
        lambda: client.create_collection("d", vectors_config={}, replication_factor=2),
    ):
        with pytest.raises(UnexpectedResponse) as caught:
            call()
        assert caught.value.status_code == 501
    client.close()


def test_the_key(double: QdrantTestServer) -> None:
    double.api_key = "key"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{double.url}/collections")
    assert caught.value.code == 401
    request = urllib.request.Request(f"{double.url}/collections", headers={"api-key": "key"})
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["result"] == {"collections": []}


def test_faults_and_restarts(double: QdrantTestServer) -> None:
    client = QdrantClient(double.url, check_compatibility=False)
    double.fail(1, "PUT .*", status=0, done_first=True)
    with pytest.raises(ResponseHandlingException):
        client.create_collection("c", vectors_config=models.VectorParams(size=3, distance=models.Distance.DOT))
    assert client.collection_exists("c")
    double.fail(1, "PUT .*", status=503)
    with pytest.raises(UnexpectedResponse):
        client.create_collection("d", vectors_config={})
    assert not client.collection_exists("d")
    double.stop()
    with pytest.raises(ResponseHandlingException):
        client.get_collections()
    double.start()
    assert [found.name for found in client.get_collections().collections] == ["c"]
    assert double.requests[0] == "PUT /collections/c"
    client.close()
