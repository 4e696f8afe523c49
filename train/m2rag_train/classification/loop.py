"""GLUE on `transformers.Trainer`: for each task and seed a classifier on the encoder, trained and measured."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from m2rag.models import M2BertForSequenceClassification, load_checkpoint
from m2rag.models.checkpoints import TOKENIZER_FILES, resolve_checkpoint
from m2rag.tokenizer import VOCABULARY
from m2rag_train.classification.metrics import measure
from m2rag_train.classification.recipe import ClassifyRecipe, TaskSettings
from m2rag_train.classification.results import MARKDOWN_FILE, result_file, write_json, write_results
from m2rag_train.classification.tasks import TASKS, Example, GlueTask, load_split
from m2rag_train.errors import RecipeError
from m2rag_train.files import replacing
from m2rag_train.optimizer import published_groups, warmup_linear
from m2rag_train.recipe import RunOptions, check_same_recipe, is_first_process
from m2rag_train.trainer import (
    CHECKPOINTS,
    GuardedTrainer,
    StepCallback,
    StepSeed,
    deferred_interrupt,
    last_checkpoint,
    on_cpu,
    one_device,
)

logger = logging.getLogger(__name__)


def run(recipe: ClassifyRecipe, options: RunOptions) -> Path | None:
    """Each task and seed that has no figures yet, then the table; see `Recipe.run`."""
    check_same_recipe(recipe, options.run)
    left = options.stop_after
    for settings in recipe.tasks:
        splits: _Splits | None = None
        for seed in settings.seeds:
            if result_file(options.run, settings.task, seed).exists():
                logger.info("%s, seed %d: finished already", settings.task, seed)
                continue
            if left == 0:
                return None
            splits = splits or _splits(recipe, settings, options)
            steps = _one(recipe, settings, seed, splits, replace(options, stop_after=left))
            if steps is None:
                return None
            left = None if left is None else left - steps
    return write_results(recipe, options.run) if is_first_process() else options.run / MARKDOWN_FILE


@dataclass(frozen=True)
class _Splits:
    """A task, tokenised."""

    tokenizer: PreTrainedTokenizerBase
    train: list[dict[str, Any]]
    validation: dict[str, list[dict[str, Any]]]


def _splits(recipe: ClassifyRecipe, settings: TaskSettings, options: RunOptions) -> _Splits:
    task = TASKS[settings.task]
    tokenizer = tokenizer_of(_base(recipe, options))

    def read(split: str) -> list[dict[str, Any]]:
        return tokenise(load_split(task, split, recipe.source, options.data), task, tokenizer, recipe.max_tokens)

    return _Splits(tokenizer, read("train"), {part: read(split) for part, split in task.splits})


def tokenise(
    examples: Sequence[Example], task: GlueTask, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[dict[str, Any]]:
    """Rows as the Trainer takes them, unpadded; of two texts the longer one is cut first."""
    texts = [[example.texts[i] for example in examples] for i in range(len(task.columns))]
    encoded = tokenizer(*texts, truncation=True, max_length=max_tokens)
    kind = float if task.n_labels == 1 else int
    return [
        {
            "input_ids": encoded["input_ids"][row],
            "token_type_ids": encoded["token_type_ids"][row],
            "attention_mask": encoded["attention_mask"][row],
            "labels": kind(example.label),
        }
        for row, example in enumerate(examples)
    ]


def tokenizer_of(base: Path) -> PreTrainedTokenizerBase:
    """The base's own tokenizer, or bert-base-uncased."""
    folder = base if base.is_dir() else base.parent
    if any((folder / name).is_file() for name in TOKENIZER_FILES):
        return AutoTokenizer.from_pretrained(folder)
    return BertTokenizer(str(VOCABULARY), do_lower_case=True)


def _base(recipe: ClassifyRecipe, options: RunOptions) -> Path:
    path = options.data / recipe.base
    return resolve_checkpoint(path if path.exists() else recipe.base)


def build_classifier(
    base: Path, settings: TaskSettings, *, seed: int, keep_pooler: bool, keys: dict[str, Any] | None = None
) -> M2BertForSequenceClassification:
    """The encoder of a checkpoint under a new classifier.

    Args:
        keys: configuration, for a base that has no `config.json`.
        keep_pooler: whether the dense layer of the pooling comes from the checkpoint, too; otherwise it is new.
    """
    described = (base if base.is_dir() else base.parent) / "config.json"
    given = None if described.is_file() else keys
    encoder = load_checkpoint(base, config=given, pooling=settings.pooling if keep_pooler else "mean")
    config = encoder.config
    config.pooling = settings.pooling
    config.num_labels = TASKS[settings.task].n_labels
    config.problem_type = "regression" if config.num_labels == 1 else "single_label_classification"
    torch.manual_seed(seed)
    model = M2BertForSequenceClassification(config)
    tensors = encoder.state_dict()
    new = {} if keep_pooler else {name: value for name, value in model.bert.state_dict().items() if "pooler." in name}
    model.bert.load_state_dict({**tensors, **new})
    return model


def _model_folder(run: Path, task: str, seed: int) -> Path:
    return run / "models" / f"{task}-{seed}"


