"""The store on a server by itself: who may open it, what it says, and what it does when the server does not."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import grpc
import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from support.qdrant_server import QdrantTestServer

from m2rag.errors import IndexMismatchError, IndexNotFoundError, InvalidInputError, PointTooLargeError, StoreError
from m2rag.stores import Manifest, Point, Schema, SparseVector, VectorSpec, VectorStore, open_store
from m2rag.stores import qdrant_server as module
from m2rag.stores.qdrant_server import QdrantServerStore, parse_url
from m2rag.stores.retry import Patience

MANIFEST = Manifest("fake:8", 8, "2025-01-01T00:00:00+00:00", "0.1.0")
SCHEMA = Schema(
    (VectorSpec("doc", 8), VectorSpec("passages", 8, multi=True, searched=False)),
    {"id": "keyword", "n_tokens": "integer"},
    sparse=("lexical",),
)
NEW = (MANIFEST, SCHEMA)
KEY = "s3cr3t-key"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds, patience of two seconds."""
    monkeypatch.setattr(module, "Patience", lambda: Patience(seconds=2.0, first_pause=0.005, longest_pause=0.02))
    monkeypatch.delenv("QDRANT_API_KEY", raising=False)


@pytest.fixture
def url(double: QdrantTestServer) -> str:
    return f"{double.url}/docs"


@pytest.fixture
def store(url: str) -> Iterator[VectorStore]:
    opened = open_store(url, create=NEW)
    yield opened
    opened.close()


@pytest.fixture
def plain(double: QdrantTestServer) -> Iterator[QdrantClient]:
    client = QdrantClient(double.url, check_compatibility=False)
    yield client
    client.close()


def point(i: int, **payload: object) -> Point:
    return Point(UUID(int=i), {"doc": np.eye(8, dtype=np.float32)[i % 8]}, {"id": f"d{i}", "n_tokens": i, **payload})


def writes(double: QdrantTestServer) -> list[str]:
    return [asked for asked in double.requests if re.match(r"PUT .*/points\?|POST .*/points/delete", asked)]


# URLs


@pytest.mark.parametrize(
    ("url", "server", "prefix", "collection", "shown"),
    [
        ("http://localhost", "http://localhost", "", "m2rag", "http://localhost/m2rag"),
        ("http://localhost:6333/docs", "http://localhost:6333", "", "docs", "http://localhost:6333/docs"),
        ("https://a.b.cloud:6333/docs/", "https://a.b.cloud:6333", "", "docs", "https://a.b.cloud:6333/docs"),
        ("https://host/qdrant/eu/docs", "https://host", "qdrant/eu", "docs", "https://host/qdrant/eu/docs"),
        ("HTTP://[::1]:6333/x", "http://[::1]:6333", "", "x", "http://[::1]:6333/x"),
    ],
)
def test_urls(url: str, server: str, prefix: str, collection: str, shown: str) -> None:
    place = parse_url(url)
    assert (*place, place.url) == (server, prefix, collection, shown)


@pytest.mark.parametrize(
    "url",
    [
        f"https://{KEY}@host/docs",
        f"https://user:{KEY}@host/docs",
        f"https://host/docs?api_key={KEY}",
        f"https://host/docs#{KEY}",
    ],
)
def test_a_key_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidInputError, match="QDRANT_API_KEY") as caught:
        open_store(url)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("url", ["http://", "http:///docs", "http://host:notaport/docs", "http://host:99999/x"])
def test_malformed_urls(url: str) -> None:
    with pytest.raises(InvalidInputError, match="Qdrant server|of the form"):
        open_store(url)


# Opening and creating


def test_it_is_a_vector_store(store: VectorStore, url: str) -> None:
    assert isinstance(store, VectorStore) and isinstance(store, QdrantServerStore)
    assert store.location == url and store.manifest == MANIFEST and store.size_bytes() is None


def test_the_collection_is_what_the_schema_says(store: VectorStore, plain: QdrantClient) -> None:
    info = plain.get_collection("docs")
    assert info.config.metadata["m2rag"]["fingerprint"] == "fake:8"
    vectors = info.config.params.vectors
    assert vectors["doc"].size == 8 and vectors["doc"].distance == models.Distance.COSINE
    assert vectors["passages"].multivector_config.comparator == models.MultiVectorComparator.MAX_SIM
    assert vectors["passages"].hnsw_config.m == 0 and vectors["passages"].datatype == models.Datatype.FLOAT16
    assert info.config.params.sparse_vectors["lexical"].modifier == models.Modifier.IDF
    assert set(info.payload_schema) == {"id", "n_tokens"}


def test_nothing_there(url: str) -> None:
    with pytest.raises(IndexNotFoundError, match=f"there is no index at {url}"):
        open_store(url)


