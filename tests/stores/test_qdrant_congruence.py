"""Every operation of the store protocol on Qdrant Edge and on a server: the same calls, the same answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import numpy as np
import pytest
from qdrant_client import QdrantClient
from support.qdrant_fixtures import new_collection
from support.store_cases import DATES, DIMENSION, FILTERS, RANGES, RNG, assert_same, metadata, unit

from m2rag.errors import IndexNotFoundError, InvalidInputError, StoreError
from m2rag.stores import Manifest, Point, Schema, SparseVector, VectorSpec, VectorStore, open_store

MANIFEST = Manifest("fake:16", DIMENSION, "2025-01-01T00:00:00+00:00", "0.1.0", model="fake", lexical="english")
SCHEMA = Schema(
    (
        VectorSpec("doc", DIMENSION),
        VectorSpec("small", DIMENSION, quantization="scalar"),
        VectorSpec("passages", DIMENSION, multi=True, searched=False),
    ),
    {"id": "keyword", "n_tokens": "integer"},
    sparse=("lexical",),
)
Pair: TypeAlias = "tuple[VectorStore, VectorStore]"


def points(n: int) -> list[Point]:
    made = []
    for i in range(n):
        words = np.sort(RNG.choice(50, size=5, replace=False))
        made.append(
            Point(
                UUID(int=i),
                {"doc": unit(), "small": unit(), "passages": unit(1 + i % 3)},
                {"id": f"d{i}", "n_tokens": i % 7, "text": f"Größe {i} \U0001f600\n" * 3, "metadata": metadata(i)},
                sparse={"lexical": SparseVector(words, RNG.random(5, dtype=np.float32))},
            )
        )
    return made


POINTS = points(40)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, qdrant_url: str, qdrant: QdrantClient) -> Iterator[Pair]:
    """One pair for most tests: creating an Edge shard waits for the disk several times."""
    with new_collection(qdrant) as name:
        edge = open_store(tmp_path_factory.mktemp("congruence") / "edge", create=(MANIFEST, SCHEMA))
        server = open_store(f"{qdrant_url}/{name}", create=(MANIFEST, SCHEMA))
        yield edge, server
        edge.close()
        server.close()


@pytest.fixture
def both(pair: Pair) -> Pair:
    """Two stores without points."""
    for store in pair:
        store.delete([UUID(int=i) for i in range(100)])
        assert store.count() == 0
    return pair


@pytest.fixture
def filled(both: Pair) -> Pair:
    """Two stores with `POINTS`."""
    for store in both:
        store.upsert(POINTS)
    return both


@pytest.fixture
def own(tmp_path: Path, collection_url: str) -> Iterator[Pair]:
    """A pair of the test's own, to open and close."""
    edge, server = (open_store(place, create=(MANIFEST, SCHEMA)) for place in (tmp_path / "edge", collection_url))
    yield edge, server
    edge.close()
    server.close()


def on_both(stores: Pair, call: Callable[[VectorStore], Any]) -> Any:
    """The answer of both, which must be the same; an error is an answer by its type and text."""
    answers = []
    for store in stores:
        try:
            answers.append(call(store))
        except (StoreError, InvalidInputError) as error:
            answers.append((type(error), str(error).replace(store.location, "HERE")))
    edge, server = answers
    assert_answers(edge, server)
    return edge


def assert_answers(edge: Any, server: Any) -> None:
    # Passages are kept in 16 bits: a number in the middle between two may be rounded to either.
    assert_same(edge, server, score_atol=1e-4, vector_atol={"doc": 1e-6, "small": 1e-6, "passages": 5e-4})


def test_a_new_collection_opened_again(own: Pair) -> None:
    places = [store.location for store in own]
    for _ in range(2):
        assert on_both(own, lambda store: store.manifest) == MANIFEST
        assert on_both(own, lambda store: store.count()) == 0
        assert on_both(own, lambda store: store.values("id")) == {}
        assert on_both(own, lambda store: store.query("doc", unit(), limit=3)) == []
        assert on_both(own, lambda store: store.retrieve([uuid4()], payload=("id",))) == {}
        for store in own:
            store.close()
        own = (open_store(places[0]), open_store(places[1]))
    for store in own:
        store.upsert(POINTS[:3])
    assert on_both(own, lambda store: store.count()) == 3
    for store in own:
        store.close()


def test_what_is_not_there(tmp_path: Path, collection_url: str) -> None:
    for place in (str(tmp_path / "none"), collection_url):
        with pytest.raises(IndexNotFoundError, match="there is no index at"):
            open_store(place)


def test_count_and_values(filled: Pair) -> None:
    assert on_both(filled, lambda store: store.count()) == 40
    assert on_both(filled, lambda store: store.values("n_tokens")) == {i: 6 if i < 5 else 5 for i in range(7)}
    assert len(on_both(filled, lambda store: store.values("id"))) == 40


