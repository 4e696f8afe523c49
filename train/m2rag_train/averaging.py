"""Averaging: one model whose weights are the mean of several that grew from the same one.

Models fine-tuned for different things from a common start lie in one valley of the loss: their mean keeps most of what
each has learned, at the cost of one (model soups, arXiv:2203.05482).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from m2rag.models import M2BertModel, load_checkpoint
from m2rag.models.checkpoints import TOKENIZER_FILES, resolve_checkpoint
from m2rag_train.errors import RecipeError
from m2rag_train.export import save_embedder
from m2rag_train.files import replacing
from m2rag_train.recipe import Recipe, RunOptions, check_positive, check_same_recipe, is_first_process

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightedModel:
    """A model and its share.

    Attributes:
        model: folder, relative to the data folder, or any other name that `M2Embedder` takes.
        weight: above 0; all weights are divided by their sum.
    """

    model: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self, "weight")


@dataclass(frozen=True)
class AverageRecipe(Recipe):
    """The weighted mean of the weights of models of one shape.

    Attributes:
        models: two or more; configuration and tokenizer are the first one's.
        dimensions: lengths to which vectors may be cut, the full one among them; default: as the first model.
        dtype: of the weights written.
    """

    name: str
    models: list[WeightedModel]
    dimensions: list[int] = field(default_factory=list)
    dtype: Literal["float16", "float32"] = "float16"

    def __post_init__(self) -> None:
        if len(self.models) < 2:
            raise ValueError(f"models: {len(self.models)} given, a mean takes two or more")

    def run(self, options: RunOptions) -> Path | None:
        """Average and write; see `Recipe.run`.

        Raises:
            RecipeError: the models differ in shape.
            CheckpointError: one is not there.
        """
        if not is_first_process():
            return options.model
        check_same_recipe(self, options.run)
        paths = [resolve_in(options.data, part.model) for part in self.models]
        total = sum(part.weight for part in self.models)
        model = load_checkpoint(paths[0])
        if self.dimensions:
            if max(self.dimensions) > model.config.hidden_size:
                raise RecipeError(
                    f"{self.name}: dimensions has {max(self.dimensions)}, the models have {model.config.hidden_size}"
                )
            model.config.matryoshka_dimensions = sorted({*self.dimensions, model.config.hidden_size})
        mean = {name: value * (self.models[0].weight / total) for name, value in _floats(model).items()}
        for part, path in zip(self.models[1:], paths[1:], strict=True):
            logger.info("%s: %.3g of the mean", part.model, part.weight / total)
            other = _floats(load_checkpoint(path))
            if differing := sorted(n for n in mean.keys() | other.keys() if _shape(mean, n) != _shape(other, n)):
                raise RecipeError(
                    f"{self.name}: {part.model} is of another shape than {self.models[0].model}: {differing[0]} is "
                    f"{_shape(other, differing[0])}, not {_shape(mean, differing[0])}"
                )
            for name, value in other.items():
                mean[name] += value * (part.weight / total)
        with torch.no_grad():
            for name, value in _floats(model).items():
                value.copy_(mean[name])
        with replacing(options.model) as out:
            save_embedder(model, out, dtype=getattr(torch, self.dtype), tokenizer=tokenizer_beside(paths[0], model))
        return options.model


def resolve_in(data: Path, name: str) -> Path:
    """Path of a model that is a folder in `data`, or has any other name that `M2Embedder` takes."""
    inside = data / name
    return resolve_checkpoint(inside if inside.exists() else name)


def _floats(model: M2BertModel) -> dict[str, torch.Tensor]:
    """The tensors that have a mean: weights and trained positions."""
    return {name: value for name, value in model.state_dict().items() if value.is_floating_point()}


def _shape(tensors: dict[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


def tokenizer_beside(path: Path, model: M2BertModel) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the folder of a model's weights, if one is there."""
    folder = path if path.is_dir() else path.parent
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    return AutoTokenizer.from_pretrained(folder, model_max_length=model.config.max_tokens)
