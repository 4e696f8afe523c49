"""The store beside Qdrant Edge: the same calls, the same answers; and what only MongoDB has."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from conftest import Doc, quick
from pymongo import MongoClient
from pymongo.database import Database
from support.atlas_front import AtlasFront
from support.fake_time import FakeTime
from support.store_cases import DIMENSION, FILTERS, RANGES, assert_same, metadata, unit

from m2rag.errors import (
    IndexMismatchError,
    IndexNotFoundError,
    InvalidInputError,
    PointTooLargeError,
    StoreError,
)
from m2rag.stores import EdgeStore, Manifest, Point, Range, Schema, SparseVector, TextStore, VectorSpec, VectorStore
from m2rag.stores.retry import Patience
from m2rag_mongodb import (
    DefinitionMismatchError,
    IndexNotReadyError,
    MongoStore,
    SearchUnavailableError,
    StoreOptions,
    layout,
    parts,
    store,
)
from m2rag_mongodb.server import Blocking

MANIFEST = Manifest("fake:16", DIMENSION, "2025-01-01T00:00:00+00:00", "0.1.0", model="fake")
RANGED = ("number", "float", "kind", "nothing", "absent")
SCHEMA = Schema(
    (VectorSpec("doc", DIMENSION), VectorSpec("passages", DIMENSION, multi=True, searched=False)),
    {"id": "keyword", "n_tokens": "integer"},
    filterable={("metadata", name): "float" for name in RANGED},
)
NEW = (MANIFEST, SCHEMA)


def made(i: int, **payload: Any) -> Point:
    own = {**metadata(i), "$dollar": {"": i}}
    given = {"id": f"d{i}", "n_tokens": i % 7, "text": f"Größe {i} \U0001f600\0\n" * 3, "metadata": own, **payload}
    return Point(UUID(int=i), {"doc": unit(), "passages": unit(1 + i % 3)}, given)


POINTS = [made(i) for i in range(40)]
Pair = tuple[VectorStore, VectorStore]


def opened(database: Database[Doc], name: str = "docs", **options: Any) -> MongoStore:
    return MongoStore(Blocking(database), name, **{"create": NEW, "patience": quick(), **options})


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, mongodb: MongoClient[Doc]) -> Iterator[Pair]:
    edge = EdgeStore(tmp_path_factory.mktemp("congruence") / "edge", create=NEW)
    name = f"m2rag_test_{uuid4().hex[:16]}"
    yield edge, opened(mongodb[name])
    edge.close()
    mongodb.drop_database(name)


@pytest.fixture
def both(pair: Pair) -> Pair:
    for one in pair:
        one.delete([UUID(int=i) for i in range(100)])
        assert one.count() == 0
    return pair


@pytest.fixture
def filled(both: Pair) -> Pair:
    for one in both:
        one.upsert(POINTS)
        one.optimize()
    return both


def on_both(stores: Pair, call: Callable[[VectorStore], Any]) -> Any:
    """The answer of both, which must be the same; an error is an answer by its type."""
    answers = []
    for one in stores:
        try:
            answers.append(call(one))
        except (StoreError, InvalidInputError) as error:
            answers.append(type(error))
    assert_same(*answers, score_atol=1e-6, vector_atol={"doc": 1e-3, "passages": 1e-3})
    return answers[1]


# As Qdrant Edge


def test_it_is_a_store(pair: Pair) -> None:
    assert isinstance(pair[1], VectorStore) and isinstance(pair[1], TextStore)
    assert not isinstance(pair[0], TextStore)
    assert on_both(pair, lambda one: one.manifest) == MANIFEST


def test_an_empty_collection(both: Pair) -> None:
    assert on_both(both, lambda one: one.values("id")) == {}
    assert on_both(both, lambda one: one.query("doc", unit(), limit=3)) == []
    assert on_both(both, lambda one: one.retrieve([uuid4()], payload=("id",))) == {}
    for one in both:
        one.flush()
        one.optimize()


def test_count_and_values(filled: Pair) -> None:
    assert on_both(filled, lambda one: one.count()) == 40
    assert on_both(filled, lambda one: one.values("n_tokens")) == {i: 6 if i < 5 else 5 for i in range(7)}
    assert len(on_both(filled, lambda one: one.values("id"))) == 40


def test_similarities(filled: Pair) -> None:
    """As Edge has them, on a vector and on the best row of a matrix."""
    asked, ids = unit(), [*(point.id for point in POINTS[:20]), uuid4()]
    for name in ("doc", "passages"):
        edge, ours = (one.similarities(name, 3 * asked, ids) for one in filled)
        assert ours == pytest.approx(edge, abs=1e-3)
        assert ours == pytest.approx({p.id: float((p.vectors[name] @ asked).max()) for p in POINTS[:20]}, abs=1e-3)


@pytest.mark.parametrize("payload", [(), ("id",), ("id", "metadata", "text")])
@pytest.mark.parametrize("vectors", [(), ("doc",), ("doc", "passages")])
def test_retrieve(filled: Pair, payload: tuple[str, ...], vectors: tuple[str, ...]) -> None:
    ids = [POINTS[7].id, uuid4(), POINTS[2].id]
    found = on_both(filled, lambda one: one.retrieve(ids, payload=payload, vectors=vectors))
    assert set(found) == {POINTS[7].id, POINTS[2].id}
    assert found[POINTS[7].id].payload == {name: POINTS[7].payload[name] for name in payload}
    assert on_both(filled, lambda one: one.retrieve([])) == {}


def test_query(filled: Pair) -> None:
    for limit in (1, 5, 100):
        query = 3 * unit()
        found = on_both(filled, lambda one, q=query, n=limit: one.query("doc", q, limit=n, payload=("id", "metadata")))
        cosines = {point.id: float(point.vectors["doc"] @ query) / 3 for point in POINTS}
        assert [point.id for point in found] == sorted(cosines, key=lambda id: -cosines[id])[:limit]


@pytest.mark.parametrize(
    ("field", "value", "n"),
    [*FILTERS, *RANGES],
)
def test_filters(filled: Pair, field: str, value: Any, n: int) -> None:
    where = {("metadata", field): value}
    found = on_both(filled, lambda one: one.query("doc", POINTS[0].vectors["doc"], limit=99, filter=where))
    assert len(found) == n


def test_filters_with_unusual_names_and_several(filled: Pair) -> None:
    def ask(where: dict[tuple[str, ...], Any]) -> Any:
        return on_both(filled, lambda one: one.query("doc", POINTS[0].vectors["doc"], limit=99, filter=where))

    assert [point.id for point in ask({("metadata", "a.b", "c d"): 5})] == [POINTS[5].id]
    assert [point.id for point in ask({("id",): "d6"})] == [POINTS[6].id]
    assert len(ask({("metadata", "flag"): True, ("metadata", "number"): 2})) == 10


def test_ranges_need_a_field_that_the_search_index_knows(
    database: Database[Doc], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ("metadata", "number")
    where = {path: Range(gte=2, lt=3)}
    one = opened(database, create=(MANIFEST, replace(SCHEMA, filterable={})))
    one.upsert(POINTS)
    one.optimize()
    with pytest.raises(InvalidInputError, match=r"make_filterable\('number'"):
        one.query("doc", unit(), limit=99, filter=where)

    def refused(*args: Any, **more: Any) -> None:
        raise StoreError("refused")

    with monkeypatch.context() as patched:
        patched.setattr("m2rag_mongodb.store.make_index", refused)
        with pytest.raises(StoreError, match="refused"):
            one.make_filterable(path, "integer")
    assert one.filterable() == {}, "what failed is not taken for done"
    for _ in range(2):
        one.make_filterable(path, "integer")
        assert one.filterable() == {path: "any"}
        assert len(one.query("doc", unit(), limit=99, filter=where)) == 10
        one = opened(database)
    for name in ("a.b", "$dollar"):
        with pytest.raises(InvalidInputError, match="cannot index the field"):
            one.make_filterable(("metadata", name), "integer")
    with pytest.raises(InvalidInputError, match="cannot compare dates"):
        one.query("doc", unit(), limit=1, filter={path: Range(gte=datetime.now(timezone.utc))})


def test_writes(filled: Pair) -> None:
    old = Point(POINTS[3].id, {"doc": unit()}, {"id": "changed"})
    new = Point(UUID(int=98), {"doc": unit()}, {"id": "new"})
    on_both(filled, lambda one: one.upsert([old, new], insert_only=True))
    ids = [old.id, new.id]
    found = on_both(filled, lambda one: one.retrieve(ids, payload=("id",), vectors=("doc",)))
    assert found[old.id].payload == {"id": "d3"} and found[new.id].payload == {"id": "new"}
    on_both(filled, lambda one: one.upsert([replace(old, payload={"id": "new", "n_tokens": 99})]))
    found = on_both(filled, lambda one: one.retrieve(ids, payload=("id", "text"), vectors=("doc", "passages")))
    assert found[old.id].payload == {"id": "new"} and set(found[old.id].vectors) == {"doc"}
    twice = [Point(UUID(int=97), {"doc": unit()}, {"id": name}) for name in ("first", "second")]
    on_both(filled, lambda one: one.upsert(twice))
    assert on_both(filled, lambda one: one.retrieve([UUID(int=97)], payload=("id",)))[UUID(int=97)].payload == {
        "id": "second"
    }
    on_both(filled, lambda one: one.delete([POINTS[0].id, uuid4()]))
    on_both(filled, lambda one: one.delete([]))
    on_both(filled, lambda one: one.upsert([]))
    assert on_both(filled, lambda one: one.count()) == 41
    there = on_both(filled, lambda one: {id: n for id, n in one.values("id").items() if n})
    assert "d0" not in there and "d0" not in filled[1].values("id")


@pytest.mark.parametrize("bad", [np.ones(5), np.full(DIMENSION, np.nan), np.full(DIMENSION, np.inf)])
@pytest.mark.parametrize("name", ["doc", "passages"])
def test_a_bad_vector_writes_nothing(both: Pair, bad: np.ndarray, name: str) -> None:
    vector = bad.astype(np.float32) if name == "doc" else np.stack([bad, bad]).astype(np.float32)
    broken = Point(UUID(int=99), {"doc": unit(), name: vector}, {})
    assert on_both(both, lambda one: one.upsert([POINTS[0], broken])) is StoreError
    assert on_both(both, lambda one: one.count()) == 0


def test_closed(database: Database[Doc]) -> None:
    one = opened(database)
    one.close()
    one.close()
    for call in (
        one.count,
        one.flush,
        one.optimize,
        one.wait_until_ready,
        lambda: one.upsert([POINTS[0]]),
        lambda: one.delete([POINTS[0].id]),
        lambda: one.query("doc", unit(), limit=1),
        lambda: one.retrieve([POINTS[0].id]),
        lambda: one.values("id"),
    ):
        with pytest.raises(StoreError, match=rf"the index at {database.name}.docs is closed"):
            call()


# Creating and opening


def test_opened_again(database: Database[Doc]) -> None:
    with pytest.raises(IndexNotFoundError, match=f"no index at {database.name}.docs"):
        opened(database, create=None)
    first = opened(database)
    first.upsert(POINTS[:3])
    again = opened(database, create=None)
    assert (again.manifest, again.count(), again.options) == (
        *(MANIFEST, 3, StoreOptions(filter_fields=tuple(f"metadata.{name}" for name in RANGED))),
    )
    assert repr(again) == f"MongoStore('{database.name}.docs')"
    other = opened(database, create=(replace(MANIFEST, fingerprint="other"), SCHEMA))
    assert other.manifest == MANIFEST, "what is there is opened, and it says of which model it is"


def test_a_collection_of_others(database: Database[Doc]) -> None:
    database["docs"].insert_one({"text": "mine"})
    for create in (NEW, None):
        with pytest.raises(StoreError, match="was not made by m2rag"):
            opened(database, create=create)
    assert database["docs"].count_documents({}) == 1


@pytest.mark.parametrize("change", [{"format": 99}, {"fingerprint": None, "dimension": "x"}])
def test_a_record_that_cannot_be_used(database: Database[Doc], change: Doc) -> None:
    opened(database)
    database["docs"].update_one({"_id": "m2rag"}, {"$set": {f"manifest.{key}": value for key, value in change.items()}})
    with pytest.raises(StoreError, match="upgrade m2rag|is damaged"):
        opened(database)
    database["docs"].update_one({"_id": "m2rag"}, {"$unset": {"vectors": 1}, "$set": {"manifest": {}}})
    with pytest.raises(StoreError, match="is damaged"):
        opened(database)


def test_two_create_at_once(front: AtlasFront) -> None:
    client: MongoClient[Doc] = MongoClient(front.uri)
    stores: list[MongoStore] = []
    threads = [threading.Thread(target=lambda: stores.append(opened(client["m2rag_own"]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [one.manifest for one in stores] == [MANIFEST] * 4
    client.close()


def test_what_is_missing_is_made_when_it_is_opened(front: AtlasFront) -> None:
    """Killed between the record and the indexes; or someone dropped them."""
    client: MongoClient[Doc] = MongoClient(front.uri)
    database = client["m2rag_own"]
    opened(database).upsert(POINTS[:3])
    database["docs"].drop_search_index("m2rag_doc")
    database["docs"].drop_indexes()
    one = opened(database, create=None)
    assert len(one.query("doc", unit(), limit=9)) == 3
    assert {"id_1", "n_tokens_1"} <= set(database["docs"].index_information())
    database["docs"].drop_search_index("m2rag_doc")
    with pytest.raises(StoreError, match="'m2rag_doc' of m2rag_own.docs is gone: open the index again"):
        one.query("doc", unit(), limit=9)
    client.close()


def test_a_search_index_of_another_dimension(front: AtlasFront) -> None:
    client: MongoClient[Doc] = MongoClient(front.uri)
    database = client["m2rag_own"]
    opened(database)
    definition = {"fields": [{"type": "vector", "path": "doc", "numDimensions": 8, "similarity": "cosine"}]}
    database["docs"].update_search_index("m2rag_doc", definition)
    with pytest.raises(DefinitionMismatchError, match="numDimensions is 8, not 16"):
        opened(database)
    client.close()


@pytest.mark.parametrize(
    ("schema", "options", "said"),
    [
        (Schema((VectorSpec("p", 16, multi=True),)), {}, "one vector a document"),
        (Schema((VectorSpec("doc", 12),)), {"vectors": "packed_bit"}, "multiple of 8"),
        (Schema((VectorSpec("doc", 16),)), {"vectors": "half"}, "not 'half'"),
        (Schema((VectorSpec("doc", 16, quantization="scalar"),)), {"vectors": "int8"}, "quantization is for float32"),
    ],
)
def test_what_mongodb_cannot(database: Database[Doc], schema: Schema, options: Doc, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        opened(database, create=(MANIFEST, schema), options=StoreOptions(**options))
    assert database.list_collection_names() == []


def test_sparse_vectors_are_left_out_openly(database: Database[Doc]) -> None:
    """The manifest says so, and an index makes none."""
    words = replace(MANIFEST, lexical="english")
    one = opened(database, create=(words, replace(SCHEMA, sparse=("lexical",))))
    assert one.manifest.lexical is None
    sparse = SparseVector(np.array([1]), np.ones(1, dtype=np.float32))
    one.upsert([replace(POINTS[0], sparse={"lexical": sparse})])
    with pytest.raises(StoreError, match="MongoDB has none"):
        one.query("lexical", sparse, limit=1)


# Another model's collection


def test_made_anew_while_it_is_open(database: Database[Doc]) -> None:
    one = opened(database)
    one.upsert([POINTS[0]])
    database["docs"].drop()
    other = opened(database, create=(replace(MANIFEST, fingerprint="other:16"), SCHEMA))
    for call in (
        lambda: one.upsert([POINTS[1]]),
        lambda: one.query("doc", unit(), limit=1),
        lambda: one.delete([POINTS[0].id]),
    ):
        with pytest.raises(IndexMismatchError) as caught:
            call()
        assert "other:16" in caught.value.stored and "fake:16" in caught.value.given
    assert other.count() == 0
    database["docs"].drop()
    with pytest.raises(StoreError, match="gone: its collection was deleted"):
        one.upsert([POINTS[1]])


# Documents that are too large for one piece


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "INLINE_BYTES", 20_000)
    monkeypatch.setattr(layout, "PART_BYTES", 9_000)


def test_large_documents_are_kept_in_parts(database: Database[Doc], small_pieces: None) -> None:
    one = opened(database)
    large = [made(i, text=f"{i} " * 20_000, starts=list(range(3000))) for i in range(3)]
    one.upsert([*large, POINTS[5]])
    assert database["docs.parts"].count_documents({}) > 12
    fields = ("id", "text", "starts", "metadata")
    for _ in range(2):
        found = one.retrieve([point.id for point in large], payload=fields, vectors=("doc", "passages"))
        for point in large:
            assert found[point.id].payload == {name: point.payload[name] for name in fields}
            np.testing.assert_allclose(found[point.id].vectors["passages"], point.vectors["passages"], atol=1e-3)
        assert one.retrieve([large[0].id], payload=("id",))[large[0].id].payload == {"id": "d0"}
        one.upsert(large)  # again: nothing twice
    n_parts = database["docs.parts"].count_documents({})
    hits = one.query("doc", large[1].vectors["doc"], limit=1, payload=("id", "text"))
    assert hits[0].payload["text"] == large[1].payload["text"]

    one.upsert([made(0, text="now short")])
    one.upsert([made(1, text="longer " * 20_000)], insert_only=True)  # is there: left alone
    assert database["docs.parts"].count_documents({"point": str(large[0].id)}) == 0
    assert database["docs.parts"].count_documents({}) < n_parts
    found = one.retrieve([point.id for point in large], payload=("text",))
    assert [found[UUID(int=i)].payload["text"][:4] for i in range(3)] == ["now ", "1 1 ", "2 2 "]
    one.delete([point.id for point in large])
    assert database["docs.parts"].count_documents({}) == 0 and one.count() == 1


def test_killed_between_the_parts_and_the_document(
    front: AtlasFront, small_pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every moment the document is whole, in its old form or its new, and nothing is left over in the end."""
    client: MongoClient[Doc] = MongoClient(front.uri)
    database = client["m2rag_own"]
    one = opened(database)
    old, new = made(1, text="old " * 20_000), made(1, text="new " * 20_000)
    one.upsert([old])
    seen: list[bool] = []
    for commands_that_go_well in range(50):
        front.faults.clear()
        front.fail(99, "update|delete", code=121, after=commands_that_go_well)
        try:
            one.upsert([new])
        except StoreError:
            found = one.retrieve([old.id], payload=("text",))[old.id].payload["text"]
            seen.append(found == new.payload["text"])
            assert seen[-1] or found == old.payload["text"]
            continue
        break
    assert seen == sorted(seen) and {True, False} <= set(seen), "there is a moment before it and one after"
    assert one.retrieve([old.id], payload=("text",))[old.id].payload["text"] == new.payload["text"]
    front.faults.clear()
    [named] = database["docs"].distinct("m2rag.outside.revision")
    assert database["docs.parts"].distinct("revision", {"named": True}) == [named], "the old form's were left over"
    monkeypatch.setattr(parts, "ABANDONED_AFTER", timedelta(0))
    one.optimize()
    assert database["docs.parts"].distinct("revision") == [named], "those of tries that failed were left over"
    assert one.retrieve([old.id], payload=("text",))[old.id].payload["text"] == new.payload["text"]
    client.close()