@pytest.mark.parametrize("payload", [(), ("id",), ("id", "metadata", "text")])
@pytest.mark.parametrize("vectors", [(), ("doc",), ("doc", "passages")])
def test_retrieve(filled: Pair, payload: tuple[str, ...], vectors: tuple[str, ...]) -> None:
    ids = [POINTS[7].id, uuid4(), POINTS[2].id]
    found = on_both(filled, lambda store: store.retrieve(ids, payload=payload, vectors=vectors))
    assert set(found) == {POINTS[7].id, POINTS[2].id}
    seven = found[POINTS[7].id]
    assert seven.payload == {name: POINTS[7].payload[name] for name in payload}
    assert set(seven.vectors) == set(vectors)
    for name in vectors:
        np.testing.assert_allclose(seven.vectors[name], POINTS[7].vectors[name], atol=1e-3)
    assert on_both(filled, lambda store: store.retrieve([])) == {}


def test_query(filled: Pair) -> None:
    for limit in (1, 5, 100):
        query = 3 * unit()
        found = on_both(filled, lambda store, q=query, n=limit: store.query("doc", q, limit=n, payload=("id",)))
        cosines = {point.id: float(point.vectors["doc"] @ query) / 3 for point in POINTS}
        assert [point.id for point in found] == sorted(cosines, key=lambda id: -cosines[id])[:limit]
        assert all(point.score == pytest.approx(cosines[point.id], abs=1e-5) for point in found)
    asked = unit()
    on_both(filled, lambda store: store.query("small", asked, limit=7))
    on_both(filled, lambda store: store.query("passages", asked[None, :], limit=7))


def test_query_by_sparse_vector(filled: Pair) -> None:
    words = POINTS[11].sparse["lexical"].indices[:3]
    asked = SparseVector(words, np.ones(3, dtype=np.float32))
    found = on_both(filled, lambda store: store.query("lexical", asked, limit=40))
    sharing = {point.id for point in POINTS if set(point.sparse["lexical"].indices) & set(words)}
    assert {point.id for point in found} == sharing and len(sharing) < 40
    nothing = SparseVector(np.array([999]), np.ones(1, dtype=np.float32))
    assert on_both(filled, lambda store: store.query("lexical", nothing, limit=40)) == []


def test_similarities(filled: Pair) -> None:
    """A vector's cosine, a matrix's best row; points that lack the vector or are not there are left out."""
    asked = unit()
    bare = Point(UUID(int=50), {"doc": unit()}, {"id": "bare"})
    on_both(filled, lambda store: store.upsert([bare]))
    ids = [POINTS[3].id, POINTS[1].id, bare.id, UUID(int=99)]
    for name, there in (("doc", [POINTS[3], POINTS[1], bare]), ("passages", [POINTS[3], POINTS[1]])):
        found = on_both(filled, lambda store, name=name: store.similarities(name, 3 * asked, ids))
        assert found == pytest.approx({p.id: float((p.vectors[name] @ asked).max()) for p in there}, abs=1e-3)
    assert on_both(filled, lambda store: store.similarities("doc", asked, [])) == {}


@pytest.mark.parametrize(
    ("field", "value", "n"),
    [*FILTERS, *RANGES, *DATES],
)
def test_filters(filled: Pair, field: str, value: Any, n: int) -> None:
    where = {("metadata", field): value}
    found = on_both(filled, lambda store: store.query("doc", POINTS[0].vectors["doc"], limit=99, filter=where))
    assert len(found) == n


def test_filters_with_unusual_names_and_several(filled: Pair) -> None:
    def ask(where: dict[tuple[str, ...], Any]) -> Any:
        return on_both(filled, lambda store: store.query("doc", POINTS[0].vectors["doc"], limit=99, filter=where))

    assert [point.id for point in ask({("metadata", "a.b", "c d"): 5})] == [POINTS[5].id]
    assert len(ask({("metadata", "flag"): True, ("metadata", "number"): 2})) == 10
    assert ask({("metadata", 'a"b'): 5})[0] is InvalidInputError


FIELDS: dict[str, Any] = {"number": "integer", "float": "float", "flag": "bool", "kind": "keyword", "date": "datetime"}


def test_fields_that_filters_are_fast_on(own: Pair) -> None:
    """With an index a field is filtered as without; it is made once, and kept."""
    for store in own:
        store.upsert(POINTS)
    for _ in range(2):
        for name, kind in FIELDS.items():
            on_both(own, lambda store, p=("metadata", name), k=kind: store.make_filterable(p, k))
        found = on_both(own, lambda store: store.filterable())
        assert found == {("metadata", name): kind for name, kind in FIELDS.items()}
        for store in own:
            store.optimize()
        for field, value, n in [*FILTERS, *RANGES, *DATES]:
            where = {("metadata", field): value}
            hits = on_both(own, lambda store, w=where: store.query("doc", POINTS[0].vectors["doc"], limit=99, filter=w))
            assert len(hits) == n, (field, value)
        places = [store.location for store in own]
        for store in own:
            store.close()
        own = (open_store(places[0]), open_store(places[1]))
    for store in own:
        store.close()


