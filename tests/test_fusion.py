"""Scores of different kinds in one range."""

from __future__ import annotations

import pytest

from m2rag.fusion import scale


def test_from_the_last_to_the_best() -> None:
    scaled = scale([12.0, 9.0, 4.0])
    assert [scaled(score) for score in (12.0, 8.0, 4.0)] == [1.0, 0.5, 0.0]
    assert scaled(2.0) == 0.0 and scaled(16.0) == 1.5, "worse than the last is no worse; better than the best is"


def test_from_a_floor() -> None:
    scaled = scale([12.0, 9.0], 0)
    assert [scaled(score) for score in (12.0, 9.0, 0.0)] == [1.0, 0.75, 0.0]


def test_near_scores_stay_near() -> None:
    scaled = scale([0.5, 0.45], least=0.2)
    assert scaled(0.5) == 1.0 and scaled(0.45) == pytest.approx(0.75)


def test_equal_scores_and_none() -> None:
    assert scale([3.0, 3.0])(3.0) == 1.0
    assert scale([0.3], least=0.2)(0.3) == 1.0
    assert scale([])(1.0) == 0.0
