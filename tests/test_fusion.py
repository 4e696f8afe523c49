"""Reciprocal rank fusion against its formula."""

from __future__ import annotations

import pytest

from m2rag.fusion import fuse


def test_by_the_formula() -> None:
    assert fuse([["a", "b", "c"], ["c", "d"]], (1, 1)) == pytest.approx(
        {"c": 1 / 63 + 1 / 61, "a": 1 / 61, "b": 1 / 62, "d": 1 / 62}
    )
    assert list(fuse([["a", "b", "c"], ["c", "d"]], (1, 1))) == ["c", "a", "b", "d"]
    assert list(fuse([["a", "b"], ["b", "a"]], (1, 2))) == ["b", "a"]
    assert fuse([[], []], (1, 1)) == {}


def test_every_ranking_has_a_weight() -> None:
    with pytest.raises(ValueError):
        fuse([["a"], ["b"]], (1,))
