from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2rag.batching import BatchRule, plan_batches, plan_windows

LENGTHS = st.lists(st.integers(1, 5000), max_size=80)
RULES = st.one_of(
    st.just(BatchRule()),
    st.just(BatchRule(equal_lengths=True)),
    st.just(BatchRule(pad_to=5000)),
)


@settings(deadline=None)
@given(lengths=LENGTHS, budget=st.integers(1, 20_000), rule=RULES)
def test_every_input_once_and_no_batch_over_budget(lengths: list[int], budget: int, rule: BatchRule) -> None:
    batches = plan_batches(lengths, budget, rule)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or rule.cost(max(lengths[i] for i in batch), len(batch)) <= budget


@settings(deadline=None)
@given(lengths=LENGTHS, budget=st.integers(1, 20_000), rule=RULES)
def test_longest_first(lengths: list[int], budget: int, rule: BatchRule) -> None:
    order = [lengths[i] for batch in plan_batches(lengths, budget, rule) for i in batch]
    assert order == sorted(lengths, reverse=True)


@settings(deadline=None)
@given(lengths=LENGTHS, budget=st.integers(1, 20_000))
def test_little_padding(lengths: list[int], budget: int) -> None:
    """No input is padded by more than a third of its length, unless all that padding is cheaper than another call."""
    for batch in plan_batches(lengths, budget):
        longest = max(lengths[i] for i in batch)
        padded = [longest - lengths[i] for i in batch if longest > lengths[i] / 0.75]
        assert sum(padded) <= BatchRule().call_tokens


@settings(deadline=None)
@given(lengths=LENGTHS, budget=st.integers(1, 20_000))
def test_equal_lengths_share_a_batch_only(lengths: list[int], budget: int) -> None:
    for batch in plan_batches(lengths, budget, BatchRule(equal_lengths=True)):
        assert len({lengths[i] for i in batch}) == 1


def test_batches_are_filled() -> None:
    """Eight inputs of 100 tokens cost 800: two batches of four at a budget of 400, not eight of one."""
    assert [len(batch) for batch in plan_batches([100] * 8, 400)] == [4, 4]


def test_max_length_padding_is_charged() -> None:
    """Each input costs 256 tokens, however short it is."""
    assert [len(batch) for batch in plan_batches([3] * 5, 512, BatchRule(pad_to=256))] == [2, 2, 1]


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_of_nothing_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        plan_batches([1], budget)


@settings(deadline=None)
@given(n=st.integers(1, 3000), size=st.integers(1, 400), data=st.data())
def test_windows_cover_everything(n: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    windows = plan_windows(n, size, overlap)
    assert windows[0][0] == 0 and windows[-1][1] == n
    assert all(0 < end - start <= size for start, end in windows)
    assert all(end - start == size for start, end in windows[:-1])
    for (_, end), (start, _) in zip(windows, windows[1:], strict=False):
        assert end - start == overlap
    # Each window brings something that the one before it had not.
    assert all(b > a for (_, a), (_, b) in zip(windows, windows[1:], strict=False))


def test_an_overlap_as_long_as_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match=r"overlap \(5\).*size \(5\)"):
        plan_windows(10, 5, 5)


def test_many_short_inputs_are_not_padded_to_the_longest_few_are():
    queries = [40, *[8] * 100]
    assert [len(batch) for batch in plan_batches(queries, 16_384)] == [1, 100]
    assert [len(batch) for batch in plan_batches([40, 8, 8], 16_384)] == [3]
    on_gpu = BatchRule(call_tokens=4_096)
    assert [len(batch) for batch in plan_batches(queries, 16_384, on_gpu)] == [101]
