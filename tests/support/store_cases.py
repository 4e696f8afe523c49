"""Points, filters and the comparison of answers for tests that hold two stores side by side."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

from m2rag.stores import OneOf, Point, Range

DIMENSION = 16
RNG = np.random.default_rng(0)


def day(i: int) -> datetime:
    """Day `i` of a year, in UTC."""
    return datetime(2020, 1, 1, tzinfo=timezone.utc) + timedelta(days=i)


FILTERS = [
    ("number", 3, 10),
    ("number", 3.0, 10),
    ("number", "3", 0),
    ("number", True, 0),
    ("float", 2.5, 1),
    ("float", 3, 1),
    ("flag", True, 20),
    ("flag", False, 20),
    ("flag", 1, 0),
    ("kind", ".k1", 13),
    ("tags", "t4", 8),
    ("tags", "all", 40),
    ("large", 2**60 + 7, 1),
    ("nothing", "None", 0),
    ("absent", 1, 0),
    ("kind", OneOf((".k1", ".k2")), 26),
    ("kind", OneOf((".k9",)), 0),
    ("tags", OneOf(("t4", "t0")), 16),
    ("number", OneOf((1, 3.0)), 20),
    ("number", OneOf((1, "3", True)), 10),
    ("flag", OneOf((True, False)), 40),
    ("float", OneOf((2.5, 3)), 2),
]
"""A field of `metadata`, what it must be, and of how many of 40 points it is."""

RANGES = [
    ("number", Range(gte=2), 20),
    ("number", Range(gt=2), 10),
    ("number", Range(lt=0), 0),
    ("float", Range(gte=2.5, lt=4), 3),
    ("float", Range(gt=2.5, lte=4), 3),
    ("kind", Range(gte=0), 0),
    ("nothing", Range(gte=0), 0),
    ("absent", Range(gte=0), 0),
]
"""The same for numbers within bounds."""

DATES = [
    ("date", Range(gte=day(5), lt=day(8)), 3),
    ("date", Range(gt=day(5), lte=day(8)), 3),
    ("date", Range(gte=day(5) + timedelta(hours=1), lt=day(6) + timedelta(seconds=1)), 1),
    ("kind", Range(gte=day(1)), 0),
    ("number", Range(gte=day(1)), 0),
]
"""And for dates."""


def unit(*shape: int) -> np.ndarray:
    """Random vectors (..., D) of length 1."""
    vectors = RNG.normal(size=(*shape, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def metadata(i: int) -> dict[str, Any]:
    """What point `i` carries: values of every kind, names that need quoting."""
    return {
        "number": i % 4,
        "float": i / 2,
        "flag": i % 2 == 0,
        "kind": f".k{i % 3}",
        "tags": [f"t{i % 5}", "all"],
        "a.b": {"c d": i},
        "large": 2**60 + i,
        "nothing": None,
        "date": day(i).strftime("%Y-%m-%d" if i % 2 else "%Y-%m-%dT%H:%M:%S+00:00"),
    }


def assert_same(one: Any, other: Any, *, score_atol: float, vector_atol: Mapping[str, float]) -> None:
    """Two stores' answers to one call are the same; scores, and vectors by name, within a distance."""
    assert type(one) is type(other)
    if isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs, score_atol=score_atol, vector_atol=vector_atol)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, mine in one.items():
            assert_same(mine, other[key], score_atol=score_atol, vector_atol=vector_atol)
    elif isinstance(one, Point):
        assert (one.id, one.payload) == (other.id, other.payload)
        assert one.score == pytest.approx(other.score, abs=score_atol)
        assert one.vectors.keys() == other.vectors.keys()
        for name, vector in one.vectors.items():
            assert vector.dtype == other.vectors[name].dtype == np.float32
            np.testing.assert_allclose(vector, other.vectors[name], atol=vector_atol[name])
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=score_atol)
    else:
        assert one == other
