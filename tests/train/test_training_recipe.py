"""Recipes: the shipped ones are valid, and everything wrong is named by its path."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_training import recipe_data

from m2rag_train.distillation.recipe import DistillRecipe, Source, Stage, TeacherSettings
from m2rag_train.errors import RecipeError
from m2rag_train.recipe import KINDS, Recipe, check_same_recipe, load_recipe, model_config

SHIPPED = sorted((Path(__file__).parents[2] / "train" / "recipes").glob("*.yaml"))


def write(path: Path, data: Any) -> Path:
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def header_of(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    if isinstance(model := getattr(recipe, "model", None), dict):
        config = model_config(model)
        assert {key: getattr(config, key) for key in model} == model
    steps = getattr(recipe, "total_steps", 1)
    assert steps > 0


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_header_says_what_a_reader_must_know(path: Path) -> None:
    header = header_of(path)
    # The file lies in train/recipes: the command can be copied as it stands.
    command = f"m2rag train train/recipes/{path.name} "
    assert command in header or f"-m m2rag_train train/recipes/{path.name} " in header
    assert "--run " in header
    missing = [word for word in ("data", "tokens", "memory", "time") if not re.search(rf"\b{word}\b", header)]
    assert not missing


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_kind_is_a_frozen_recipe(kind: str) -> None:
    cls = kind_class(kind)
    assert issubclass(cls, Recipe) and dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert cls.__doc__


def kind_class(kind: str) -> type[Recipe]:
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), name)


def test_there_are_shipped_recipes() -> None:
    assert SHIPPED


def test_every_part_becomes_its_class(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml", recipe_data(lr=1)))
    assert recipe.sources[1] == Source("paired_docs.jsonl", 10_000, pairs="pairs.jsonl")
    assert recipe.teacher == TeacherSettings("teacher", 6, 8, 10, 60, 200)
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
        pytest.param(broken(kind="distil"), "kind is 'distil', must be one of .*'distill'", id="unknown kind"),
        pytest.param(broken(kind=None), "kind is None, must be one of", id="no kind"),
        pytest.param(broken(learning_rate=1), "unknown keys learning_rate; known: name, sources", id="unknown key"),
        pytest.param(broken(**{"lr": 1, "1": 2}) | {1: 2}, "unknown keys 1, 1;", id="key that is a number"),
        pytest.param(
            {k: v for k, v in broken().items() if k not in ("stages", "name")},
            "missing keys name, stages",
            id="missing keys",
        ),
        pytest.param(broken(stages=[STAGE, {"steps": 2}]), r"stages\[1\]: missing keys window_tokens", id="nested"),
        pytest.param(broken(stages=[{**STAGE, "stepz": 2}]), r"stages\[0\]: unknown keys stepz", id="nested unknown"),
        pytest.param(broken(teacher={"model": "a", "seeds": 1}), "r.yaml: teacher: unknown keys seeds", id="teacher"),
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
    with pytest.raises(RecipeError, match=f"(?s){message}") as caught:
        load_recipe(path)
    assert str(caught.value).startswith(str(path))


def test_broken_yaml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: [", encoding="utf-8")
    with pytest.raises(RecipeError, match="r.yaml"):
        load_recipe(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="absent.yaml"):
        load_recipe(tmp_path / "absent.yaml")
    (tmp_path / "r.yaml").write_bytes(b"name: \xff")
    with pytest.raises(RecipeError, match="r.yaml: .*utf-8"):
        load_recipe(tmp_path / "r.yaml")


def test_changes_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", recipe_data())
    changes = ["lr=1", "teacher.model=other/place", "stages.1.window_fractions=[0.5, 1]", "sources.0.tokens=7"]
    recipe = load_recipe(path, [*changes, "betas=[0.5, 0.98]", "model.hidden_size=8", "name=a=b", "lr=2e-3"])
    assert isinstance(recipe, DistillRecipe)
    assert (recipe.teacher.model, recipe.name, recipe.betas) == ("other/place", "a=b", [0.5, 0.98])
    assert recipe.stages[1].window_fractions == [0.5, 1.0] and recipe.sources[0].tokens == 7
    assert recipe.model_config().hidden_size == 8
    assert recipe.lr == 2e-3, "of two for one key the last counts"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("lr", "'lr': expected key=value"),
        ("=3", "'=3': expected key=value"),
        ("lr=[", r"'lr=\['"),
        ("lr=fast", "lr: expected float, found 'fast'"),
        ("lrr=1", "unknown keys lrr"),
        ("stages.7.steps=1", r"'stages.7.steps=1': there is no '7'"),
        ("stages.first.steps=1", "there is no 'first'"),
        ("stages.2=1", "there is no '2'"),
        ("name.inner=1", "'name.inner=1': there is no 'inner'"),
        ("lr.inner.deep=1", "there is no 'inner'"),
        ("kind=other", "kind is 'other'"),
        ("model.hidden_sise=4", "model: unknown keys hidden_sise"),
    ],
)
def test_changes_that_cannot_be(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path / "r.yaml", recipe_data()), [change])


def test_optional_key_may_be_null(tmp_path: Path) -> None:
    data = recipe_data(sources=[{"documents": "a.jsonl", "tokens": 1, "pairs": None}])
    assert load_recipe(write(tmp_path / "r.yaml", data)).sources[0].pairs is None


@pytest.mark.parametrize(("step", "stage"), [(0, 0), (19, 0), (20, 1), (29, 1), (30, 1), (999, 1)])
def test_stage_at_the_borders(tmp_path: Path, step: int, stage: int) -> None:
    recipe: DistillRecipe = load_recipe(write(tmp_path / "r.yaml", recipe_data()))
    assert recipe.stage_at(step) is recipe.stages[stage]


def test_total_steps_is_the_sum(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path / "r.yaml", recipe_data())).total_steps == 30


def test_a_run_goes_on_with_the_recipe_it_began_with(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", recipe_data())
    check_same_recipe(load_recipe(path), tmp_path)
    check_same_recipe(load_recipe(path), tmp_path)
    with pytest.raises(
        RecipeError, match="holds a run with lr 0.01, the recipe now says 0.5: give another --run folder"
    ):
        check_same_recipe(load_recipe(path, ["lr=0.5"]), tmp_path)


def test_of_several_processes_the_first_notes_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml", recipe_data()))
    monkeypatch.setenv("RANK", "1")
    check_same_recipe(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]
    monkeypatch.setenv("RANK", "0")
    check_same_recipe(recipe, tmp_path)
    assert (tmp_path / "recipe.json").exists()
