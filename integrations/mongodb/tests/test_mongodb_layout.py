"""Vectors and documents as BSON, without a server."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import bson
import numpy as np
import pytest
from bson.binary import BinaryVectorDtype

from m2rag.errors import InvalidInputError, PointTooLargeError, StoreError
from m2rag.stores import OneOf, Point, Range, VectorSpec
from m2rag_mongodb import UnstorableError, from_bindata, layout, to_bindata
from m2rag_mongodb.layout import Packed, filter_token, pack, put_together, stored_vector, to_filter, tokens

SPECS = {"doc": VectorSpec("doc", 16), "passages": VectorSpec("passages", 16, multi=True, searched=False)}
FIELDS = ("metadata", "id")


def vector(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*shape, 16)).astype(np.float32)


def point(seed: int = 0, n_passages: int = 3, **payload: Any) -> Point:
    vectors = {"doc": vector(seed), "passages": vector(seed + 1, n_passages)}
    return Point(UUID(int=seed), vectors, {"id": f"d{seed}", "title": "T", "metadata": {}, "text": "Text", **payload})


def packed(*points: Point, kind: Any = "float32") -> list[Packed]:
    return pack(points, SPECS, kind, FIELDS, mark="write=1", generation="g", location="db.docs")


# Vectors


def test_float32_is_kept_to_the_bit() -> None:
    numbers = vector(0)
    stored = to_bindata(numbers)
    assert (stored.subtype, len(stored)) == (9, 2 + 4 * 16) and stored.as_vector().dtype == BinaryVectorDtype.FLOAT32
    np.testing.assert_array_equal(from_bindata(stored), numbers)
    assert from_bindata(stored).dtype == np.float32


def test_int8_keeps_the_direction() -> None:
    numbers = vector(1) * 0.01
    stored = to_bindata(numbers, "int8")
    found = from_bindata(stored)
    assert len(stored) == 2 + 16 and np.abs(found).max() == 127
    assert found @ numbers / np.linalg.norm(found) / np.linalg.norm(numbers) > 0.9999
    np.testing.assert_array_equal(from_bindata(to_bindata(np.zeros(16), "int8")), np.zeros(16))


def test_packed_bits_are_signs() -> None:
    """Of every sign pattern, those above 127 too."""
    for seed in range(20):
        numbers = vector(seed)
        stored = to_bindata(numbers, "packed_bit")
        assert len(stored) == 2 + 2
        np.testing.assert_array_equal(from_bindata(stored), numbers > 0)
    assert to_bindata(np.ones(8), "packed_bit")[2:] == b"\xff"


def test_vectors_that_cannot_be() -> None:
    with pytest.raises(InvalidInputError, match="multiple of 8 dimensions, not 15"):
        to_bindata(np.ones(15), "packed_bit")
    with pytest.raises(InvalidInputError, match="float32, int8, packed_bit, not 'half'"):
        to_bindata(np.ones(16), "half")  # type: ignore[arg-type]


# Filters


def test_a_filter_finds_what_has_its_value() -> None:
    metadata = {"n": 7, "f": 7.0, "half": 0.5, "flag": True, "tags": ["a", 1], "a.b": {"c d": "x"}, "none": None}
    held = set(tokens({"metadata": metadata, "id": "d", "text": "no"}, FIELDS))
    for path, value in [
        (("metadata", "n"), 7),
        (("metadata", "n"), 7.0),
        (("metadata", "f"), 7),
        (("metadata", "half"), 0.5),
        (("metadata", "flag"), True),
        (("metadata", "tags"), "a"),
        (("metadata", "tags"), 1),
        (("metadata", "a.b", "c d"), "x"),
        (("id",), "d"),
    ]:
        assert filter_token(path, value) in held, (path, value)
    for path, value in [
        (("metadata", "n"), "7"),
        (("metadata", "n"), True),
        (("metadata", "flag"), 1),
        (("metadata", "flag"), "true"),
        (("metadata", "none"), "None"),
        (("metadata", "a", "b"), "x"),
        (("metadata", "tags"), "b"),
    ]:
        assert filter_token(path, value) not in held, (path, value)
    assert len(held) == 8


def test_large_numbers_and_long_texts_are_told_apart() -> None:
    assert filter_token(("metadata", "n"), 2**60) != filter_token(("metadata", "n"), 2**60 + 1)
    long = [filter_token(("metadata", "s"), "x" * 10_000 + last) for last in "ab"]
    assert long[0] != long[1] and max(map(len, long)) < 100


def test_filters_as_the_server_takes_them() -> None:
    assert to_filter(None, FIELDS) == {}
    assert to_filter({("id",): "d"}, FIELDS) == {"m2rag.filters": {"$eq": '["id"]="d"'}}
    assert len(to_filter({("id",): "d", ("metadata", "n"): 1}, FIELDS)["$and"]) == 2
    some = to_filter({("id",): OneOf(("d", 1))}, FIELDS)
    assert some == {"m2rag.filters": {"$in": ['["id"]="d"', '["id"]=1']}}
    between = to_filter({("metadata", "n"): Range(gte=1, lt=2.5)}, FIELDS, ["metadata.n"])
    assert between == {"metadata.n": {"$gte": 1, "$lt": 2.5}}
    with pytest.raises(InvalidInputError, match=r"cannot filter by 'text': only by metadata, id"):
        to_filter({("text",): "d"}, FIELDS)


# Documents


@pytest.mark.parametrize("kind", ["float32", "int8", "packed_bit"])
def test_a_small_document_is_one_piece(kind: Any) -> None:
    given = point(metadata={"n": 1})
    [one] = packed(given, kind=kind)
    document = bson.decode(one.document.raw)
    assert one.parts == [] and (document["_id"], document["text"]) == (str(given.id), "Text")
    assert set(document["m2rag"]["filters"]) == {"write=1", '["metadata", "n"]=1', '["id"]="d0"'}
    exact = 0.0 if kind == "float32" else 2e-3
    for name in ("doc", "passages"):
        found = stored_vector(document, name, {})
        assert found is not None and found.dtype == np.float32
        np.testing.assert_allclose(found, given.vectors[name], atol=exact if name == "doc" else 2e-3, rtol=0)
    assert document["doc"] == to_bindata(given.vectors["doc"], kind)


def whole(one: Packed) -> tuple[dict[str, Any], dict[str, Any]]:
    document = bson.decode(one.document.raw)
    moved = put_together(one.parts, document["m2rag"]["outside"])
    assert moved is not None and document["m2rag"]["outside"]["fields"] == sorted(moved)
    return document, moved


def test_passages_leave_first_and_the_text_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "INLINE_BYTES", 20_000)
    monkeypatch.setattr(layout, "PART_BYTES", 7_000)
    starts = list(range(2_000))
    one, two = packed(
        point(1, n_passages=700, text="t" * 15_000, starts=[0]),
        point(2, n_passages=700, text="t" * 25_000, starts=starts),
    )
    document, moved = whole(one)
    assert set(moved) == {"m2rag.vectors.passages"} and document["text"] == "t" * 15_000
    document, moved = whole(two)
    assert set(moved) == {"m2rag.vectors.passages", "starts", "text"}
    assert moved["text"] == "t" * 25_000 and moved["starts"] == starts and "text" not in document
    np.testing.assert_allclose(stored_vector(document, "passages", moved), vector(3, 700), atol=2e-3)
    assert len(two.parts) > 5 and all(len(part["data"]) <= 7_000 for part in two.parts)
    assert {part["point"] for part in two.parts} == {two.id} and one.size <= 20_000 >= two.size
    assert put_together(two.parts[1:], document["m2rag"]["outside"]) is None
    assert put_together([*reversed(two.parts), *one.parts], document["m2rag"]["outside"]) == moved


def test_parts_are_of_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two writers of the same document none can remove what the other's document names."""
    monkeypatch.setattr(layout, "INLINE_BYTES", 20_000)
    one, same = (packed(point(1, text="a" * 30_000))[0] for _ in range(2))
    assert one.revision != same.revision and not {part["_id"] for part in one.parts} & {
        part["_id"] for part in same.parts
    }


