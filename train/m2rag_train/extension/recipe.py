"""The recipe of a context extension."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from m2rag_train.pretraining.recipe import TextSource
from m2rag_train.recipe import Recipe, RunOptions, check_positive


@dataclass(frozen=True)
class ExtendRecipe(Recipe):
    """A checkpoint with its masked-language-model head, for longer inputs.

    Every way of extending it is tried on real text, and the losses are written to `extension.json` in the run's folder.
    `m2rag_train.extension.extend.extend_context` says what the ways are.

    Attributes:
        base: the checkpoint.
        max_tokens: the new length.
        positions, filters: how the model in `run/model` is made.
        sources: text to measure the loss on; empty: nothing is measured. With the `sources`, `held_out` and
            `token_cache` of the pretraining that made the base it is text that the base has never seen.
        rows: of the new length, per source; before, the same text is read in rows of the old one.
        batch_size: rows of the new length that are computed together.
        mask: fraction of tokens to predict.
        held_out: fraction of every source's documents that are measured on.
        token_cache: folder of the tokenised sources; default: in the run's folder.
    """

    name: str
    base: str
    max_tokens: int
    positions: Literal["tile", "interpolate"] = "tile"
    filters: Literal["keep", "stretch"] = "keep"
    sources: list[TextSource] = field(default_factory=list)
    rows: int = 16
    batch_size: int = 1
    mask: float = 0.15
    held_out: float = 0.01
    seed: int = 17
    token_cache: str | None = None

    def __post_init__(self) -> None:
        check_positive(self, "max_tokens", "rows", "batch_size", "mask", "held_out")
        if self.mask >= 1 or self.held_out >= 1:
            raise ValueError("mask and held_out are fractions below 1")

    def run(self, options: RunOptions) -> Path | None:
        """Measure, extend, and write the model with its head; see `Recipe.run`."""
        from m2rag_train.extension.measure import run

        return run(self, options)
