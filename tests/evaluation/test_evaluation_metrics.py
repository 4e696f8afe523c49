"""Metrics against values worked out by hand, one reading of ties, and an interval that behaves like one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2rag.errors import NonFiniteError
from m2rag.evaluation import METRICS, bootstrap_interval, mean_metrics, score_run
from m2rag.evaluation.metrics import order


def run_of(*ids: str) -> dict[str, float]:
    return {document: 1.0 - place / 1000 for place, document in enumerate(ids)}


def test_values_by_hand() -> None:
    qrels = {"q": {"a": 2, "b": 1, "c": 0}}
    (values,) = score_run(qrels, {"q": run_of("c", "b", "x", "a")}).values()
    # TREC's gain is the grade itself, discounted by log2(rank + 1).
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    assert values["ndcg@10"] == pytest.approx((1 / math.log2(3) + 2 / math.log2(5)) / ideal)
    assert values["recall@10"] == 1
    assert values["recall@1"] == values["accuracy@1"] == 0
    assert values["mrr@10"] == 0.5
    assert set(values) == set(METRICS)


def test_first_of_two_relevant_documents() -> None:
    (values,) = score_run({"q": {"a": 1, "b": 1}}, {"q": run_of("a", "x", "b")}).values()
    assert (values["accuracy@1"], values["recall@1"], values["mrr@10"]) == (1, 0.5, 1)


def test_rank_eleven_counts_for_nothing() -> None:
    distractors = [f"x{i}" for i in range(10)]
    (values,) = score_run({"q": {"a": 1}}, {"q": run_of(*distractors, "a")}).values()
    assert set(values.values()) == {0.0}
    (values,) = score_run({"q": {"a": 1}}, {"q": run_of(*distractors[:9], "a")}).values()
    assert values["recall@10"] == 1 and values["mrr@10"] == pytest.approx(0.1)


def test_query_without_a_result_counts_as_zero() -> None:
    """A mean over the answered queries only would reward a system for staying silent."""
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}, "q3": {"a": 1}}
    per_query = score_run(qrels, {"q1": {"a": 1.0}, "q2": {}})
    assert mean_metrics(per_query)["ndcg@10"] == pytest.approx(1 / 3)


def test_equal_scores_have_one_reading() -> None:
    qrels = {"q": {"m": 1}}
    for ids in (["a", "m", "z"], ["z", "m", "a"], ["m", "z", "a"]):
        (values,) = score_run(qrels, {"q": dict.fromkeys(ids, 0.5)}).values()
        assert values["mrr@10"] == 0.5, "ascending ids: a, m, z"


def test_scores_equal_in_32_bits_keep_their_order() -> None:
    close = {"a": 0.7, "m": 0.7 + 1e-12}
    assert np.float32(close["a"]) == np.float32(close["m"])
    (values,) = score_run({"q": {"m": 1}}, {"q": close}).values()
    assert values["mrr@10"] == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_must_be_finite(bad: float) -> None:
    with pytest.raises(NonFiniteError, match="'b'"):
        score_run({"q": {"a": 1}}, {"q": {"a": 1.0, "b": bad}})


@given(st.dictionaries(st.text(min_size=1), st.floats(-5, 5), min_size=1), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_order_is_the_sort_of_pairs(scores: dict[str, float], k: int) -> None:
    expected = [document for _, document in sorted((-score, document) for document, score in scores.items())]
    assert order(scores) == expected
    assert order(dict(reversed(scores.items())), k) == expected[:k]


def test_interval_is_seeded_and_shrinks_with_more_queries() -> None:
    rng = np.random.default_rng(3)
    small, large = rng.random(50), rng.random(5000)
    assert bootstrap_interval(small, seed=1) == bootstrap_interval(small, seed=1)
    assert bootstrap_interval(small, seed=1) != bootstrap_interval(small, seed=2)
    (low, high), (low_large, high_large) = bootstrap_interval(small), bootstrap_interval(large)
    assert low < small.mean() < high
    assert high_large - low_large < (high - low) / 5
    # For a mean of many values the bootstrap agrees with the normal interval.
    half = 1.96 * large.std() / math.sqrt(len(large))
    assert (high_large - low_large) / 2 == pytest.approx(half, rel=0.1)


def test_interval_of_equal_values_is_that_value() -> None:
    assert bootstrap_interval(np.full(7, 0.25)) == (0.25, 0.25)
    assert bootstrap_interval(np.array([0.5])) == (0.5, 0.5)
