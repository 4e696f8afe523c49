"""The recipe of a distillation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2rag.models import M2BertConfig
from m2rag_train.recipe import Recipe, RunOptions, model_config


@dataclass(frozen=True)
class Source:
    """Where training documents come from, and how many tokens of them are used.

    Attributes:
        documents: JSON-lines file, relative to the data folder.
        tokens: documents are drawn at random until this many tokens are reached.
        pairs: file of query-document pairs, for documents without sections.
        headings, sentences: short texts drawn per document, at most.
    """

    documents: str
    tokens: int
    pairs: str | None = None
    headings: int = 4
    sentences: int = 4


@dataclass(frozen=True)
class TeacherSettings:
    """Teacher vectors: one per span of `span_tokens` tokens of a document, and one per short text.

    Where the teacher's vectors are wider than the student, their largest directions are the targets; where they are
    narrower, all of them. The student's cosines are the teacher's, its single numbers are not.

    Attributes:
        model: folder of a sentence-transformers model, or its name on the model hub.
        span_tokens: of the student; the teacher reads the text that they cover.
        max_short_tokens: the same for short texts, whose rest is not used.
        min_document_tokens: shorter documents are not used.
        max_document_tokens: the rest of longer ones is not used.
        shard_tokens: tokens of one file of vectors.
        seed: of the draw of documents.
    """

    model: str
    span_tokens: int = 254
    max_short_tokens: int = 126
    min_document_tokens: int = 500
    max_document_tokens: int = 32766
    shard_tokens: int = 1_000_000
    seed: int = 0


@dataclass(frozen=True)
class Stage:
    """A stretch of the run with its own mixture.

    Attributes:
        steps: optimizer steps.
        window_tokens: longest window drawn from a document.
        window_fractions: a window's length is one of these fractions of min(document, window_tokens), at random.
        documents: windows per step.
        short_texts: short texts per step, for distillation.
        queries: short texts per window that must find it (contrastive); 0 switches the contrastive loss off.
        contrastive_weight, document_weight: factors of the contrastive and the whole-window distillation loss.
    """

    steps: int
    window_tokens: int
    window_fractions: list[float] = field(default_factory=lambda: [0.1, 0.3, 1.0])
    documents: int = 2
    short_texts: int = 64
    queries: int = 0
    contrastive_weight: float = 0.0
    document_weight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "window_tokens", "documents", "short_texts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if not self.window_fractions or not all(0 < fraction <= 1 for fraction in self.window_fractions):
            raise ValueError(f"window_fractions is {self.window_fractions}, must be fractions above 0 and up to 1")


@dataclass(frozen=True)
class DistillRecipe(Recipe):
    """Distillation of a sentence encoder into a whole-document encoder.

    Attributes:
        model: keys of `M2BertConfig`.
        embedding_scale: factor of what the student's word embeddings start from: the teacher's where it has the same
            vocabulary and width, else its vectors of each token alone.
        classification_weight, classification_temperature: cross entropy among the step's teacher vectors.
        bank_size: documents of earlier steps kept as extra negatives of the contrastive loss.
        contrastive_temperature: of that loss.
        lr, embedding_lr, filter_lr: peak learning rates; weight_decay applies to matrices only.
        betas: the two of AdamW.
        warmup_steps: of the learning rate, linear from 0.
        final_lr: fraction of the peak at the end of the cosine.
        max_grad_norm: the gradient is scaled down to this norm.
        seed: of the student's first weights and of every batch.
        save_every: steps between saved states.
        autocast: matrix products in bfloat16.
    """

    name: str
    sources: list[Source]
    model: dict[str, Any]
    stages: list[Stage]
    teacher: TeacherSettings
    embedding_scale: float = 4.0
    classification_weight: float = 0.3
    classification_temperature: float = 0.05
    contrastive_temperature: float = 0.05
    bank_size: int = 256
    lr: float = 1.5e-3
    embedding_lr: float = 1e-3
    filter_lr: float = 1.5e-3
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    warmup_steps: int = 40
    final_lr: float = 0.03
    max_grad_norm: float = 1.0
    seed: int = 0
    save_every: int = 100
    autocast: bool = True

    def __post_init__(self) -> None:
        if len(self.betas) != 2:
            raise ValueError(f"betas has {len(self.betas)} values, must have 2")
        if not self.stages:
            raise ValueError("stages is empty")
        if (pooling := self.model_config().pooling) != "mean":
            raise ValueError(f"model: pooling is {pooling!r}, must be 'mean'")
        max_tokens = self.model_config().max_tokens
        for number, stage in enumerate(self.stages):
            if stage.window_tokens > max_tokens:
                raise ValueError(
                    f"stages[{number}]: window_tokens is {stage.window_tokens}, the model takes {max_tokens}"
                )

    def model_config(self) -> M2BertConfig:
        """The student's configuration.

        Raises:
            ValueError: a key is unknown or its value invalid.
        """
        return model_config(self.model)

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """The stage that step `step` (from 0) belongs to; the last one beyond the end."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    def run(self, options: RunOptions) -> Path | None:
        """Compute the teacher's vectors, train, and write the model; see `Recipe.run`."""
        from m2rag_train.distillation.loop import run

        return run(self, options)
