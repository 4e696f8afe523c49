"""Tiny GLUE: a few words per task decide the label, and files as large as a screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tiny_models import saved
from tiny_training import write_lines
from transformers import BertTokenizer

from m2rag_train.classification.recipe import ClassifyRecipe
from m2rag_train.classification.tasks import TASKS
from m2rag_train.recipe import load_recipe

NEUTRAL = "the river runs past old stone houses and a small garden with many trees near our town".split()
MARKS = ("winter", "summer", "autumn")


def save_base(folder: Path, **changes: Any) -> Path:
    """An M2-BERT that knows these words alone, with its tokenizer."""
    folder.mkdir(parents=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({*NEUTRAL, *MARKS})]))
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    settings = {"hidden_dropout_prob": 0.0, "num_hidden_layers": 1, "initializer_range": 0.3, **changes}
    return saved(folder, vocab_size=32, long_conv_l_max=32, max_position_embeddings=32, **settings)


def row(task: str, rng: np.random.Generator) -> dict[str, Any]:
    """A row whose label is the season in its last text; a similarity counts how often."""
    known = TASKS[task]
    texts = [" ".join(rng.choice(NEUTRAL, 6)) for _ in known.columns]
    if known.n_labels == 1:
        count = int(rng.integers(6))
        texts[-1] = " ".join(rng.permutation([*rng.choice(NEUTRAL, 6 - count), *["winter"] * count]))
        return {**dict(zip(known.columns, texts, strict=True)), "label": float(count)}
    label = int(rng.integers(known.n_labels))
    texts[-1] = " ".join(rng.permutation([*texts[-1].split(), MARKS[label]]))
    return {**dict(zip(known.columns, texts, strict=True)), "label": label}


def write_task(folder: Path, task: str, n_train: int = 96, n_validation: int = 60) -> None:
    """`folder/task/<split>.jsonl`."""
    splits = {"train": n_train, **{split: n_validation for _, split in TASKS[task].splits}}
    for number, (split, count) in enumerate(splits.items()):
        rng = np.random.default_rng([sorted(TASKS).index(task), number])
        write_lines(folder / task / f"{split}.jsonl", [row(task, rng) for _ in range(count)])


def task_settings(task: str, **changes: Any) -> dict[str, Any]:
    return {"task": task, "lr": 5e-3, "epochs": 3, "batch_size": 16, "weight_decay": 0.01, **changes}


def classify_data(base: Path, tasks: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    keys = {"kind": "classify", "name": "tiny-glue", "base": str(base), "source": "glue", "tasks": tasks}
    return {**keys, "max_tokens": 24, "save_every": 10, **changes}


def load(path: Path, data: dict[str, Any]) -> ClassifyRecipe:
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    recipe = load_recipe(path)
    assert isinstance(recipe, ClassifyRecipe)
    return recipe
