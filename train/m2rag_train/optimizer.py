"""Learning rates: which parameters share one, and how it goes over the steps."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from m2rag.models import M2BertModel
from m2rag.models.modeling_m2_bert import HyenaFilter, LongConvFilter


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


def published_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    filter_lr: float,
    filter_weight_decay: float,
    position_lr: float,
) -> list[dict[str, Any]]:
    """Groups for AdamW as the published models have them: the filters' MLPs, their positional features, the rest.

    Args:
        lr, weight_decay: of everything but the filters.
        filter_lr, filter_weight_decay: of the MLPs that make the long convolutions' taps.
        position_lr: of the positional features those MLPs start from, which have no decay.
    """
    groups: dict[str, list[nn.Parameter]] = {"filters": [], "positions": [], "rest": []}
    places: dict[int, str] = {}
    for module in model.modules():
        if isinstance(module, LongConvFilter):
            for name, parameter in module.named_parameters():
                # The skip term is no part of the taps' MLP.
                places[id(parameter)] = "rest" if name == "skip" else "filters"
            if isinstance(module, HyenaFilter):
                places[id(module.z)] = "positions"
    for parameter in model.parameters():
        groups[places.get(id(parameter), "rest")].append(parameter)
    rates = {"filters": (filter_lr, filter_weight_decay), "positions": (position_lr, 0.0), "rest": (lr, weight_decay)}
    return [
        {"params": parameters, "lr": rates[name][0], "weight_decay": rates[name][1]}
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