def test_replaced_while_it_is_read(database: Database[Doc], small_pieces: None) -> None:
    """A reader finds the old form or the new one, whole."""
    writer, reader = opened(database), opened(database)
    forms = [made(1, text=f"{form} " * 20_000) for form in range(2)]
    writer.upsert(forms[:1])
    over = threading.Event()

    def write() -> None:
        for i in range(40):
            writer.upsert([forms[i % 2]])
        over.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while not over.is_set():
        seen.add(reader.retrieve([forms[0].id], payload=("text",))[forms[0].id].payload["text"])
    thread.join()
    assert seen <= {form.payload["text"] for form in forms} and seen


def test_parts_that_are_lost_are_told(database: Database[Doc], small_pieces: None) -> None:
    one = opened(database)
    one.upsert([made(1, text="t" * 50_000)])
    database["docs.parts"].delete_one({"n": 2})
    with pytest.raises(StoreError, match="1 documents of .* lack parts"):
        one.retrieve([UUID(int=1)], payload=("text",))
    assert one.retrieve([UUID(int=1)], payload=("id",))[UUID(int=1)].payload == {"id": "d1"}


def test_two_replace_the_same_documents_at_once(database: Database[Doc], small_pieces: None) -> None:
    """Whoever is last: the document is whole."""
    forms = {name: [made(i, text=f"{name} " * 10_000) for i in range(4)] for name in ("one", "two")}
    stores = {name: opened(database) for name in forms}
    stores["one"].upsert(forms["one"])

    def replace_all(name: str) -> None:
        for _ in range(8):
            stores[name].upsert(forms[name])

    threads = [threading.Thread(target=replace_all, args=(name,)) for name in forms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = stores["one"].retrieve([UUID(int=i) for i in range(4)], payload=("text",))
    assert [point.payload["text"] in {f"{name} " * 10_000 for name in forms} for point in found.values()] == [True] * 4


def test_abandoned_parts_are_swept_up_after_a_day(database: Database[Doc], small_pieces: None) -> None:
    one = opened(database)
    one.upsert([made(1, text="t" * 50_000)])
    one.upsert([made(2, text="t" * 50_000)])
    # Killed between the document and the note that it names its parts, long ago:
    long_ago = datetime.now(timezone.utc) - timedelta(days=9)
    database["docs.parts"].update_many({}, {"$set": {"named": False, "written": long_ago}})
    for name, days in (("fresh", 0.5), ("old", 2.0)):
        written = datetime.now(timezone.utc) - timedelta(days=days)
        part = {"point": str(UUID(int=1)), "revision": name, "n": 0, "data": b"", "written": written, "named": False}
        database["docs.parts"].insert_one({"_id": name, **part})
    one.optimize()
    assert {part["_id"] for part in database["docs.parts"].find({"data": b""})} == {"fresh"}
    for point in one.retrieve([UUID(int=1), UUID(int=2)], payload=("text",)).values():
        assert point.payload["text"] == "t" * 50_000


def test_parts_of_a_dropped_collection_go_with_the_next_of_its_name(
    database: Database[Doc], small_pieces: None
) -> None:
    opened(database).upsert([made(1, text="t" * 50_000)])
    database["docs"].drop()
    assert database["docs.parts"].count_documents({}) > 0
    assert opened(database).count() == 0 == database["docs.parts"].count_documents({})


def test_a_server_without_search_is_left_as_it_is(mongod: int) -> None:
    client: MongoClient[Doc] = MongoClient("127.0.0.1", mongod, directConnection=True)
    with pytest.raises(SearchUnavailableError, match="m2rag_bare.docs has no vector search"):
        opened(client["m2rag_bare"])
    assert client["m2rag_bare"].list_collection_names() == []
    client.close()


def test_a_document_of_twenty_megabytes(database: Database[Doc]) -> None:
    """Beyond what MongoDB takes in one piece, for real."""
    one = opened(database)
    text = "0123456789abcdef" * 1_300_000
    one.upsert([made(1, text=text), POINTS[2]], insert_only=True)
    found = one.retrieve([UUID(int=1)], payload=("text",))[UUID(int=1)].payload["text"]
    assert len(found) == 20_800_000 and found == text
    assert [point.id.int for point in one.query("doc", unit(), limit=9)] != [] and one.count() == 2


def test_metadata_that_is_too_large_is_refused_by_id_and_nothing_is_written(database: Database[Doc]) -> None:
    one = opened(database)
    with pytest.raises(PointTooLargeError, match="13.0 MB") as caught:
        one.upsert([POINTS[2], made(1, metadata={"abstract": "a" * 13_000_000})])
    assert caught.value.ids == {UUID(int=1)} and one.count() == 0


# Vectors of other kinds


@pytest.mark.parametrize("kind", ["int8", "packed_bit"])
def test_coarse_vectors_find_and_floats_order(database: Database[Doc], kind: Any) -> None:
    one = opened(database, options=StoreOptions(vectors=kind))
    one.upsert(POINTS)
    one.optimize()
    stored = database["docs"].find_one({"_id": str(POINTS[0].id)})
    assert stored is not None and len(stored["doc"]) == 2 + (16 if kind == "int8" else 2)
    agreed = 0
    for seed in range(10):
        query = np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32)
        found = one.query("doc", query, limit=5, payload=("id",))
        cosines = {point.id: float(point.vectors["doc"] @ query / np.linalg.norm(query)) for point in POINTS}
        assert [point.score for point in found] == pytest.approx([cosines[point.id] for point in found], abs=2e-3)
        assert [point.score for point in found] == sorted((point.score for point in found), reverse=True)
        agreed += len({point.id for point in found} & set(sorted(cosines, key=lambda id: -cosines[id])[:5]))
    assert agreed >= (50 if kind == "int8" else 45)  # of 50; the index looks at half of the documents
    again = opened(database, create=None)
    assert again.options.vectors == kind
    np.testing.assert_allclose(
        again.retrieve([POINTS[0].id], vectors=("doc",))[POINTS[0].id].vectors["doc"],
        POINTS[0].vectors["doc"],
        atol=1e-3,
    )


