"""Learning rates: which parameters share one, and how it goes over the steps."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from m2rag.models import M2BertModel
from m2rag.models.modeling_m2_bert import LongConvFilter


def parameter_groups(
    model: M2BertModel, *, lr: float, embedding_lr: float, filter_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for AdamW: embeddings, filters, matrices with weight decay, the rest without.

    Args:
        lr: of matrices and the rest.
        embedding_lr: of all embeddings and their LayerNorm.
        filter_lr: of the implicit filters of the long convolutions.
        weight_decay: of the matrices.
    """
    in_filters = {id(p) for m in model.modules() if isinstance(m, LongConvFilter) for p in m.parameters()}
    groups: dict[str, list[nn.Parameter]] = {"embeddings": [], "filters": [], "matrices": [], "rest": []}
    for name, parameter in model.named_parameters():
        if name.startswith("embeddings."):
            groups["embeddings"].append(parameter)
        elif id(parameter) in in_filters:
            groups["filters"].append(parameter)
        else:
            groups["matrices" if parameter.dim() > 1 else "rest"].append(parameter)
    rates = {"embeddings": embedding_lr, "filters": filter_lr}
    return [
        {
            "params": parameters,
            "lr": rates.get(name, lr),
            "peak_lr": rates.get(name, lr),
            "weight_decay": weight_decay if name == "matrices" else 0.0,
        }
        for name, parameters in groups.items()
        if parameters
    ]


def warmup_cosine(step: int, *, total: int, warmup: int, final: float) -> float:
    """Factor of the learning rate at step `step` (from 0): linear warm-up, then a cosine down to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(total - warmup, 1)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def warmup_linear(step: int, *, total: int, warmup: int, final: float) -> float:
    """Factor of the learning rate at step `step` (from 0): linear warm-up, then a straight line down to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    return 1 - (1 - final) * min((step - warmup) / max(total - warmup, 1), 1.0)
