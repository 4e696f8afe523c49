"""The benchmark of a training step's memory: it runs, and its committed figures say what is claimed of them."""

from __future__ import annotations

import pytest

pytest.importorskip("sentence_transformers", reason="needs the extra 'train'")

from common import find, read_csv
from train_memory import CASES, DRY_CASES, RESULT, measure


@pytest.mark.parametrize("case", DRY_CASES[::3], ids=lambda case: case.loss)
def test_a_toy_step_is_measured(case):
    found = measure(case)
    assert found["cpu_seconds"] > 0 and found["peak_mb"] >= found["model_mb"] > 0


def test_both_losses_are_the_same_number():
    import torch
    from train_memory import Encoder, dense_loss

    from m2rag_train.finetuning.losses import OrthogonalLoss, right_documents

    encoder = Encoder("toy").eval()
    ids = torch.randint(5, 100, (3, 20))
    features = [{"input_ids": ids[:, :n], "attention_mask": torch.ones_like(ids[:, :n])} for n in (4, 20)]
    labels = {"documents": torch.arange(3), "relevant": torch.arange(3)[:, None]}
    with torch.no_grad():
        expected = dense_loss(encoder, features, right_documents(labels))
        torch.testing.assert_close(OrthogonalLoss(encoder)(features, labels), expected)


@pytest.mark.skipif(not RESULT.exists(), reason="no committed results")
def test_memory_does_not_grow_with_the_negatives():
    rows = read_csv(RESULT)
    assert len(rows) == len(CASES)
    flat = [find(rows, shape="mini", loss="orthogonal", negatives=count)["step_mb"] for count in (1, 4, 16)]
    assert flat[2] < 1.05 * flat[1], "16 negatives as 4"
    assert flat[2] < 1.2 * flat[0], "the allocator's share"
    dense = [find(rows, shape="mini", loss="dense", negatives=count)["step_mb"] for count in (1, 4)]
    assert dense[1] > 2 * dense[0], "or there would be nothing to save"