@pytest.mark.parametrize("quantization", ["scalar", "binary"])
def test_quantization_is_the_servers(database: Database[Doc], quantization: Any) -> None:
    spec = VectorSpec("doc", DIMENSION, quantization=quantization)
    opened(database, create=(MANIFEST, replace(SCHEMA, vectors=(spec, SCHEMA.vectors[1]))))
    [index] = database["docs"].list_search_indexes()
    assert index["latestDefinition"]["fields"][0]["quantization"] == quantization


# Searches


@pytest.fixture
def own(front: AtlasFront) -> Iterator[MongoClient[Doc]]:
    client: MongoClient[Doc] = MongoClient(front.uri, serverSelectionTimeoutMS=500)
    yield client
    client.close()


def stages(front: AtlasFront) -> list[Doc]:
    """Every `$vectorSearch` from now on."""
    seen: list[Doc] = []

    def watch(name: str, command: Doc) -> None:
        if name == "aggregate" and "$vectorSearch" in command["pipeline"][0]:
            seen.append(command["pipeline"][0]["$vectorSearch"])

    front.before = watch
    return seen


def test_exact_or_through_the_graph(front: AtlasFront, own: MongoClient[Doc], monkeypatch: pytest.MonkeyPatch) -> None:
    one = opened(own["m2rag_own"])
    one.upsert(POINTS)
    asked = stages(front)
    one.query("doc", unit(), limit=3)
    monkeypatch.setattr(store, "EXACT_UP_TO", 10)
    for limit, exact in ((3, None), (30, None), (900, None), (3, True), (3, False), (20_000, None)):
        assert len(one.nearest("doc", unit(), limit=limit, exact=exact)) == min(limit, 40)
    assert [stage.get("exact") for stage in asked] == [True, None, None, None, True, None, True]
    assert [stage.get("numCandidates") for stage in asked] == [None, 100, 600, 10_000, None, 100, None]


