"""The mean of models: their weights' mean, in a folder that loads like any other; what does not fit is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_models import saved, tiny_model

from m2rag import M2Embedder
from m2rag.models import load_checkpoint
from m2rag_train.errors import RecipeError
from m2rag_train.recipe import RunOptions, load_recipe


def average(folder: Path, **changes: Any) -> Path:
    models = [{"model": "a", "weight": 1}, {"model": "b", "weight": 3}]
    data = {"kind": "average", "name": "mean", "models": models} | changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    (folder / "run").mkdir(exist_ok=True)
    out = load_recipe(path).run(RunOptions(run=folder / "run", data=folder))
    assert out == folder / "run" / "model"
    return out


def test_the_mean_has_its_shares_of_each(tmp_path: Path) -> None:
    saved(tmp_path / "a", seed=1)
    saved(tmp_path / "b", seed=2)
    out = average(tmp_path, dimensions=[16], dtype="float32")
    first, second = tiny_model(seed=1).state_dict(), tiny_model(seed=2).state_dict()
    found = load_checkpoint(out).state_dict()
    assert found.keys() == first.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, 0.25 * first[name] + 0.75 * second[name], msg=name)
    embedder = M2Embedder(str(out), dimensions=16)
    assert embedder.embed_query("a cat on a mat").shape == (16,)


def test_models_of_different_shapes_have_no_mean(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "b", intermediate_size=128)
    with pytest.raises(RecipeError, match=r"mean: b is of another shape than a: .* is \(.*\), not \("):
        average(tmp_path)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": [{"model": "a"}]}, "models: 1 given, a mean takes two or more"),
        ({"models": [{"model": "a"}, {"model": "b", "weight": 0}]}, r"models\[1\]: weight is 0.0, must be above 0"),
        ({"dimensions": [16, 64]}, "mean: dimensions has 64, the models have 32"),
    ],
)
def test_what_makes_no_sense_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    for name in "ab":
        saved(tmp_path / name)
    with pytest.raises(RecipeError, match=message):
        average(tmp_path, **changes)
