"""Recipes: one YAML file says everything about a run; unknown or missing keys are errors that name them.

`kind` says what is done; each kind is a dataclass of its own, which knows how to run itself.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from m2rag._optional import require
from m2rag.models import M2BertConfig
from m2rag_train.errors import RecipeError
from m2rag_train.files import replacing

yaml = require("yaml", extra="train")

# Kind -> where its dataclass is; imported when a recipe asks for it.
KINDS = {
    "average": "m2rag_train.averaging:AverageRecipe",
    "classify": "m2rag_train.classification.recipe:ClassifyRecipe",
    "distill": "m2rag_train.distillation.recipe:DistillRecipe",
    "extend": "m2rag_train.extension.recipe:ExtendRecipe",
    "finetune": "m2rag_train.finetuning.recipe:FinetuneRecipe",
    "pretrain": "m2rag_train.pretraining.recipe:PretrainRecipe",
    "sketch": "m2rag_train.sketching:SketchRecipe",
}

# YAML 1.1 takes a number without a point, 2e-5, for text.
_POWER_OF_TEN = re.compile(r"[-+]?\d+[eE][-+]?\d+")

RECIPE_FILE = "recipe.json"
MODEL_FOLDER = "model"


@dataclass(frozen=True)
class RunOptions:
    """What belongs to this call and this machine, not to the recipe.

    Attributes:
        run: folder of the run: saved states, logs, and at the end the model in `run/model`. Called again with the same
            folder a run goes on where it was.
        data: folder that the recipe's relative paths start from.
        device: "cpu", "cuda", "cuda:1", ...; None: a GPU where there is one.
        stop_after: optimizer steps of this call, for a run in pieces.
    """

    run: Path
    data: Path
    device: str | None = None
    stop_after: int | None = None

    @property
    def model(self) -> Path:
        """Where the finished model goes."""
        return self.run / MODEL_FOLDER


class Recipe(ABC):
    """What every kind of recipe has. Kinds are frozen dataclasses."""

    name: str

    @abstractmethod
    def run(self, options: RunOptions) -> Path | None:
        """Do it, from the last saved state to the end.

        Returns:
            Folder of the finished model, or the file of results of a kind that ends in figures; None if `stop_after`
            ended the call earlier.

        Raises:
            TrainingDataError: the data is broken.
            DivergedError: a loss or gradient is not finite.
            CheckpointWriteError: a state could not be written.
            KeyboardInterrupt: Ctrl-C; the step that ran was finished and saved.
        """


def load_recipe(path: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        changes: "key=value" or "key.inner=value" or "list.0.key=value", values in YAML; they win over the file.

    Raises:
        RecipeError: not YAML, not a mapping, unknown kind, unknown key, missing key, or a value of the wrong type or
            out of range; names the key's path.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: expected a mapping, found {type(data).__name__}")
    for change in changes:
        _change(data, change, str(path))
    kind = data.pop("kind", None)
    if kind not in KINDS:
        raise RecipeError(f"{path}: kind is {kind!r}, must be one of {', '.join(map(repr, sorted(KINDS)))}")
    module, _, name = KINDS[kind].partition(":")
    return _build(getattr(importlib.import_module(module), name), data, str(path))


def check_same_recipe(recipe: Recipe, run: Path, free: Sequence[str] = ()) -> None:
    """Note the recipe in the folder of a run that begins; one that goes on must have the same.

    Of several processes the first does it.

    Args:
        free: keys that may differ, as they do not change what is trained.

    Raises:
        RecipeError: names the first key that differs.
        CheckpointWriteError: the folder cannot be written to.
    """
    if not is_first_process():
        return
    now = json.loads(json.dumps(dataclasses.asdict(recipe)))  # type: ignore[call-overload]
    path = run / RECIPE_FILE
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for key in {**before, **now}:
        if key not in free and before.get(key) != now.get(key):
            raise RecipeError(
                f"{run} holds a run with {key} {before.get(key)!r}, the recipe now says {now.get(key)!r}: "
                "give another --run folder, or the recipe as it was"
            )


def is_first_process() -> bool:
    """Whether this is the only process, or the first of those that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def model_config(keys: dict[str, Any]) -> M2BertConfig:
    """The configuration that a recipe's `model` describes.

    Raises:
        ValueError: a key is unknown or its value invalid.
    """
    known = {f.name for f in dataclasses.fields(M2BertConfig)}
    # The configuration class itself keeps what it does not know.
    if unknown := sorted(str(key) for key in keys.keys() - known):
        raise ValueError(f"model: unknown keys {', '.join(unknown)}; see M2BertConfig")
    try:
        return M2BertConfig(**keys)
    except StrictDataclassError as error:
        raise ValueError(f"model: {error}") from error


def check_positive(settings: Any, *names: str) -> None:
    """Each of these attributes must be above 0 (or None).

    Raises:
        ValueError: names the first that is not.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name} is {value}, must be above 0")


def _change(data: dict[str, Any], change: str, where: str) -> None:
    path, separator, text = change.partition("=")
    if not separator or not path:
        raise RecipeError(f"{change!r}: expected key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{change!r}: {error}") from error
    *parents, last = path.split(".")
    target: Any = data
    for key in parents:
        try:
            target = target.setdefault(key, {}) if isinstance(target, dict) else target[int(key)]
        except (ValueError, IndexError, TypeError) as error:
            raise RecipeError(f"{where}: {change!r}: there is no {key!r}") from error
    if isinstance(target, dict):
        target[last] = value
        return
    try:
        target[int(last)] = value
    except (ValueError, IndexError, TypeError) as error:
        raise RecipeError(f"{where}: {change!r}: there is no {last!r}") from error


def _build(cls: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise RecipeError(f"{where}: expected a mapping, found {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(str(key) for key in data.keys() - fields.keys()):
        raise RecipeError(f"{where}: unknown keys {', '.join(unknown)}; known: {', '.join(fields)}")
    required = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if missing := sorted(required - data.keys()):
        raise RecipeError(f"{where}: missing keys {', '.join(missing)}")
    values = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in data.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise RecipeError(f"{where}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        if not isinstance(value, list):
            raise RecipeError(f"{where}: expected a list, found {value!r}")
        return [_convert(args[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is typing.Literal:
        if value not in args:
            raise RecipeError(f"{where}: {value!r} is none of {', '.join(map(repr, args))}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if hint is float and (whole or isinstance(value, str) and _POWER_OF_TEN.fullmatch(value)):
        return float(value)
    expected = origin or hint
    if expected is not Any and (not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool)):
        raise RecipeError(f"{where}: expected {expected.__name__}, found {value!r}")
    return value