def test_a_condition_in_mongodbs_own_language(database: Database[Doc]) -> None:
    one = opened(database, options=StoreOptions(filter_fields=("metadata.number", "metadata.kind")))
    one.upsert(POINTS)
    one.optimize()
    where = {"metadata.number": {"$gte": 2}, "metadata.kind": {"$in": [".k0", ".k1"]}}
    found = one.nearest("doc", unit(), limit=99, where=where, filter={("metadata", "flag"): True})
    expected = {point.id for i, point in enumerate(POINTS) if i % 4 >= 2 and i % 3 < 2 and i % 2 == 0}
    assert {point.id for point in found} == expected and expected
    with pytest.raises(StoreError, match="refused to aggregate"):
        one.nearest("doc", unit(), limit=1, where={"metadata.flag": True})


def test_vectors_that_are_not_searched(pair: Pair) -> None:
    with pytest.raises(StoreError, match="no vector 'passages' that is searched"):
        pair[1].query("passages", unit(), limit=1)
    with pytest.raises(StoreError, match=r"shape \(3,\) does not fit"):
        pair[1].query("doc", np.ones(3, dtype=np.float32), limit=1)


def test_an_index_that_is_being_built_is_waited_for_and_then_told(front: AtlasFront, own: MongoClient[Doc]) -> None:
    """Never the answer "nothing": that is what the server would say."""
    for is_error in (False, True):
        front.building_is_an_error = is_error
        front.hold = True
        time = FakeTime()
        patient = Patience(clock=time.clock, sleep=time.sleep)
        one = opened(own["m2rag_own"], f"docs{is_error}", patience=patient, ready_seconds=30.0)
        one.upsert(POINTS)
        with pytest.raises(IndexNotReadyError, match="'m2rag_doc' of m2rag_own.docs.* BUILDING"):
            one.query("doc", unit(), limit=3)
        assert 20 < sum(time.waits) <= 30
        front.hold = False
        assert len(one.query("doc", unit(), limit=3)) == 3


