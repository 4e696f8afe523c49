"""The recipe of GLUE fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from m2rag_train.classification.tasks import TASKS
from m2rag_train.recipe import Recipe, RunOptions, check_positive, model_config


@dataclass(frozen=True)
class TaskSettings:
    """One task, trained once for each seed.

    Attributes:
        task: cola, sst2, mrpc, stsb, qqp, mnli, qnli or rte.
        epochs, batch_size: of the training.
        lr, weight_decay: of everything but the filters. The decay is AdamW's of torch, which subtracts lr x decay.
        seeds: of the new classifier, the order of rows and dropout.
        start: an earlier task of the list whose model (first seed) is the start, instead of the base.
        pooling: what the classifier sees: tanh of a dense layer of the first token, or of the mean.
        metrics: whose mean is the task's score; null: all that GLUE reports.
        keep: keep the models, in `models/<task>-<seed>`; those that another task starts from are kept anyway.
    """

    task: str
    lr: float
    epochs: int
    batch_size: int
    weight_decay: float = 0.1
    seeds: list[int] = field(default_factory=lambda: [0])
    start: str | None = None
    pooling: Literal["cls_tanh", "mean_tanh"] = "cls_tanh"
    metrics: list[str] | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}, must be one of {', '.join(TASKS)}")
        check_positive(self, "lr", "epochs", "batch_size")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}, must be different numbers, at least one")
        known = TASKS[self.task].metrics
        if self.metrics is not None and (not self.metrics or set(self.metrics) - set(known)):
            raise ValueError(f"metrics is {self.metrics}, must be some of {', '.join(known)}")


@dataclass(frozen=True)
class ClassifyRecipe(Recipe):
    """Fine-tuning on GLUE tasks, one after the other; finished ones are not run again.

    The result is `results.json` and `results.md` in the folder of the run.

    Attributes:
        base: pretrained M2-BERT: a folder or weights file under the data folder, a bundled name, or a name on the hub.
        tasks: what is trained, in this order.
        model: keys of `M2BertConfig`, for a base without a `config.json`.
        source: name of the dataset on the model hub ("nyu-mll/glue"), or a folder under the data folder with a
            folder for each task: `train`, `validation` (MNLI: `validation_matched`, `validation_mismatched`) as .jsonl,
            .jsonl.zst, .tsv or .parquet, columns as in that dataset.
        max_tokens: of both texts with special tokens; the longer one is cut first.
        betas, eps: of AdamW.
        filter_lr, filter_weight_decay: of the MLPs that make the long convolutions' taps.
        position_lr: of the positional features those MLPs start from, which have no decay.
        warmup: fraction of the steps in which the learning rate rises; then it falls to 0 in a straight line.
        max_grad_norm: the gradient is scaled down to this norm; null: never.
        autocast: matrix products in bfloat16.
        save_every: steps between two saved states within a task.
    """

    name: str
    base: str
    tasks: list[TaskSettings]
    model: dict[str, Any] | None = None
    source: str = "nyu-mll/glue"
    max_tokens: int = 128
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-6
    filter_lr: float = 1e-3
    filter_weight_decay: float = 0.1
    position_lr: float = 1e-5
    warmup: float = 0.06
    max_grad_norm: float | None = None
    autocast: bool = False
    save_every: int = 1000

    def __post_init__(self) -> None:
        check_positive(self, "max_tokens", "eps", "filter_lr", "position_lr", "max_grad_norm", "save_every")
        if len(self.betas) != 2:
            raise ValueError(f"betas has {len(self.betas)} values, must have 2")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}, must be a fraction from 0 and below 1")
        if not self.tasks:
            raise ValueError("tasks is empty")
        if self.model is not None:
            model_config(self.model)
        earlier: set[str] = set()
        for number, settings in enumerate(self.tasks):
            if settings.task in earlier:
                raise ValueError(f"tasks[{number}]: {settings.task} is there twice")
            if settings.start is not None and settings.start not in earlier:
                raise ValueError(f"tasks[{number}]: start is {settings.start!r}, which is no earlier task of the list")
            earlier.add(settings.task)

    def keeps(self, settings: TaskSettings, seed: int) -> bool:
        """Whether the model of a task and seed is written: asked for, or the start of another task."""
        return settings.keep or (
            seed == settings.seeds[0] and any(other.start == settings.task for other in self.tasks)
        )

    def run(self, options: RunOptions) -> Path | None:
        """Train and measure what is not finished yet, and sum up; see `Recipe.run`."""
        from m2rag_train.classification.loop import run

        return run(self, options)