def test_a_collection_of_others_is_left_alone(url: str, plain: QdrantClient) -> None:
    plain.create_collection("docs", vectors_config=models.VectorParams(size=8, distance=models.Distance.DOT))
    plain.upsert("docs", [models.PointStruct(id=1, vector=[1.0] * 8)])
    with pytest.raises(StoreError, match="not made by m2rag, or the server is older than Qdrant 1.16"):
        open_store(url, create=NEW)
    assert plain.count("docs").count == 1


def test_metadata_of_others_is_no_obstacle(store: VectorStore, url: str, plain: QdrantClient) -> None:
    plain.update_collection("docs", metadata={"team": "search"})
    again = open_store(url)
    assert again.manifest == MANIFEST
    again.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99, "m2rag_version": "9.9"}, r"format 99, written by m2rag 9.9.*upgrade"),
        ({"dimension": "many"}, "damaged"),
        ({"dimension": 9}, r"vector 'doc' .* has 8 dimensions and its metadata says 9"),
    ],
)
def test_bad_metadata(store: VectorStore, url: str, plain: QdrantClient, change: dict[str, Any], message: str) -> None:
    stored = plain.get_collection("docs").config.metadata["m2rag"]
    plain.update_collection("docs", metadata={"m2rag": {**stored, **change}})
    with pytest.raises(StoreError, match=message):
        open_store(url)


def test_field_indexes_that_are_missing_are_made(store: VectorStore, url: str, double: QdrantTestServer) -> None:
    """A kill between creating the collection and its field indexes leaves this."""
    double.collections["docs"].fields.clear()
    again = open_store(url)
    again.upsert([point(1)])
    assert again.values("id") == {"d1": 1} and set(double.collections["docs"].fields) == {"id", "n_tokens"}
    again.close()


