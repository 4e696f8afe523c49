"""Pretraining on `transformers.Trainer`: the parts are put together here, and the model is written at the end."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainingArguments

from m2rag.models import M2BertForMaskedLM
from m2rag.tokenizer import TextTokenizer
from m2rag_train.errors import DivergedError, RecipeError, TrainingDataError
from m2rag_train.files import replacing
from m2rag_train.masked_lm import check_vocabulary, load_masked_lm, save_masked_lm
from m2rag_train.optimizer import published_groups, warmup_linear
from m2rag_train.pretraining.batches import Collator, HeldOutRows, Masking, StepOrder, TrainingSamples
from m2rag_train.pretraining.corpus import TokenFile, tokenised
from m2rag_train.pretraining.evaluation import loss_sums, mean_losses
from m2rag_train.pretraining.mixture import Mixture, rows_of
from m2rag_train.pretraining.recipe import PretrainRecipe
from m2rag_train.recipe import RECIPE_FILE, RunOptions, check_same_recipe, is_first_process
from m2rag_train.trainer import (
    CHECKPOINTS,
    GuardedTrainer,
    StepCallback,
    StepSeed,
    compute_layers_twice,
    deferred_interrupt,
    last_checkpoint,
    on_cpu,
    one_device,
)

logger = logging.getLogger(__name__)

EVALUATION_FILE = "evaluation.json"

# What may differ when a run goes on: none of it changes which samples a step is made of.
_FREE_TO_CHANGE = (
    "micro_batch_size", "gradient_checkpointing", "workers", "log_every", "save_every", "evaluation", "token_cache",
)  # fmt: skip


def run(recipe: PretrainRecipe, options: RunOptions) -> Path | None:
    """Tokens of the sources, training from the last saved state on, the finished model; see `Recipe.run`."""
    arguments = training_arguments(recipe, options)
    if not is_first_process():
        # One process tells what all of them do.
        logging.getLogger("m2rag_train").setLevel(logging.WARNING)
    if (options.run / RECIPE_FILE).exists():
        # Before hours of tokenising what another recipe asks for.
        check_same_recipe(recipe, options.run, _FREE_TO_CHANGE)
    model, tokenizer = build_model(recipe)
    max_tokens = recipe.max_tokens or model.config.max_tokens
    if max_tokens > model.config.max_tokens:
        raise RecipeError(f"max_tokens is {max_tokens}, the base takes {model.config.max_tokens}: extend it first")
    mixture, held_out = read_sources(recipe, options, tokenizer, max_tokens, arguments)
    check_same_recipe(recipe, options.run, _FREE_TO_CHANGE)
    trainer = PretrainTrainer(recipe, model, tokenizer, mixture, held_out, max_tokens, arguments)
    last = last_checkpoint(options.run / CHECKPOINTS)
    logger.info("%s: from step %s to %d", recipe.name, _step_of(last), recipe.steps)
    with deferred_interrupt() as interrupted:
        # Rows differ in length: tokens per step are those of the first steps, on the average.
        sample = np.arange(min(1000, recipe.steps * recipe.batch_size))
        tokens = round(float(mixture.lengths(sample).mean()) * recipe.batch_size)
        trainer.add_callback(
            StepCallback(
                trainer,
                interrupted,
                stop_after=options.stop_after,
                step_tokens=lambda step: tokens,
                total_steps=recipe.steps,
                log_every=recipe.log_every,
            )
        )
        trainer.train_from(last)
        if trainer.state.global_step < recipe.steps:
            logger.info("%s: stopped after step %d; saved: run again to go on", recipe.name, trainer.state.global_step)
            if interrupted():
                raise KeyboardInterrupt
            return None
    metrics = trainer.evaluate()
    if trainer.is_world_process_zero():
        if metrics:
            with replacing(options.run / EVALUATION_FILE) as path:
                path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        save_masked_lm(model, options.model, recipe.base)
    trainer.accelerator.wait_for_everyone()
    return options.model


def build_model(recipe: PretrainRecipe) -> tuple[M2BertForMaskedLM, TextTokenizer]:
    """The model that the run starts with, and its tokenizer.

    Raises:
        CheckpointError: the base is missing, damaged or without its head, or the vocabularies do not fit.
    """
    if recipe.base is not None:
        return load_masked_lm(recipe.base)
    torch.manual_seed(recipe.seed)
    model, tokenizer = M2BertForMaskedLM(recipe.model_config()), TextTokenizer.bundled()
    check_vocabulary(model, tokenizer)
    return model, tokenizer


def training_arguments(recipe: PretrainRecipe, options: RunOptions) -> TrainingArguments:
    """What the Trainer is told. Processes that torchrun or accelerate started find each other here.

    Raises:
        RecipeError: a device that is not there.
    """
    use_cpu = on_cpu(options.device)
    arguments = TrainingArguments(
        output_dir=str(options.run / CHECKPOINTS),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.micro_batch_size,
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.bf16,
        use_cpu=use_cpu,
        seed=recipe.seed,
        save_strategy="steps",
        save_steps=recipe.save_every,
        logging_steps=recipe.log_every,
        eval_strategy="steps",
        eval_steps=recipe.evaluation.every,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=recipe.workers,
        dataloader_pin_memory=not use_cpu,
        # The order starts at the right sample by itself.
        ignore_data_skip=True,
        average_tokens_across_devices=True,
        logging_nan_inf_filter=False,
    )
    one_device(arguments, options.device)
    rows = recipe.micro_batch_size * arguments.world_size
    if recipe.batch_size % rows:
        raise RecipeError(
            f"batch_size ({recipe.batch_size}) must be a multiple of micro_batch_size x processes "
            f"({recipe.micro_batch_size} x {arguments.world_size})"
        )
    arguments.gradient_accumulation_steps = recipe.batch_size // rows
    return arguments


def read_sources(
    recipe: PretrainRecipe,
    options: RunOptions,
    tokenizer: TextTokenizer,
    max_tokens: int,
    arguments: TrainingArguments,
) -> tuple[Mixture, dict[str, HeldOutRows]]:
    """The run's samples, and the rows of each source that are held out of them.

    Raises:
        TrainingDataError: a source is missing, damaged, or has no documents to train on.
    """
    cache = options.run / "tokens" if recipe.token_cache is None else Path(recipe.token_cache)
    masking = Masking(tokenizer, recipe.evaluation.mask)
    rows, held_out = [], {}
    for source in recipe.sources:
        # One process writes, the others find it written.
        with arguments.main_process_first(local=False, desc=source.name):
            folder = tokenised(source, tokenizer, max_tokens, data=options.data, cache=cache, held_out=recipe.held_out)
        parts = {
            part: rows_of(TokenFile.open(folder, part), source.mode, max_tokens, tokenizer.prefix, tokenizer.suffix)
            for part in ("train", "held_out")
        }
        if not len(parts["train"]):
            raise TrainingDataError(f"source {source.name!r}: all of its documents are held out")
        rows.append(parts["train"])
        if len(parts["held_out"]):
            held_out[source.name] = HeldOutRows(parts["held_out"], masking, recipe.evaluation.rows, recipe.seed)
        else:
            logger.warning("source %r has too few documents to hold any out: it is not evaluated", source.name)
    return Mixture(rows, [source.weight for source in recipe.sources], recipe.seed), held_out


def parameter_groups(model: M2BertForMaskedLM, recipe: PretrainRecipe) -> list[dict[str, Any]]:
    """Groups for AdamW as published, with the recipe's rates."""
    return published_groups(
        model,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        filter_lr=recipe.filter_lr,
        filter_weight_decay=recipe.filter_weight_decay,
        position_lr=recipe.position_lr,
    )