def _one(recipe: ClassifyRecipe, settings: TaskSettings, seed: int, splits: _Splits, options: RunOptions) -> int | None:
    """Train and measure one task with one seed; steps of this call, None if it is not at its end."""
    if settings.start is None:
        start = _base(recipe, options)
    else:
        first = next(other.seeds[0] for other in recipe.tasks if other.task == settings.start)
        start = _model_folder(options.run, settings.start, first)
    model = build_classifier(start, settings, seed=seed, keep_pooler=settings.start is not None, keys=recipe.model)
    if recipe.max_tokens > model.config.max_tokens:
        raise RecipeError(f"max_tokens is {recipe.max_tokens}, {recipe.base} takes {model.config.max_tokens}")
    folder = options.run / "runs" / f"{settings.task}-{seed}"
    arguments = _arguments(recipe, settings, seed, folder / CHECKPOINTS, options.device)
    trainer = ClassifyTrainer(recipe, settings, seed, model, splits, arguments)
    last = last_checkpoint(folder / CHECKPOINTS)
    logger.info("%s, seed %d: %d steps%s", settings.task, seed, trainer.total, f", from {last.name}" if last else "")
    with deferred_interrupt() as interrupted:
        tokens = round(float(np.mean([len(row["input_ids"]) for row in splits.train])) * settings.batch_size)
        steps = StepCallback(
            trainer,
            interrupted,
            stop_after=options.stop_after,
            step_tokens=lambda step: tokens,
            total_steps=trainer.total,
        )
        trainer.add_callback(steps)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        done = trainer.state.global_step
        if done < trainer.total:
            logger.info("%s, seed %d: stopped after step %d; saved: run again to go on", settings.task, seed, done)
            if interrupted():
                raise KeyboardInterrupt
            return None
    metrics = trainer.figures()
    if trainer.is_world_process_zero():
        told = ", ".join(f"{name} {100 * value:.1f}" for name, value in metrics.items())
        logger.info("%s, seed %d: %s", settings.task, seed, told)
        if recipe.keeps(settings, seed):
            place = _model_folder(options.run, settings.task, seed)
            place.parent.mkdir(exist_ok=True)
            with replacing(place) as temporary:
                model.save_pretrained(temporary)
                splits.tokenizer.save_pretrained(temporary)
        write_json(result_file(options.run, settings.task, seed), {"metrics": metrics, "steps": done})
        shutil.rmtree(folder)
    trainer.accelerator.wait_for_everyone()
    return done - (0 if last is None else int(last.name.rpartition("-")[2]))


def _arguments(
    recipe: ClassifyRecipe, settings: TaskSettings, seed: int, checkpoints: Path, device: str | None
) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        max_grad_norm=recipe.max_grad_norm or 0.0,
        bf16=recipe.autocast,
        use_cpu=on_cpu(device),
        seed=seed,
        save_strategy="steps",
        save_steps=recipe.save_every,
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        average_tokens_across_devices=False,
        ddp_find_unused_parameters=False,
    )
    one_device(arguments, device)
    if settings.batch_size % arguments.world_size:
        raise RecipeError(
            f"batch_size ({settings.batch_size}) must be a multiple of processes ({arguments.world_size})"
        )
    arguments.per_device_train_batch_size = settings.batch_size // arguments.world_size
    return arguments


class ClassifyTrainer(GuardedTrainer):
    """Trainer of one task and seed; rows are drawn anew in every epoch.

    Attributes:
        total: optimizer steps of the run.
    """

    def __init__(
        self,
        recipe: ClassifyRecipe,
        settings: TaskSettings,
        seed: int,
        model: M2BertForSequenceClassification,
        splits: _Splits,
        arguments: TrainingArguments,
    ) -> None:
        self.run_name = f"{recipe.name}: {settings.task}, seed {seed}"
        self._task, self._validation = TASKS[settings.task], splits.validation
        self.total = settings.epochs * -(-len(splits.train) // settings.batch_size)
        groups = published_groups(
            model,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            filter_lr=recipe.filter_lr,
            filter_weight_decay=recipe.filter_weight_decay,
            position_lr=recipe.position_lr,
        )
        beta1, beta2 = recipe.betas
        optimizer = torch.optim.AdamW(groups, betas=(beta1, beta2), eps=recipe.eps)
        factor = partial(warmup_linear, total=self.total, warmup=round(recipe.warmup * self.total), final=0.0)
        super().__init__(
            model=model,
            args=arguments,
            data_collator=DataCollatorWithPadding(splits.tokenizer),
            train_dataset=splits.train,
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)),
        )
        self.add_callback(StepSeed(seed))

    def figures(self) -> dict[str, float]:
        """GLUE's metrics of the task, on all of its validation sets."""
        found = {}
        for part, rows in self._validation.items():
            output = self.predict(rows)
            labels, logits = np.asarray(output.label_ids), np.asarray(output.predictions)
            predictions = logits[:, 0] if self._task.n_labels == 1 else logits.argmax(1)
            for name in self._task.measures:
                found[name + part] = measure(name, labels, predictions)
        return found
