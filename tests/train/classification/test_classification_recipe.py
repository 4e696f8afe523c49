"""Recipes of GLUE: everything wrong is named by its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_glue import classify_data, load, task_settings

from m2rag_train.errors import RecipeError

COLA = task_settings("cola")


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        ([task_settings("wnli")], {}, r"tasks\[0\]: task is 'wnli', must be one of cola, "),
        ([], {}, "tasks is empty"),
        ([COLA, COLA], {}, r"tasks\[1\]: cola is there twice"),
        ([task_settings("rte", start="mnli")], {}, r"tasks\[0\]: start is 'mnli', which is no earlier task"),
        ([task_settings("rte", start="rte")], {}, "start is 'rte', which is no earlier"),
        ([task_settings("cola", seeds=[])], {}, "seeds is \\[\\], must be different numbers, at least one"),
        ([task_settings("cola", seeds=[1, 1])], {}, "must be different"),
        ([task_settings("cola", metrics=["f1"])], {}, r"metrics is \['f1'\], must be some of matthews"),
        ([task_settings("cola", metrics=[])], {}, r"metrics is \[\], must be some of"),
        ([task_settings("cola", pooling="mean")], {}, "pooling: 'mean' is none of 'cls_tanh', 'mean_tanh'"),
        ([task_settings("cola", lr=0)], {}, "lr is 0.0, must be above 0"),
        ([task_settings("cola", epochs=0)], {}, "epochs is 0, must be above 0"),
        ([COLA], {"betas": [0.9]}, "betas has 1 values"),
        ([COLA], {"warmup": 1.0}, "warmup is 1.0, must be a fraction"),
        ([COLA], {"max_grad_norm": 0}, "max_grad_norm is 0.0, must be above 0"),
        ([COLA], {"max_tokens": 0}, "max_tokens is 0, must be above 0"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, tasks: list[dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        load(tmp_path / "r.yaml", classify_data(Path("base"), tasks, **changes))


def test_models_that_others_start_from_are_kept(tmp_path: Path) -> None:
    tasks = [
        task_settings("mnli", seeds=[3, 4]),
        task_settings("rte", start="mnli", seeds=[5, 6], keep=True),
        COLA,
    ]
    recipe = load(tmp_path / "r.yaml", classify_data(Path("base"), tasks))
    kept = [(s.task, seed) for s in recipe.tasks for seed in s.seeds if recipe.keeps(s, seed)]
    assert kept == [("mnli", 3), ("rte", 5), ("rte", 6)]
