"""Masking, padding, packing and the order within a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from test_pretraining_mixture import natural
from tiny_models import TOKENIZER
from torch.utils.data import BatchSampler

from m2rag.models import M2BertConfig
from m2rag_train.pretraining.batches import (
    Collator,
    HeldOutRows,
    Masking,
    StepOrder,
    TrainingSamples,
    bucketed,
)
from m2rag_train.pretraining.mixture import Mixture

MASK = 103
CONFIG = M2BertConfig(vocab_size=30522, long_conv_l_max=64, max_position_embeddings=64, padding="masked")


def row(n: int) -> np.ndarray:
    return np.array([101, *range(2000, 2000 + n - 2), 102])


def test_masking_hides_what_it_asks_for() -> None:
    ids = row(20_002)
    hidden, labels = Masking(TOKENIZER, 0.3)(ids, np.random.default_rng(0))
    asked = labels != -100
    assert asked.sum() == 6000
    assert not asked[[0, -1]].any()
    assert (labels[asked] == ids[asked]).all()
    assert (hidden[~asked] == ids[~asked]).all()
    kinds = {"mask": hidden[asked] == MASK, "same": hidden[asked] == ids[asked]}
    other = ~kinds["mask"] & ~kinds["same"]
    assert kinds["mask"].mean() == pytest.approx(0.8, abs=0.02)
    assert kinds["same"].mean() == pytest.approx(0.1, abs=0.02)
    # Any token of the vocabulary, evenly.
    random_ids = hidden[asked][other]
    assert random_ids.mean() == pytest.approx(30522 / 2, rel=0.1)


@pytest.mark.parametrize("n", [3, 4, 5])
def test_the_shortest_rows_ask_for_one_token(n: int) -> None:
    for seed in range(20):
        _, labels = Masking(TOKENIZER, 0.15)(row(n), np.random.default_rng(seed))
        assert (labels[1:-1] > 0).sum() == 1


def test_masks_depend_on_seed_and_sample_alone() -> None:
    samples = TrainingSamples(Mixture([natural(9)], [1], seed=4), Masking(TOKENIZER, 0.3), 100)
    first = samples[42]
    samples[7]
    assert all((samples[42][key] == first[key]).all() for key in first)
    # The same row is masked differently when it comes again.
    rows = [samples[i] for i in range(100)]
    longest = [r for r in rows if len(r["input_ids"]) == 11]
    assert len({tuple(r["labels"]) for r in longest}) > 5


def test_held_out_rows_are_masked_the_same_way_each_time() -> None:
    held_out = HeldOutRows(natural(9), Masking(TOKENIZER, 0.15), 100, seed=4)
    assert len(held_out) == 9
    assert all((held_out[8][key] == held_out[8][key]).all() for key in ("input_ids", "labels"))


def test_a_step_has_its_own_samples_by_length() -> None:
    mixture = Mixture([natural(30)], [1], seed=4)
    order = list(StepOrder(mixture, 80, 16))
    for step in range(5):
        samples = order[16 * step : 16 * (step + 1)]
        assert sorted(samples) == list(range(16 * step, 16 * (step + 1)))
        lengths = mixture.lengths(np.array(samples))
        assert (np.diff(lengths) >= 0).all()
    resumed = StepOrder(mixture, 80, 16, first=32)
    assert list(resumed) == order[32:]
    assert len(resumed) == 80


def test_each_sample_goes_to_one_process() -> None:
    order = StepOrder(Mixture([natural(30)], [1], seed=4), 64, 16)
    batches = [list(BatchSamplerShard(BatchSampler(order, 4, False), num_processes=2, process_index=i)) for i in (0, 1)]
    both = [sample for batch in [*batches[0], *batches[1]] for sample in batch]
    assert sorted(both) == list(range(64))
    # Two batches of each process are a step, whatever the number of processes.
    for step in range(4):
        here = [sample for own in batches for batch in own[2 * step : 2 * step + 2] for sample in batch]
        assert sorted(here) == list(range(16 * step, 16 * step + 16))


def samples_of(*lengths: int) -> list[dict[str, np.ndarray]]:
    masking = Masking(TOKENIZER, 0.3)
    hidden = [masking(row(n), np.random.default_rng(n)) for n in lengths]
    return [{"input_ids": ids, "labels": labels} for ids, labels in hidden]


def test_pads_ask_for_nothing() -> None:
    samples = samples_of(10, 40, 3)
    batch = Collator(CONFIG, 64)(samples)
    assert batch["input_ids"].shape == (3, 48)
    assert batch["attention_mask"].sum(1).tolist() == [10, 40, 3]
    for number, sample in enumerate(samples):
        n = len(sample["input_ids"])
        assert batch["input_ids"][number, :n].tolist() == sample["input_ids"].tolist()
        assert batch["labels"][number, :n].tolist() == sample["labels"].tolist()
        assert (batch["input_ids"][number, n:] == 0).all() and (batch["labels"][number, n:] == -100).all()
    assert all(tensor.dtype == torch.long for tensor in batch.values())


@pytest.mark.parametrize("padding", ["as_given", "max_length"])
def test_pads_that_are_mixed_are_always_as_many(padding: str) -> None:
    """The model reads them: a row must not depend on its neighbours in the batch."""
    config = M2BertConfig(long_conv_l_max=64, max_position_embeddings=64, padding=padding)
    assert Collator(config, 64)(samples_of(10, 5))["input_ids"].shape == (2, 64)


def test_widths_are_few_and_waste_at_most_half() -> None:
    widths = {bucketed(n, 32768) for n in range(1, 32769)}
    assert sorted(widths)[:6] == [32, 48, 64, 96, 128, 192]
    assert len(widths) == 21 and max(widths) == 32768
    assert all(n <= bucketed(n, 32768) < 1.51 * n for n in range(33, 32769))
    assert bucketed(100, 100) == 100


def test_packing_strings_rows_together_and_loses_nothing() -> None:
    samples = samples_of(30, 10, 40, 20, 24)
    batch = Collator(CONFIG, 64, packed=True)(samples)
    # 40 + 24, 30 + 20 + 10.
    assert batch["attention_mask"].sum(1).tolist() == [64, 60]
    packed = batch["input_ids"][batch["attention_mask"].bool()].tolist()
    assert sorted(packed) == sorted(token for sample in samples for token in sample["input_ids"].tolist())
    asked = batch["labels"] > 0
    assert asked.sum() == sum((sample["labels"] > 0).sum() for sample in samples)
    first = [sample["input_ids"].tolist() for sample in (samples[2], samples[4])]
    assert batch["input_ids"][0].tolist() == first[0] + first[1]