def test_waiting_for_an_index_ends_when_it_is_built(front: AtlasFront, own: MongoClient[Doc]) -> None:
    front.build_seconds = 0.6
    one = opened(own["m2rag_own"])
    one.upsert(POINTS)
    assert len(one.query("doc", unit(), limit=3)) == 3
    one.wait_until_ready(timeout=5)


def test_an_index_made_anew_while_it_is_open(front: AtlasFront, own: MongoClient[Doc]) -> None:
    one = opened(own["m2rag_own"])
    one.upsert(POINTS)
    assert len(one.query("doc", unit(), limit=3)) == 3
    own["m2rag_own"]["docs"].drop_search_index("m2rag_doc")
    front.build_seconds = 0.3
    opened(own["m2rag_own"])
    assert len(one.query("doc", unit(), limit=3)) == 3, "it was not ready, and the answer was not taken for one"


def test_an_upload_ends_when_searches_find_it(
    front: AtlasFront, own: MongoClient[Doc], caplog: pytest.LogCaptureFixture
) -> None:
    one = opened(own["m2rag_own"])
    one.upsert(POINTS[:10])
    one.optimize()
    front.freeze()
    one.upsert(POINTS[10:])
    threading.Timer(0.3, lambda: setattr(front, "frozen", None)).start()
    one.optimize()
    assert len(one.query("doc", unit(), limit=99)) == 40
    assert caplog.messages == []


