"""Recipes: the shipped ones are valid, and everything wrong is named by its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_training import recipe_data

from m2rag.models import M2BertConfig
from m2rag_train.recipe import DistillRecipe, Source, Stage, TeacherSettings, load_recipe

SHIPPED = sorted((Path(__file__).parents[2] / "train" / "recipes").glob("*.yaml"))


def write(path: Path, data: Any) -> Path:
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.total_steps > 0
    config = recipe.model_config()
    assert isinstance(config, M2BertConfig)
    for key, value in recipe.model.items():
        assert getattr(config, key) == value
    assert recipe.teacher.span_tokens + 2 <= min(stage.window_tokens for stage in recipe.stages)
    assert str(path.relative_to(path.parents[2])) in path.read_text(encoding="utf-8"), "header holds the exact command"


def test_there_are_shipped_recipes() -> None:
    assert SHIPPED


def test_every_part_becomes_its_class(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml", recipe_data(lr=1)))
    assert recipe.sources[1] == Source("paired_docs.jsonl", 10_000, pairs="pairs.jsonl")
    assert recipe.teacher == TeacherSettings(6, 8, 10, 60, 200)
    assert recipe.stages[0] == Stage(steps=20, window_tokens=32, short_texts=8)
    assert recipe.lr == 1.0 and isinstance(recipe.lr, float)
    assert recipe.seed == 0


def broken(**changes: Any) -> dict[str, Any]:
    return recipe_data(**changes)


STAGE = {"steps": 1, "window_tokens": 32}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param([1, 2], r"r\.yaml: expected a mapping, found list", id="not a mapping"),
        pytest.param(None, "expected a mapping, found NoneType", id="empty file"),
        pytest.param(broken(learning_rate=1), "unknown keys learning_rate; known: name, sources", id="unknown key"),
        pytest.param(broken(**{"lr": 1, "1": 2}) | {1: 2}, "unknown keys 1, 1;", id="key that is a number"),
        pytest.param(
            {k: v for k, v in broken().items() if k not in ("stages", "name")},
            "missing keys name, stages",
            id="missing keys",
        ),
        pytest.param(broken(stages=[STAGE, {"steps": 2}]), r"stages\[1\]: missing keys window_tokens", id="nested"),
        pytest.param(broken(stages=[{**STAGE, "stepz": 2}]), r"stages\[0\]: unknown keys stepz", id="nested unknown"),
        pytest.param(broken(teacher={"seeds": 1}), "r.yaml: teacher: unknown keys seeds", id="teacher"),
        pytest.param(broken(lr="fast"), "lr: expected float, found 'fast'", id="text for a number"),
        pytest.param(broken(seed=1.5), "seed: expected int, found 1.5", id="fraction for a whole number"),
        pytest.param(broken(seed=True), "seed: expected int, found True", id="bool for a number"),
        pytest.param(broken(autocast=1), "autocast: expected bool, found 1", id="number for a bool"),
        pytest.param(broken(betas=[0.9, "x"]), r"betas\[1\]: expected float, found 'x'", id="in a list"),
        pytest.param(broken(stages={}), "stages: expected a list", id="mapping for a list"),
        pytest.param(broken(model=[1]), "model: expected dict", id="list for a mapping"),
        pytest.param(
            broken(sources=[{"documents": "a", "tokens": 1, "pairs": 3}]),
            r"sources\[0\]: pairs: expected str, found 3",
            id="optional of the wrong type",
        ),
        pytest.param(broken(stages=[{**STAGE, "steps": 0}]), r"stages\[0\]: steps is 0", id="no steps"),
        pytest.param(broken(stages=[{**STAGE, "short_texts": 0}]), "short_texts is 0", id="no short texts"),
        pytest.param(
            broken(stages=[{**STAGE, "window_fractions": [0.5, 1.5]}]), "window_fractions is", id="fraction above 1"
        ),
        pytest.param(broken(stages=[{**STAGE, "window_fractions": []}]), "window_fractions is", id="no fractions"),
        pytest.param(broken(stages=[]), "stages is empty", id="no stages"),
        pytest.param(broken(betas=[0.9]), "betas has 1 values, must have 2", id="one beta"),
        pytest.param(broken(model={"hidden_sise": 4}), "model: unknown keys hidden_sise", id="typo in the model"),
        pytest.param(broken(model={"padding": "left"}), "model: .*padding is 'left'", id="invalid model"),
        pytest.param(broken(model={"hidden_size": "wide"}), "model: .*hidden_size", id="model key of the wrong type"),
        pytest.param(
            broken(stages=[STAGE, {**STAGE, "window_tokens": 65}]),
            r"stages\[1\]: window_tokens is 65, the model takes 64",
            id="window longer than the model",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, data: Any, message: str) -> None:
    path = write(tmp_path / "r.yaml", data)
    with pytest.raises(ValueError, match=f"(?s){message}") as caught:
        load_recipe(path)
    assert str(caught.value).startswith(str(path))


def test_broken_yaml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: [", encoding="utf-8")
    with pytest.raises(ValueError, match="r.yaml"):
        load_recipe(path)


def test_optional_key_may_be_null(tmp_path: Path) -> None:
    data = recipe_data(sources=[{"documents": "a.jsonl", "tokens": 1, "pairs": None}])
    assert load_recipe(write(tmp_path / "r.yaml", data)).sources[0].pairs is None


@pytest.mark.parametrize(("step", "stage"), [(0, 0), (19, 0), (20, 1), (29, 1), (30, 1), (999, 1)])
def test_stage_at_the_borders(tmp_path: Path, step: int, stage: int) -> None:
    recipe: DistillRecipe = load_recipe(write(tmp_path / "r.yaml", recipe_data()))
    assert recipe.stage_at(step) is recipe.stages[stage]


def test_total_steps_is_the_sum(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path / "r.yaml", recipe_data())).total_steps == 30