def test_two_create_at_once(url: str, double: QdrantTestServer) -> None:
    """Both see that there is no collection, both create it: the second is told, and opens what the first made."""
    meeting = threading.Barrier(2, timeout=20)

    def before(route: str) -> None:
        if route == "PUT /collections/docs":
            meeting.wait()

    double.before = before
    stores: list[VectorStore] = []

    def open_it() -> None:
        stores.append(open_store(url, create=NEW))

    threads = [threading.Thread(target=open_it) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [store.manifest for store in stores] == [MANIFEST, MANIFEST]
    for store in stores:
        store.close()


def test_the_answer_to_creating_is_lost(url: str, double: QdrantTestServer) -> None:
    double.fail(1, "PUT /collections/docs", status=0, done_first=True)
    store = open_store(url, create=NEW)
    assert store.manifest == MANIFEST
    store.close()


# Another model's collection


def test_made_anew_with_another_model_while_it_is_open(store: VectorStore, url: str, plain: QdrantClient) -> None:
    store.upsert([point(1)])
    plain.delete_collection("docs")
    other = open_store(url, create=(replace(MANIFEST, fingerprint="other:8"), SCHEMA))
    for call in (
        lambda: store.upsert([point(2)]),
        lambda: store.query("doc", np.ones(8, dtype=np.float32), limit=1),
        lambda: store.delete([UUID(int=1)]),
    ):
        with pytest.raises(IndexMismatchError) as caught:
            call()
        assert "other:8" in caught.value.stored and "fake:8" in caught.value.given and url in str(caught.value)
    assert other.count() == 0
    other.close()


def test_made_anew_with_the_same_model_it_is_used(store: VectorStore, url: str, plain: QdrantClient) -> None:
    plain.delete_collection("docs")
    open_store(url, create=(replace(MANIFEST, created="2026-01-01T00:00:00+00:00"), SCHEMA)).close()
    store.upsert([point(2)])
    assert store.count() == 1


def test_deleted_while_it_is_open(store: VectorStore, plain: QdrantClient) -> None:
    plain.delete_collection("docs")
    with pytest.raises(StoreError, match="gone: its collection was deleted"):
        store.upsert([point(1)])
    with pytest.raises(IndexNotFoundError):
        store.count()


# Writing


def test_every_write_waits_for_the_acknowledgement(store: VectorStore, double: QdrantTestServer) -> None:
    store.upsert([point(i) for i in range(3)])
    store.upsert([point(9)], insert_only=True)
    store.delete([UUID(int=1)])
    assert len(writes(double)) == 3 and all("wait=true" in asked for asked in writes(double))


def test_requests_stay_small(store: VectorStore, double: QdrantTestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REQUEST_BYTES", 100_000)
    rng = np.random.default_rng(0)
    texts = ["x" * 30_000, "ö" * 20_000, "y" * 150_000, "z" * 10, "\U0001f600" * 5_000]
    points = []
    for i, text in enumerate(texts * 4):
        passages = rng.normal(size=(40, 8)).astype(np.float32)
        sparse = {"lexical": SparseVector(np.arange(300), rng.random(300, dtype=np.float32))}
        points.append(Point(UUID(int=i), {"doc": passages[0], "passages": passages}, {"text": text}, sparse=sparse))
    before = len(double.requests)
    store.upsert(points)
    sizes = [
        size for asked, size in zip(double.requests[before:], double.sizes[before:], strict=True) if "points?" in asked
    ]
    assert store.count() == 20
    assert [size for size in sizes if size > 105_000] == [size for size in sizes if size > 150_000]
    assert sum(size > 150_000 for size in sizes) == 4, "a point too large for a request goes alone"
    assert len(sizes) < len(points), "points that fit together go together"


def test_a_point_larger_than_a_request(
    store: VectorStore, double: QdrantTestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REQUEST_BYTES", 10_000)
    monkeypatch.setattr(module, "MAX_POINT_BYTES", 50_000)
    with pytest.raises(PointTooLargeError, match=r"takes 0\.1 MB .* at most 0\.1: split") as caught:
        store.upsert([point(1), point(2, text="x" * 60_000), point(3)])
    assert caught.value.ids == {UUID(int=2)} and not double.sizes or max(double.sizes) < 50_000
    store.upsert([point(1), point(3), point(4, text="x" * 40_000)])
    assert store.count() == 3


@pytest.mark.parametrize("answer", [{"status": 413}, {"status": 400, "said": "JSON payload is larger than allowed"}])
def test_a_server_that_takes_less(store: VectorStore, double: QdrantTestServer, answer: dict[str, Any]) -> None:
    double.fail(1, "PUT .*/points", **answer)
    with pytest.raises(PointTooLargeError, match="refused to upsert") as caught:
        store.upsert([point(2)])
    assert caught.value.ids == {UUID(int=2)}


def test_passages_are_sent_short_and_come_back_right(store: VectorStore, double: QdrantTestServer) -> None:
    passages = np.random.default_rng(3).normal(size=(500, 8)).astype(np.float32)
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    store.upsert([Point(UUID(int=1), {"doc": passages[0], "passages": passages}, {})])
    assert double.sizes[-1] < 500 * 8 * 11
    found = store.retrieve([UUID(int=1)], vectors=("passages",))[UUID(int=1)].vectors["passages"]
    np.testing.assert_allclose(found, passages, atol=5e-4)


# When the server does not answer


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 0])
@pytest.mark.parametrize("done_first", [False, True])
def test_writes_survive_a_bad_moment(
    store: VectorStore, double: QdrantTestServer, status: int, done_first: bool
) -> None:
    double.fail(2, "PUT .*/points", status=status, done_first=done_first)
    store.upsert([point(i) for i in range(3)], insert_only=True)
    assert store.count() == 3 and len(writes(double)) == 3


@pytest.mark.parametrize("route", ["GET .*", "POST .*/points/query", "POST .*/points/count", "POST .*/facet"])
def test_reads_survive_a_bad_moment(store: VectorStore, double: QdrantTestServer, route: str) -> None:
    store.upsert([point(1)])
    double.fail(2, route, status=503)
    assert [found.id.int for found in store.query("doc", np.ones(8, dtype=np.float32), limit=1)] == [1]
    assert store.values("id") == {"d1": 1}


def test_a_server_that_restarts(store: VectorStore, double: QdrantTestServer, caplog: pytest.LogCaptureFixture) -> None:
    double.stop()
    threading.Timer(0.3, double.start).start()
    store.upsert([point(1)])
    assert store.count() == 1
    assert any("Try 2 in" in message for message in caplog.messages)


def test_a_server_that_does_not_come_back(store: VectorStore, double: QdrantTestServer) -> None:
    double.stop()
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"cannot be reached.*tries for 2 s.*Nothing of this call counts as done"):
        store.upsert([point(1)])
    assert time.monotonic() - started < 10
    double.start()
    assert store.count() == 0
    store.upsert([point(1)])
    assert store.count() == 1


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it, and it refuses
        where = f"http://127.0.0.1:{taken.getsockname()[1]}/docs"
        with pytest.raises(StoreError, match=f"{where} cannot be reached"):
            open_store(where, create=NEW)


def test_a_server_may_say_how_long_to_wait(double: QdrantTestServer, url: str) -> None:
    slept: list[float] = []
    patience = Patience(seconds=60, sleep=slept.append, clock=lambda: sum(slept))
    client = QdrantClient(double.url, check_compatibility=False)
    store = QdrantServerStore(client, "docs", create=NEW, patience=patience)
    double.fail(2, "PUT .*/points", status=429, retry_after=7)
    store.upsert([point(1)])
    assert slept == [7, 7] and store.count() == 1
    client.close()


