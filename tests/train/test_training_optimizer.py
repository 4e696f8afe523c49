"""Learning rates: every parameter has one, and how it rises and falls."""

from __future__ import annotations

import pytest
from tiny_models import tiny_model

from m2rag_train.optimizer import parameter_groups, warmup_cosine


def test_every_parameter_is_in_one_group() -> None:
    model = tiny_model()
    groups = parameter_groups(model, lr=1.0, embedding_lr=2.0, filter_lr=3.0, weight_decay=0.1)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())

    settings = {id(p): (group["peak_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    of = {name: settings[id(parameter)] for name, parameter in model.named_parameters()}
    assert of["embeddings.word_embeddings.weight"] == (2.0, 0.0)
    assert of["layers.0.mixer.filter.mlp.input.weight"] == (3.0, 0.0)
    assert of["layers.0.mixer.residual_filter.skip"] == (3.0, 0.0)
    assert of["layers.0.mixer.in_proj.weight"] == (1.0, 0.1)
    assert of["layers.0.mlp.gate_proj.weight"] == (1.0, 0.1)
    assert of["layers.0.mixer.in_proj.bias"] == (1.0, 0.0)
    assert of["layers.0.mlp.norm.weight"] == (1.0, 0.0)


def test_learning_rate_rises_and_falls() -> None:
    factors = [warmup_cosine(step, total=30, warmup=4, final=0.1) for step in range(35)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[4 + 13] == pytest.approx((1 + 0.1) / 2), "half way between peak and end, half way down"
    assert all(a >= b for a, b in zip(factors[4:], factors[5:], strict=False))
    assert factors[30:] == pytest.approx([0.1] * 5)
    assert warmup_cosine(0, total=30, warmup=0, final=0.1) == 1.0