def test_what_cannot_leave_is_refused_by_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "INLINE_BYTES", 20_000)
    with pytest.raises(PointTooLargeError, match=r"metadata take 0.0 MB.*at most 0 MB") as caught:
        packed(point(1), point(2, metadata={"abstract": "a" * 30_000}), point(3))
    assert caught.value.ids == {UUID(int=2)}


@pytest.mark.parametrize("metadata", [{"a\0b": 1}, {"a": 2**70}])
def test_what_is_beyond_bson_is_refused_by_id(metadata: dict[str, Any]) -> None:
    with pytest.raises(UnstorableError, match="cannot hold this document's metadata in db.docs") as caught:
        packed(point(1), point(2, metadata=metadata))
    assert caught.value.ids == {UUID(int=2)}


def test_metadata_that_is_nested_too_deep() -> None:
    deep: Any = 1
    for _ in range(120):
        deep = {"a": deep}
    with pytest.raises(UnstorableError, match="nested more than 90 levels") as caught:
        packed(point(1, metadata=deep))
    assert caught.value.ids == {UUID(int=1)}


def test_names_that_are_taken() -> None:
    with pytest.raises(StoreError, match=r"taken \(doc\)"):
        packed(point(1, doc="a payload"))
    with pytest.raises(StoreError, match=r"unknown vectors \(other\)"):
        packed(Point(UUID(int=1), {"other": vector(0)}, {}))
