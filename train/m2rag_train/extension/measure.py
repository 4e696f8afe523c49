"""Extend a checkpoint, and tell the masked-language-model loss right before and right after."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch

from m2rag.models import M2BertForMaskedLM
from m2rag.tokenizer import TextTokenizer
from m2rag_train.errors import RecipeError, TrainingDataError
from m2rag_train.extension.extend import Filters, Positions, extend_context
from m2rag_train.extension.recipe import ExtendRecipe
from m2rag_train.files import replacing
from m2rag_train.masked_lm import load_masked_lm, save_masked_lm
from m2rag_train.pretraining.batches import Collator, HeldOutRows, Masking
from m2rag_train.pretraining.corpus import TokenFile, tokenised
from m2rag_train.pretraining.evaluation import loss_sums, mean_losses
from m2rag_train.pretraining.mixture import rows_of
from m2rag_train.recipe import RunOptions

logger = logging.getLogger(__name__)

REPORT_FILE = "extension.json"


def run(recipe: ExtendRecipe, options: RunOptions) -> Path:
    """Losses of every way, the model of the chosen one; see `Recipe.run`."""
    base, tokenizer = load_masked_lm(recipe.base)
    before = base.config.max_tokens
    if recipe.max_tokens <= before:
        raise RecipeError(f"max_tokens is {recipe.max_tokens}, {recipe.base} takes {before} already")
    base.to(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if recipe.sources:
        report = compare(recipe, options, base, tokenizer)
        with replacing(options.run / REPORT_FILE) as path:
            path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    extended = extend_context(base, recipe.max_tokens, positions=recipe.positions, filters=recipe.filters)
    return save_masked_lm(extended.cpu(), options.model, recipe.base)


def compare(
    recipe: ExtendRecipe, options: RunOptions, base: M2BertForMaskedLM, tokenizer: TextTokenizer
) -> dict[str, Any]:
    """Losses of the base at its own length, and of each way of extending it at the new one.

    Raises:
        TrainingDataError: a source is missing, damaged, or has no documents to measure on.
    """
    old, new = base.config.max_tokens, recipe.max_tokens
    files = {source.name: _held_out(recipe, options, tokenizer, source.name) for source in recipe.sources}
    modes = {source.name: source.mode for source in recipe.sources}

    def losses(model: M2BertForMaskedLM, max_tokens: int) -> dict[str, float]:
        masking, collate = Masking(tokenizer, recipe.mask), Collator(model.config, max_tokens)
        # Natural documents stay one row each; concatenated ones give as many more as these are shorter.
        sums = {}
        for name, file in files.items():
            more = new // max_tokens if modes[name] == "concatenated" else 1
            rows = rows_of(file, modes[name], max_tokens, tokenizer.prefix, tokenizer.suffix)
            held_out = HeldOutRows(rows, masking, recipe.rows * more, recipe.seed)
            sums[name] = loss_sums(model, held_out, collate, batch_size=recipe.batch_size * (new // max_tokens))
        return mean_losses(sums)

    report: dict[str, Any] = {"base": recipe.base, "before": {"max_tokens": old, **losses(base, old)}, "after": []}
    _log(f"before, {old} tokens", report["before"])
    for positions, filters in itertools.product(get_args(Positions), get_args(Filters)):
        if positions == "interpolate" and not base.config.use_positional_encodings:
            continue
        extended = extend_context(base, new, positions=positions, filters=filters)
        found = {"max_tokens": new, "positions": positions, "filters": filters, **losses(extended, new)}
        report["after"].append(found)
        _log(f"after, {new} tokens, positions {positions}, filters {filters}", found)
    return report


def _held_out(recipe: ExtendRecipe, options: RunOptions, tokenizer: TextTokenizer, name: str) -> TokenFile:
    source = next(source for source in recipe.sources if source.name == name)
    cache = options.run / "tokens" if recipe.token_cache is None else Path(recipe.token_cache)
    folder = tokenised(source, tokenizer, recipe.max_tokens, data=options.data, cache=cache, held_out=recipe.held_out)
    file = TokenFile.open(folder, "held_out")
    if not file.n_documents:
        raise TrainingDataError(f"source {name!r} has too few documents to hold any out: raise held_out")
    return file


def _log(what: str, losses: Mapping[str, Any]) -> None:
    told = ", ".join(f"{name} {value:.4f}" for name, value in losses.items() if name.endswith("loss"))
    logger.info("%s: %s", what, told)
