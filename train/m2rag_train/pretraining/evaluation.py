"""The masked-language-model loss of rows that training never sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from m2rag.models import M2BertForMaskedLM
from m2rag_train.pretraining.batches import HeldOutRows

Collate = Callable[[Sequence[dict[str, np.ndarray]]], dict[str, torch.Tensor]]


@torch.no_grad()
def loss_sums(
    model: M2BertForMaskedLM, rows: HeldOutRows, collate: Collate, *, batch_size: int, rank: int = 0, world: int = 1
) -> torch.Tensor:
    """Sum of the cross entropies and number of the tokens to predict, (2,) float64, of every `world`-th batch.

    The model is left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    for start in range(rank * batch_size, len(rows), world * batch_size):
        batch = collate([rows[row] for row in range(start, min(start + batch_size, len(rows)))])
        inputs: dict[str, Any] = {name: tensor.to(model.device) for name, tensor in batch.items()}
        loss = model(**inputs, labelled_only=True, num_items_in_batch=1).loss
        sums += torch.tensor([float(loss), float((batch["labels"] > 0).sum())], dtype=torch.float64)
    model.train(was_training)
    return sums


def mean_losses(sums: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Mean cross entropy per token, in nats: over all sources ("loss") and of each ("<name>_loss")."""
    total = torch.stack(list(sums.values())).sum(0)
    parts = {f"{name}_loss": float(one[0] / one[1]) for name, one in sums.items() if one[1] > 0}
    return {"loss": float(total[0] / total[1]), **parts}