class PretrainTrainer(GuardedTrainer):
    """Trainer of the masked-language-model loss.

    A step is made of the same samples, masked the same way, whatever the number of processes, the size of
    micro-batches and the place where the run was resumed. The loss is the mean over the tokens to predict of the whole
    step, so neither of these changes what is learned, but for rounding and dropout.

    Args:
        mixture: samples of the run.
        held_out: rows of each source to evaluate on; may be empty.
        max_tokens: longest row.
    """

    def __init__(
        self,
        recipe: PretrainRecipe,
        model: M2BertForMaskedLM,
        tokenizer: TextTokenizer,
        mixture: Mixture,
        held_out: Mapping[str, HeldOutRows],
        max_tokens: int,
        arguments: TrainingArguments,
    ) -> None:
        self.run_name = recipe.name
        self.recipe = recipe
        self.held_out = dict(held_out)
        self.first_step = 0
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})
        if recipe.gradient_checkpointing:
            compute_layers_twice(model)
        beta1, beta2 = recipe.betas
        optimizer = torch.optim.AdamW(parameter_groups(model, recipe), betas=(beta1, beta2), eps=recipe.eps)
        warmup = round(recipe.warmup * recipe.steps)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_linear(step, total=recipe.steps, warmup=warmup, final=recipe.final_lr)
        )
        samples = TrainingSamples(mixture, Masking(tokenizer, recipe.mask), recipe.steps * recipe.batch_size)
        self.collate_evaluation = Collator(model.config, max_tokens)
        super().__init__(
            model=model,
            args=arguments,
            data_collator=Collator(model.config, max_tokens, packed=recipe.packing == "packed"),
            train_dataset=samples,
            # The Trainer only wants to see that there is one.
            eval_dataset=self.held_out,
            optimizers=(optimizer, scheduler),
        )
        self.add_callback(StepSeed(recipe.seed))

    def train_from(self, checkpoint: Path | None) -> None:
        """Train to the end, from a saved state or from the beginning."""
        self.first_step = _step_of(checkpoint)
        try:
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except DivergedError as error:
            saved = last_checkpoint(Path(self.args.output_dir))
            raise DivergedError(f"{error}; the last saved state is {saved or 'none'}") from error

    def _get_train_sampler(self, train_dataset: Any = None) -> StepOrder:
        samples = self.train_dataset
        assert isinstance(samples, TrainingSamples)
        size = self.recipe.batch_size
        return StepOrder(samples.mixture, len(samples), size, self.first_step * size)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return super().compute_loss(model, {**inputs, "labelled_only": True}, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean loss over the held-out tokens to predict: "eval_loss", and "eval_<source>_loss" of each source."""
        # The Trainer has asked after the last step already where that is one of the regular ones.
        if self._evaluated[0] == self.state.global_step:
            return self._evaluated[1]
        sums = {}
        model = self.accelerator.unwrap_model(self.model)
        for name, rows in self.held_out.items():
            own = loss_sums(
                model,
                rows,
                self.collate_evaluation,
                batch_size=self.recipe.micro_batch_size,
                rank=self.args.process_index,
                world=self.args.world_size,
            )
            sums[name] = self.accelerator.reduce(own.to(self.args.device), "sum").cpu()
        if not sums:
            return {}
        metrics = {f"eval_{name}": value for name, value in mean_losses(sums).items()}
        told = ", ".join(f"{name.removeprefix('eval_')} {value:.4f}" for name, value in metrics.items())
        if self.is_world_process_zero():
            logger.info("%s: held out, after step %d: %s", self.recipe.name, self.state.global_step, told)
        self.log(dict(metrics))  # which adds to what it is given
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._evaluated = self.state.global_step, metrics
        return metrics


def _step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])