def test_a_field_gets_an_index_of_another_kind(own: Pair) -> None:
    path = ("metadata", "a.b")
    for kind in ("keyword", "float"):
        on_both(own, lambda store, k=kind: store.make_filterable(path, k))
        assert on_both(own, lambda store: store.filterable()) == {path: kind}
    assert on_both(own, lambda store: store.make_filterable(("metadata", 'a"b'), "bool"))[0] is InvalidInputError


def test_upsert_replaces_whole_points(filled: Pair) -> None:
    new = Point(POINTS[3].id, {"doc": unit()}, {"id": "new", "n_tokens": 99})
    on_both(filled, lambda store: store.upsert([new]))
    found = on_both(filled, lambda store: store.retrieve([new.id], payload=("id", "text"), vectors=("doc", "passages")))
    assert found[new.id].payload == {"id": "new"} and set(found[new.id].vectors) == {"doc"}
    assert on_both(filled, lambda store: store.count()) == 40
    assert 99 in on_both(filled, lambda store: store.values("n_tokens"))


def test_insert_only_leaves_what_is_there(filled: Pair) -> None:
    old = Point(POINTS[3].id, {"doc": unit()}, {"id": "changed"})
    new = Point(UUID(int=98), {"doc": unit()}, {"id": "new"})
    on_both(filled, lambda store: store.upsert([old, new], insert_only=True))
    found = on_both(filled, lambda store: store.retrieve([old.id, new.id], payload=("id",), vectors=("doc",)))
    assert found[old.id].payload == {"id": "d3"} and found[new.id].payload == {"id": "new"}


def test_the_same_id_twice_in_a_call(both: Pair) -> None:
    twice = [Point(UUID(int=97), {"doc": unit()}, {"id": name}) for name in ("first", "second")]
    on_both(both, lambda store: store.upsert(twice))
    found = on_both(both, lambda store: store.retrieve([UUID(int=97)], payload=("id",)))
    assert found[UUID(int=97)].payload == {"id": "second"}


def test_delete(filled: Pair) -> None:
    on_both(filled, lambda store: store.delete([POINTS[0].id, uuid4()]))
    on_both(filled, lambda store: store.delete([]))
    on_both(filled, lambda store: store.upsert([]))
    assert on_both(filled, lambda store: store.count()) == 39
    assert "d0" not in on_both(filled, lambda store: store.values("id"))


@pytest.mark.parametrize("bad", [np.ones(5), np.full(DIMENSION, np.nan), np.full(DIMENSION, np.inf)])
@pytest.mark.parametrize("name", ["doc", "passages"])
def test_a_bad_vector_writes_nothing(both: Pair, bad: np.ndarray, name: str) -> None:
    vector = bad.astype(np.float32) if name == "doc" else np.stack([bad, bad]).astype(np.float32)
    broken = Point(UUID(int=99), {"doc": unit(), name: vector}, {})
    kind, _ = on_both(both, lambda store: store.upsert([POINTS[0], broken]))
    assert kind is StoreError
    assert on_both(both, lambda store: store.count()) == 0


def test_maintenance_changes_nothing(filled: Pair) -> None:
    before = on_both(filled, lambda store: store.query("doc", POINTS[0].vectors["doc"], limit=40))
    for store in filled:
        store.flush()
        store.optimize(live=True)
        store.optimize()
    assert_answers(before, on_both(filled, lambda store: store.query("doc", POINTS[0].vectors["doc"], limit=40)))


def test_closed(own: Pair) -> None:
    for store in own:
        store.close()
        store.close()
    calls: list[Callable[[VectorStore], Any]] = [
        lambda store: store.count(),
        lambda store: store.upsert([POINTS[0]]),
        lambda store: store.delete([POINTS[0].id]),
        lambda store: store.query("doc", unit(), limit=1),
        lambda store: store.similarities("doc", unit(), [POINTS[0].id]),
        lambda store: store.retrieve([POINTS[0].id]),
        lambda store: store.values("id"),
        lambda store: store.flush(),
        lambda store: store.optimize(),
        lambda store: store.optimize(live=True),
        lambda store: store.filterable(),
        lambda store: store.make_filterable(("metadata", "number"), "integer"),
    ]
    for call in calls:
        assert on_both(own, call) == (StoreError, "the index at HERE is closed")
