"""Masked rows and the batches they go into."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from m2rag.errors import CheckpointError
from m2rag.models import M2BertConfig
from m2rag.tokenizer import TextTokenizer
from m2rag_train.pretraining.mixture import Mixture, Rows

IGNORED = -100


class Masking:
    """Hides tokens and says what they were.

    Args:
        tokenizer: must have a [MASK].
        fraction: of a row's tokens to predict, rounded, at least one; special tokens are none of them.

    Raises:
        CheckpointError: the tokenizer has no [MASK].
    """

    def __init__(self, tokenizer: TextTokenizer, fraction: float) -> None:
        mask_id = tokenizer.vocabulary.get("[MASK]")
        if mask_id is None:
            raise CheckpointError("the tokenizer has no [MASK] token, which masked-language modelling needs")
        self.mask_id = mask_id
        self.fraction = fraction
        self.vocab_size = tokenizer.vocab_size
        self.special = np.array([*tokenizer.prefix, *tokenizer.suffix])

    def __call__(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Ids (L,) -> ids with some hidden, and labels: the id where one is to be predicted, -100 elsewhere.

        Of the tokens to predict 80 % become [MASK], 10 % any token of the vocabulary, 10 % stay.
        """
        candidates = np.flatnonzero(~np.isin(ids, self.special))
        wanted = min(max(round(self.fraction * len(candidates)), 1), len(candidates))
        chosen = rng.choice(candidates, wanted, replace=False)
        labels = np.full_like(ids, IGNORED)
        labels[chosen] = ids[chosen]
        hidden = ids.copy()
        fate = rng.random(len(chosen))
        hidden[chosen[fate < 0.8]] = self.mask_id
        other = chosen[(fate >= 0.8) & (fate < 0.9)]
        hidden[other] = rng.integers(self.vocab_size, size=len(other))
        return hidden, labels


class TrainingSamples(Dataset):
    """Samples of a run, masked by seed and number: `samples[i]` is {"input_ids", "labels"}, (L,) each."""

    def __init__(self, mixture: Mixture, masking: Masking, n_samples: int) -> None:
        self.mixture, self.masking, self.n_samples = mixture, masking, n_samples

    def __len__(self) -> int:
        return self.n_samples

    def __getitem__(self, sample: int) -> dict[str, np.ndarray]:
        ids, labels = self.masking(self.mixture.ids(sample), np.random.default_rng([self.mixture.seed, 1, sample]))
        return {"input_ids": ids, "labels": labels}


class HeldOutRows(Dataset):
    """The first rows of a source's held-out part, masked the same way each time."""

    def __init__(self, rows: Rows, masking: Masking, n_rows: int, seed: int) -> None:
        self.rows, self.masking, self.seed = rows, masking, seed
        self.n_rows = min(n_rows, len(rows))

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        ids, labels = self.masking(self.rows.ids(row), np.random.default_rng([self.seed, 2, row]))
        return {"input_ids": ids, "labels": labels}


@dataclass(frozen=True)
class StepOrder(Sampler):
    """Numbers of the samples from `first` on, `batch_size` per step; within a step by length.

    Rows of like length then share a micro-batch, and what a step learns from stays the same.
    """

    mixture: Mixture
    n_samples: int
    batch_size: int
    first: int = 0

    def __len__(self) -> int:
        # Of the whole run, also where a resumed one leaves out its beginning: the trainer counts steps by it.
        return self.n_samples

    def __iter__(self) -> Iterator[int]:
        for start in range(self.first, self.n_samples, self.batch_size):
            samples = np.arange(start, start + self.batch_size)
            yield from samples[np.argsort(self.mixture.lengths(samples), kind="stable")].tolist()


class Collator:
    """Rows -> {"input_ids", "attention_mask", "labels"}, (B, L) each.

    Args:
        config: how the model treats pads: "masked" ones may be as few as one likes, others are mixed like tokens, and
            rows are filled up to `max_tokens`.
        max_tokens: longest row.
        packed: string rows together as long as they fit into `max_tokens`.
    """

    def __init__(self, config: M2BertConfig, max_tokens: int, *, packed: bool = False) -> None:
        self.pad_id = config.pad_token_id or 0
        self.fixed = config.padding != "masked"
        self.max_tokens = max_tokens
        self.packed = packed

    def __call__(self, samples: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        rows = _packed(samples, self.max_tokens) if self.packed else samples
        longest = max(len(row["input_ids"]) for row in rows)
        width = self.max_tokens if self.fixed else bucketed(longest, self.max_tokens)
        batch: dict[str, Any] = {
            "input_ids": torch.full((len(rows), width), self.pad_id),
            "attention_mask": torch.zeros(len(rows), width, dtype=torch.long),
            "labels": torch.full((len(rows), width), IGNORED),
        }
        for number, row in enumerate(rows):
            n = len(row["input_ids"])
            batch["attention_mask"][number, :n] = 1
            for key in ("input_ids", "labels"):
                batch[key][number, :n] = torch.from_numpy(row[key])
        return batch


def bucketed(length: int, max_tokens: int) -> int:
    """The next of 32, 48, 64, 96, 128, ... up to `max_tokens`: kernels and FFT plans are made for few lengths only."""
    width = 32
    while width < length:
        width = width * 3 // 2 if width & (width - 1) == 0 else width * 4 // 3
    return min(width, max_tokens)


def _packed(samples: Sequence[dict[str, np.ndarray]], max_tokens: int) -> list[dict[str, np.ndarray]]:
    """Samples strung together into few rows: the longest first, each into the first row that has room."""
    rows: list[list[dict[str, np.ndarray]]] = []
    room: list[int] = []
    for sample in sorted(samples, key=lambda sample: -len(sample["input_ids"])):
        length = len(sample["input_ids"])
        place = next((number for number, free in enumerate(room) if free >= length), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(max_tokens)
        rows[place].append(sample)
        room[place] -= length
    return [{key: np.concatenate([s[key] for s in row]) for key in ("input_ids", "labels")} for row in rows]
