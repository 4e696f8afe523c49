"""The recipe of a pretraining."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from m2rag.models import M2BertConfig
from m2rag_train.recipe import Recipe, RunOptions, check_positive, model_config


@dataclass(frozen=True)
class TextSource:
    """Where text comes from, and how rows are made of it. Either `files` or `dataset` is given.

    Attributes:
        name: for the log and the losses of the evaluation.
        files: paths or patterns relative to the data folder: .txt (one document each), .jsonl, .jsonl.zst (one document
            per line, under `text_key` or in "sections" of {"heading", "text"}).
        dataset, subset, split: of the `datasets` library, read as a stream.
        text_key: where a row holds its text.
        mode: "natural", every document is a row, cut at the model's length; "concatenated", documents are strung
            together, a [SEP] behind each, and cut into rows of exactly the model's length.
        weight: share of this source among all rows of the run, relative to the others' weights.
        max_tokens: reading stops after this many.
    """

    name: str
    files: list[str] = field(default_factory=list)
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    text_key: str = "text"
    mode: Literal["natural", "concatenated"] = "natural"
    weight: float = 1.0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        check_positive(self, "weight", "max_tokens")
        if bool(self.files) == (self.dataset is not None):
            raise ValueError(f"source {self.name!r}: give either files or dataset")


@dataclass(frozen=True)
class Evaluation:
    """The masked-language-model loss of documents that are held out of training.

    Attributes:
        rows: of each source, at most.
        every: steps between two evaluations; the last step has one in any case.
        mask: fraction of tokens to predict, the same ones each time; that of the published evaluation.
    """

    rows: int = 256
    every: int = 2000
    mask: float = 0.15

    def __post_init__(self) -> None:
        check_positive(self, "rows", "every", "mask")
        if self.mask >= 1:
            raise ValueError(f"mask is {self.mask}, must be a fraction below 1")


@dataclass(frozen=True)
class PretrainRecipe(Recipe):
    """Masked-language modelling from scratch (`model`) or from a checkpoint on (`base`).

    Attributes:
        sources: texts with their weights.
        steps: optimizer steps of the whole run.
        batch_size: rows per step, over all processes.
        model: keys of `M2BertConfig`.
        base: checkpoint with its masked-language-model head.
        max_tokens: length of rows; default: the model's.
        micro_batch_size: rows that a device computes at a time; the rest of the batch is accumulated.
        packing: "padded", every row is padded to the longest of its micro-batch, which holds rows of like length.
            "packed", natural documents of a micro-batch are strung together, [CLS] and [SEP] around each, into as few
            rows as hold them. Fewer pads are computed; but a convolution knows no segments, so documents of one row see
            each other, and positions count from the row's beginning: what they learn is in part about strangers.
        mask: fraction of tokens to predict: of these 80 % become [MASK], 10 % any token, 10 % stay.
        held_out: fraction of every source's documents that are evaluated on and never trained on.
        evaluation: of these.
        lr, weight_decay: of everything but the filters. The decay is AdamW's of torch, which subtracts lr x decay.
        filter_lr, filter_weight_decay: of the MLPs that make the long convolutions' taps.
        position_lr: of the positional features those MLPs start from, which have no decay.
        betas, eps: of AdamW.
        warmup: fraction of the steps in which the learning rate rises from 0; then it falls linearly to
            `final_lr` times its peak.
        max_grad_norm: the gradient is scaled down to this norm.
        seed: of the first weights, the order of rows and the masks.
        bf16: matrix products in bfloat16.
        gradient_checkpointing: keep only the layers' inputs and compute the rest again: less memory, a third more time.
        workers: processes that prepare batches, per device.
        log_every, save_every: steps between two lines of the log, and two saved states.
        token_cache: folder of the tokenised sources, for several runs to share; default: in the run's folder.
    """

    name: str
    sources: list[TextSource]
    steps: int
    batch_size: int
    model: dict[str, Any] | None = None
    base: str | None = None
    max_tokens: int | None = None
    micro_batch_size: int = 8
    packing: Literal["padded", "packed"] = "padded"
    mask: float = 0.3
    held_out: float = 0.01
    evaluation: Evaluation = field(default_factory=Evaluation)
    lr: float = 8e-4
    weight_decay: float = 0.0125
    filter_lr: float = 1e-3
    filter_weight_decay: float = 0.1
    position_lr: float = 1e-5
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-6
    warmup: float = 0.06
    final_lr: float = 0.02
    max_grad_norm: float = 1.0
    seed: int = 17
    bf16: bool = True
    gradient_checkpointing: bool = False
    workers: int = 0
    log_every: int = 20
    save_every: int = 1000
    token_cache: str | None = None

    def __post_init__(self) -> None:
        check_positive(
            self, "steps", "batch_size", "max_tokens", "micro_batch_size", "mask", "lr", "filter_lr", "eps",
            "max_grad_norm", "log_every", "save_every",
        )  # fmt: skip
        for name in ("mask", "held_out", "warmup", "final_lr"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be a fraction below 1")
        if len(self.betas) != 2:
            raise ValueError(f"betas has {len(self.betas)} values, must have 2")
        if not self.sources:
            raise ValueError("sources is empty")
        if len({source.name for source in self.sources}) < len(self.sources):
            raise ValueError("two sources have the same name")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size ({self.micro_batch_size})"
            )
        if (self.model is None) == (self.base is None):
            raise ValueError("give either model (from scratch) or base (a checkpoint to go on from)")
        if self.model is not None:
            config = self.model_config()
            if self.max_tokens is not None and self.max_tokens > config.max_tokens:
                raise ValueError(f"max_tokens is {self.max_tokens}, the model takes {config.max_tokens}")

    def model_config(self) -> M2BertConfig:
        """The configuration of a model from scratch.

        Raises:
            ValueError: a key is unknown or its value invalid, or the pooling has weights, which this trains none of.
        """
        config = model_config({"pooling": "mean", **(self.model or {})})
        if config.pooling != "mean":
            raise ValueError(f"model: pooling is {config.pooling!r}; masked-language modelling trains 'mean' only")
        return config

    def run(self, options: RunOptions) -> Path | None:
        """Tokenise the sources, train, and write the model with its head; see `Recipe.run`."""
        from m2rag_train.pretraining.loop import run

        return run(self, options)