@pytest.mark.parametrize("status", [400, 422])
def test_a_refusal_is_not_repeated(store: VectorStore, double: QdrantTestServer, status: int) -> None:
    double.fail(1, "PUT .*/points", status=status)
    with pytest.raises(StoreError, match=f"refused to upsert: {status} as the test ordered"):
        store.upsert([point(1)])
    assert len(writes(double)) == 1


def test_some_other_web_server(url: str, double: QdrantTestServer) -> None:
    double.fail(1, "GET .*", status=200)
    with pytest.raises(StoreError, match="cannot be read"):
        open_store(url)


def test_first_contact_is_less_patient(double: QdrantTestServer) -> None:
    slept: list[float] = []
    patience = Patience(seconds=3600, sleep=slept.append, clock=lambda: sum(slept))
    double.stop()
    client = QdrantClient(double.url, check_compatibility=False)
    with pytest.raises(StoreError, match="cannot be reached"):
        QdrantServerStore(client, "docs", create=NEW, patience=patience)
    assert sum(slept) <= 10
    client.close()


# Over gRPC


class GrpcError(grpc.RpcError):
    """As gRPC clients raise them."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__()
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return f"told over gRPC: {self._code.name}"


class GrpcLike:
    """A client that fails as one with `prefer_grpc` does, `times` times at `method`."""

    def __init__(self, client: QdrantClient, method: str, code: grpc.StatusCode, times: int = 10**6) -> None:
        self._client, self._method, self._code, self.times = client, method, code, times

    def __getattr__(self, name: str) -> Any:
        if name == self._method and self.times > 0:
            self.times -= 1
            raise GrpcError(self._code)
        return getattr(self._client, name)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL"])
def test_bad_moments_over_grpc(store: VectorStore, plain: QdrantClient, code: str) -> None:
    failing = GrpcLike(plain, "upsert", grpc.StatusCode[code], times=2)
    over_grpc = QdrantServerStore(failing, "docs")
    over_grpc.upsert([point(1)])
    assert store.count() == 1 and failing.times == 0


@pytest.mark.parametrize(
    ("method", "code", "message"),
    [
        ("get_collection", "UNAUTHENTICATED", "refuses access.*UNAUTHENTICATED.*QDRANT_API_KEY"),
        ("get_collection", "PERMISSION_DENIED", "refuses access"),
        ("get_collection", "NOT_FOUND", "there is no index at docs"),
        ("get_collection", "INVALID_ARGUMENT", "refused to get_collection: 400 told over gRPC"),
        ("get_collection", "UNAVAILABLE", "cannot be reached"),
    ],
)
def test_refusals_over_grpc(plain: QdrantClient, method: str, code: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        QdrantServerStore(GrpcLike(plain, method, grpc.StatusCode[code]), "docs")


# The key


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_the_key_is_needed_and_never_shown(
    double: QdrantTestServer, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    double.api_key = KEY
    shown: list[str] = []
    for wrong in (None, KEY[::-1]):
        with pytest.raises(StoreError, match=r"refuses access \(401.*QDRANT_API_KEY") as caught:
            open_store(url, create=NEW, api_key=wrong)
        shown.append(str(caught.value))
    store = open_store(url, create=NEW, api_key=KEY)
    shown += [repr(store), str(store.manifest), store.location]
    store.upsert([point(1)])
    double.fail(1, "PUT .*", status=400)
    with pytest.raises(StoreError) as refused:
        store.upsert([point(1)])
    shown.append(str(refused.value))
    store.close()
    monkeypatch.setenv("QDRANT_API_KEY", KEY)
    from_environment = open_store(url)
    assert from_environment.count() == 1
    from_environment.close()
    monkeypatch.setenv("QDRANT_API_KEY", f"{KEY}\n")  # as read from a file
    open_store(url).close()
    for broken in (f"{KEY}\n{KEY}", f"{KEY}é"):
        with pytest.raises(InvalidInputError, match="characters that no key has") as malformed:
            open_store(url, api_key=broken)
        shown.append(str(malformed.value))
    shown += caplog.messages  # of everybody; below, httpcore's own debug messages repeat a header it cannot send
    caplog.clear()
    own = QdrantClient(double.url, api_key=f"{KEY}\n{KEY}", check_compatibility=False)
    with pytest.raises(StoreError, match="no request can be sent") as unsent:
        QdrantServerStore(own, "docs")
    own.close()
    shown.append(str(unsent.value))
    shown += [record.getMessage() for record in caplog.records if record.name.startswith("m2rag")]
    assert KEY not in "\n".join(shown) and KEY[::-1] not in "\n".join(shown)