def test_an_upload_that_searches_do_not_find_in_time_is_logged(
    front: AtlasFront, own: MongoClient[Doc], caplog: pytest.LogCaptureFixture
) -> None:
    time = FakeTime()
    one = opened(own["m2rag_own"], patience=Patience(clock=time.clock, sleep=time.sleep), ready_seconds=20.0)
    front.freeze()
    one.upsert(POINTS)
    one.optimize()
    assert "all is stored, but searches do not find all of it yet: the search index is behind" in caplog.text
    assert 15 < sum(time.waits) < 25
    caplog.clear()
    one.upsert(POINTS[:5], insert_only=True)  # were there: nothing to wait for
    one.optimize()
    one.optimize()
    assert caplog.messages == []
    front.hold = True
    held = opened(own["m2rag_own"], "held", patience=Patience(clock=time.clock, sleep=time.sleep), ready_seconds=20.0)
    held.upsert(POINTS)
    held.optimize()
    assert "it is BUILDING" in caplog.text


# When the server does not answer


@pytest.mark.parametrize("code", [0, 91, 189, 11600, 16500])
@pytest.mark.parametrize("done_first", [False, True])
def test_writes_survive_a_bad_moment(front: AtlasFront, own: MongoClient[Doc], code: int, done_first: bool) -> None:
    one = opened(own["m2rag_own"])
    front.fail(2, "insert|update", code=code, done_first=done_first)
    one.upsert(POINTS[:3], insert_only=True)
    front.fail(2, "delete", code=code, done_first=done_first)
    one.delete([POINTS[0].id])
    assert one.count() == 2


