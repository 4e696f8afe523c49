"""Which row every sample is: shares to the sample, each row once per round, the same from any starting point."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from m2rag_train.pretraining.corpus import TokenFile
from m2rag_train.pretraining.mixture import ConcatenatedRows, Mixture, NaturalRows, permuted

CLS, SEP = (101,), (102,)


def token_file(*documents: list[int]) -> TokenFile:
    tokens = np.array([token for document in documents for token in [*document, *SEP]], dtype=np.uint16)
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)])
    return TokenFile(tokens, starts)


def natural(n_documents: int, max_tokens: int = 16) -> NaturalRows:
    """Document i is i + 1 times the token 1000 + i."""
    return NaturalRows(token_file(*([1000 + i] * (i + 1) for i in range(n_documents))), max_tokens, CLS, SEP)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 1000, 4097])
def test_every_place_has_one_image(n: int) -> None:
    images = permuted(np.arange(n), n, (17, 0))
    assert sorted(images.tolist()) == list(range(n))


def test_permutations_differ_by_key_and_look_random() -> None:
    n = 5000
    one, other = permuted(np.arange(n), n, (17, 0)), permuted(np.arange(n), n, (17, 1))
    assert (one == other).mean() < 0.01
    # Neighbours are as far from each other as strangers: a third of n, on the average.
    assert np.abs(np.diff(one)).mean() == pytest.approx(n / 3, rel=0.1)
    # Few places stay: one, on the average.
    assert (one == np.arange(n)).sum() < 8


def test_some_places_are_as_good_as_all() -> None:
    n = 777
    everything = permuted(np.arange(n), n, (3,))
    some = np.array([700, 3, 3, 776])
    assert permuted(some, n, (3,)).tolist() == everything[some].tolist()


def test_natural_rows_are_documents_cut_at_the_length() -> None:
    rows = natural(20, max_tokens=8)
    assert len(rows) == 20
    assert rows.ids(2).tolist() == [101, 1002, 1002, 1002, 102]
    assert rows.ids(15).tolist() == [101, *[1015] * 6, 102]
    lengths = rows.lengths(np.arange(20))
    assert lengths.tolist() == [len(rows.ids(i)) for i in range(20)]


def test_concatenated_rows_are_full_and_nothing_is_lost() -> None:
    file = token_file([1, 2, 3], [4, 5], [6, 7, 8, 9, 10], [11])
    rows = ConcatenatedRows(file, 6, CLS, SEP)
    assert len(rows) == 3
    ids = [rows.ids(i).tolist() for i in range(3)]
    assert ids == [[101, 1, 2, 3, 102, 102], [101, 4, 5, 102, 6, 102], [101, 7, 8, 9, 10, 102]]
    assert rows.lengths(np.arange(3)).tolist() == [6, 6, 6]


def test_a_short_text_is_one_concatenated_row() -> None:
    rows = ConcatenatedRows(token_file([1, 2]), 16, CLS, SEP)
    assert len(rows) == 1
    assert rows.ids(0).tolist() == [101, 1, 2, 102, 102]
    assert rows.lengths(np.array([0])).tolist() == [5]


def test_shares_are_those_of_the_weights() -> None:
    mixture = Mixture([natural(7), natural(5), natural(3)], [0.24, 0.23, 0.53], seed=1)
    for start in (0, 30_000):
        sources, _ = mixture.locate(np.arange(start, start + 10_000))
        assert np.bincount(sources).tolist() == [2400, 2300, 5300]
    # Not in clumps: any hundred samples hold about their share.
    sources, _ = mixture.locate(np.arange(10_000))
    assert (sources.reshape(100, 100) == 2).mean(axis=1).min() > 0.3


def test_shares_that_do_not_divide_are_rounded_and_add_up() -> None:
    mixture = Mixture([natural(7), natural(5), natural(3)], [1, 1, 1], seed=1)
    sources, _ = mixture.locate(np.arange(10_000))
    assert sorted(np.bincount(sources)) == [3333, 3333, 3334]


def test_each_row_comes_once_per_round() -> None:
    mixture = Mixture([natural(37), natural(11)], [1, 3], seed=2)
    sources, rows = mixture.locate(np.arange(25_000))
    for source, n in ((0, 37), (1, 11)):
        own = rows[sources == source]
        rounds = own[: len(own) // n * n].reshape(-1, n)
        assert (np.sort(rounds, axis=1) == np.arange(n)).all()
        assert len({tuple(order) for order in rounds.tolist()}) > 0.9 * len(rounds)


def test_a_sample_does_not_depend_on_where_one_starts() -> None:
    mixture = Mixture([natural(37), natural(11)], [1, 3], seed=2)
    sources, rows = mixture.locate(np.arange(30_000))
    again = Mixture([natural(37), natural(11)], [1, 3], seed=2)
    for sample in (29_999, 10_000, 9_999, 0, 12_345):
        source, row = again.locate(np.array([sample]))
        assert (source[0], row[0]) == (sources[sample], rows[sample])
        assert again.lengths(np.array([sample]))[0] == len(again.ids(sample))
    other = Mixture([natural(37), natural(11)], [1, 3], seed=3)
    assert (other.locate(np.arange(1000))[1] != rows[:1000]).mean() > 0.5


def test_it_goes_to_processes_that_prepare_batches() -> None:
    mixture = Mixture([natural(37), natural(11)], [1, 3], seed=2)
    mixture.ids(5)
    assert pickle.loads(pickle.dumps(mixture)).ids(5).tolist() == mixture.ids(5).tolist()


def test_files_are_mapped_not_read(tmp_path: Path) -> None:
    (tmp_path / "source.json").write_text('{"dtype": "uint16"}', encoding="utf-8")
    np.arange(10, dtype=np.uint16).tofile(tmp_path / "train.tokens")
    np.array([0, 10], dtype=np.int64).tofile(tmp_path / "train.starts")
    (tmp_path / "held_out.tokens").touch()
    np.zeros(1, dtype=np.int64).tofile(tmp_path / "held_out.starts")
    file = TokenFile.open(tmp_path, "train")
    assert isinstance(file.tokens, np.memmap)
    assert file.document(0).tolist() == list(range(9))
    assert TokenFile.open(tmp_path, "held_out").n_documents == 0
