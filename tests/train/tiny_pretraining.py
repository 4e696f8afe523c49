"""Texts with a structure that a tiny model learns in seconds, and tiny recipes to learn it with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from m2rag_train.pretraining.recipe import PretrainRecipe
from m2rag_train.recipe import RunOptions, load_recipe

# One token each; every one is followed by the next, so neighbours tell a hidden word, and its frequency does not.
CYCLE = "one two three four five six seven eight nine ten red blue green black white north south east west home".split()
UNIGRAM_LOSS = float(np.log(len(CYCLE)))

MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "long_conv_l_max": 32,
    "max_position_embeddings": 32,
    "hyena_filter_order": 16,
    "initializer_range": 0.1,  # the usual 0.02 takes a width of 32 many more steps to leave
}


def cycle_text(n_words: int, start: int) -> str:
    return " ".join(CYCLE[(start + i) % len(CYCLE)] for i in range(n_words))


def write_cycles(folder: Path, n_documents: int = 200, seed: int = 0) -> Path:
    """`cycles.jsonl`: documents of 20 to 90 words."""
    rng = np.random.default_rng(seed)
    rows = [{"text": cycle_text(int(rng.integers(20, 90)), int(rng.integers(20)))} for _ in range(n_documents)]
    path = folder / "cycles.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pretrain_data(**changes: Any) -> dict[str, Any]:
    """A recipe as YAML holds it: 12 steps of 8 rows, saved every 4."""
    base: dict[str, Any] = {
        "kind": "pretrain",
        "name": "tiny",
        "sources": [
            {"name": "short", "files": ["cycles.jsonl"], "mode": "natural"},
            {"name": "long", "files": ["cycles.jsonl"], "mode": "concatenated", "weight": 2},
        ],
        "steps": 12,
        "batch_size": 8,
        "micro_batch_size": 4,
        "model": MODEL,
        "held_out": 0.1,
        "evaluation": {"rows": 16, "every": 100},
        "lr": 1e-2,
        "filter_lr": 1e-2,
        "bf16": False,
        "log_every": 4,
        "save_every": 4,
    }
    data = {**base, **changes}
    return {key: value for key, value in data.items() if value is not None}


def write_recipe(folder: Path, data: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


def make_recipe(folder: Path, **changes: Any) -> PretrainRecipe:
    recipe = load_recipe(write_recipe(folder, pretrain_data(**changes)))
    assert isinstance(recipe, PretrainRecipe)
    return recipe


def options(data: Path, run: Path, **more: Any) -> RunOptions:
    run.mkdir(parents=True, exist_ok=True)
    return RunOptions(run=run, data=data, device="cpu", **more)


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer of the newest checkpoint of a run."""
    from safetensors.torch import load_file

    from m2rag_train.trainer import CHECKPOINTS, last_checkpoint

    checkpoint = last_checkpoint(folder / CHECKPOINTS)
    assert checkpoint is not None
    tensors = dict(load_file(checkpoint / "model.safetensors"))
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    for number, state in optimizer["state"].items():
        tensors.update({f"optimizer.{number}.{name}": value for name, value in state.items()})
    return tensors


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    differing = [name for name in one if not torch.equal(one[name], other[name])]
    assert not differing, differing
