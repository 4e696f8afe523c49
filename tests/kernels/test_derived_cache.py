"""What is derived from weights is forgotten when they change, stays within its budget and never leaves the process."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from m2rag_kernels import DerivedCache, Workspace


def four_floats(value: float) -> torch.Tensor:
    return torch.full((4,), float(value))


class Counter:
    """Makes the sum of a tensor and counts how often."""

    def __init__(self, source: torch.Tensor) -> None:
        self.source, self.made = source, 0

    def __call__(self) -> torch.Tensor:
        self.made += 1
        return self.source.detach().sum()


def replace_data(p):
    p.data = torch.full((3,), 5.0)


def in_place(p):
    with torch.no_grad():
        p.mul_(5)


def copied_into(p):
    with torch.no_grad():
        p.copy_(torch.full((3,), 5.0))


@pytest.mark.parametrize("change", [replace_data, in_place, copied_into])
def test_changed_source_is_noticed(change):
    cache, p = DerivedCache(), torch.nn.Parameter(torch.ones(3))
    make = Counter(p)
    assert cache.fetch("sum", [p], make) == 3
    assert cache.fetch("sum", [p], make) == 3
    assert make.made == 1
    change(p)
    assert cache.fetch("sum", [p], make) == 15
    assert make.made == 2
    assert len(cache) == 1


def test_those_with_a_share_take_no_more():
    cache, p = DerivedCache(max_bytes=64), four_floats(1)
    for name in ("a", "b", "c", "d"):
        cache.keep(name, [p], four_floats(1))
    cache.keep("first", [p], four_floats(2), share=0.5)
    cache.keep("second", [p], four_floats(3), share=0.5)
    cache.keep("third", [p], four_floats(4), share=0.5)
    kept = [name for name in ("a", "b", "c", "d", "first", "second", "third") if cache.find(name, [p]) is not None]
    assert kept == ["c", "d", "first", "second"] and cache.nbytes == 64
    cache.keep("first", [p], torch.zeros(5), share=0.5)
    assert len(cache.find("first", [p])) == 4, "what is too large pushed out what was there"
    cache.keep("first", [p], torch.zeros(3), share=0.5)
    assert len(cache.find("first", [p])) == 3 and cache.nbytes == 60


def test_another_tensor_at_the_same_address_is_not_mistaken():
    cache = DerivedCache()
    for value in range(20):
        p = four_floats(value)
        assert cache.fetch("sum", [p], p.sum) == 4 * value
        del p


def test_tensors_of_inference_mode():
    cache = DerivedCache()
    with torch.inference_mode():
        p = torch.ones(3)
    make = Counter(p)
    assert cache.fetch("sum", [p], make) == cache.fetch("sum", [p], make) == 3
    assert make.made == 1


def test_least_recently_used_goes_first():
    cache, source = DerivedCache(max_bytes=48), torch.ones(1)
    for what in "abc":
        cache.keep(what, [source], four_floats(0))
    assert cache.find("a", [source]) is not None
    cache.keep("d", [source], four_floats(0))
    assert cache.nbytes == 48
    assert [what for what in "abcd" if cache.find(what, [source]) is not None] == ["a", "c", "d"]
    cache.max_bytes = 20
    assert [what for what in "abcd" if cache.find(what, [source]) is not None] == ["d"]
    cache.keep("big", [source], torch.zeros(100))
    assert cache.find("big", [source]) is None and cache.nbytes == 16


def test_replacing_an_entry_counts_its_bytes_once():
    cache, source = DerivedCache(max_bytes=64), torch.ones(1)
    for _ in range(3):
        cache.keep("a", [source], four_floats(1))
    assert cache.nbytes == 16 and len(cache) == 1
    cache.clear()
    assert cache.nbytes == 0 and cache.find("a", [source]) is None


def test_negative_budget():
    with pytest.raises(ValueError, match="-1"):
        DerivedCache(-1)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_empty(duplicate):
    cache, source = DerivedCache(1000), torch.ones(1)
    cache.keep("a", [source], torch.zeros(2))
    twin = duplicate(cache)
    assert (len(twin), twin.nbytes, twin.max_bytes) == (0, 0, 1000)
    assert len(cache) == 1


def test_cast_keeps_one_copy():
    workspace, weight = Workspace(torch.bfloat16), torch.nn.Parameter(torch.rand(3))
    assert workspace.cast(weight) is workspace.cast(weight)
    assert workspace.cast(weight).dtype == torch.bfloat16
    workspace.compute_dtype = torch.float32
    assert workspace.cast(weight).data_ptr() == weight.data_ptr()


def test_spectra_are_kept_all_or_none():
    workspace = Workspace(n_filters=4, spectra_bytes=100)
    assert workspace.keeps_spectra_of(25)
    assert not workspace.keeps_spectra_of(26)