@pytest.mark.parametrize("command", ["find", "aggregate"])
def test_reads_survive_a_bad_moment(front: AtlasFront, own: MongoClient[Doc], command: str) -> None:
    one = opened(own["m2rag_own"])
    one.upsert(POINTS[:3])
    front.fail(3, command, code=11600)
    assert len(one.query("doc", unit(), limit=3)) == 3 and len(one.values("id")) == 3


def test_a_server_that_does_not_come_back(
    front: AtlasFront, own: MongoClient[Doc], caplog: pytest.LogCaptureFixture
) -> None:
    one = opened(own["m2rag_own"], patience=quick(1.0))
    front.stop()
    with pytest.raises(StoreError, match=r"cannot be reached.*tries for 1 s.*Nothing of this call counts") as caught:
        one.upsert([POINTS[1]])
    assert "Topology" not in str(caught.value) and "Try 2 in" in caplog.text
    front.start()
    one.upsert([POINTS[1]])
    assert one.count() == 1


def test_first_contact_is_less_patient(front: AtlasFront) -> None:
    time = FakeTime()
    front.stop()
    client: MongoClient[Doc] = MongoClient(front.uri, serverSelectionTimeoutMS=50)
    with pytest.raises(StoreError, match="cannot be reached"):
        opened(client["m2rag_own"], patience=Patience(3600, clock=time.clock, sleep=time.sleep, first_pause=4))
    assert sum(time.waits) <= 10
    client.close()


@pytest.mark.parametrize(
    ("code", "said"), [(18, "refuses access"), (8000, "refuses access"), (13, "refuses access"), (121, "refused to")]
)
def test_a_refusal_is_not_repeated(front: AtlasFront, own: MongoClient[Doc], code: int, said: str) -> None:
    one = opened(own["m2rag_own"])
    before = front.commands.count("insert")
    front.fail(1, "insert", code=code, text="bad auth")
    with pytest.raises(StoreError, match=f"{said}.*bad auth"):
        one.upsert(POINTS[:1], insert_only=True)
    assert front.commands.count("insert") == before + 1


def test_errors_hold_no_documents(front: AtlasFront, own: MongoClient[Doc], caplog: pytest.LogCaptureFixture) -> None:
    """The driver's error for a bulk write lists what was to be written."""
    caplog.set_level(logging.INFO, "m2rag")
    database = own["m2rag_own"]
    one = opened(database)
    database["docs"].create_index("title", unique=True)
    points = [made(i, title="same", text="confidential") for i in range(2)]
    with pytest.raises(StoreError, match=r"refused to write 0{8}-.*: 11000 .*E11000") as caught:
        one.upsert(points)
    assert "confidential" not in str(caught.value) + caplog.text and caught.value.__cause__ is None
