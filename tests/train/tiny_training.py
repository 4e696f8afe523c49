"""Tiny recipes, files and shards for the tests of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from m2rag_train.distillation.cache import Shard
from m2rag_train.distillation.recipe import DistillRecipe

WIDTH = 16
SPAN = 6
WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lamda mu nu xi omicron pi rho sigma tau phi".split()


def words(n: int, seed: int) -> str:
    """`n` words, one token each."""
    return " ".join(np.random.default_rng(seed).choice(WORDS, n))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


TEACHER = {
    "model": "teacher",
    "span_tokens": SPAN,
    "max_short_tokens": 8,
    "min_document_tokens": 10,
    "max_document_tokens": 60,
    "shard_tokens": 200,
}

MakeRecipe = Callable[..., DistillRecipe]


def recipe_data(**changes: Any) -> dict[str, Any]:
    """A recipe as YAML holds it; 30 steps in two stages."""
    base: dict[str, Any] = {
        "kind": "distill",
        "name": "tiny",
        "sources": [
            {"documents": "sectioned.jsonl", "tokens": 10_000},
            {"documents": "paired_docs.jsonl", "pairs": "pairs.jsonl", "tokens": 10_000},
        ],
        "teacher": TEACHER,
        "model": {
            "vocab_size": 25,
            "hidden_size": WIDTH,
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "hidden_dropout_prob": 0.0,
            "long_conv_l_max": 64,
            "max_position_embeddings": 64,
            "hyena_filter_order": 8,
            "use_positional_encodings": False,
            "filter": "multiscale",
            "padding": "masked",
            "pooling": "mean",
        },
        "stages": [
            {"steps": 20, "window_tokens": 32, "short_texts": 8},
            {
                "steps": 10,
                "window_tokens": 64,
                "window_fractions": [1.0],
                "documents": 3,
                "short_texts": 6,
                "queries": 2,
                "contrastive_weight": 0.2,
                "document_weight": 0.5,
            },
        ],
        "bank_size": 5,
        "lr": 1e-2,
        "embedding_lr": 1e-2,
        "filter_lr": 1e-2,
        "warmup_steps": 3,
        "save_every": 7,
    }
    return {**base, **changes}


def make_shard(lengths: list[int], shorts: list[tuple[int, str, int]], *, width: int = 4, seed: int = 0) -> Shard:
    """A shard of random vectors: documents of these lengths, no token twice; short texts (document, kind, length)."""
    rng = np.random.default_rng(seed)

    def starts(counts: list[int]) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    spans = [-(-length // SPAN) for length in lengths]
    return Shard(
        tokens=(5 + rng.permutation(sum(lengths))).astype(np.uint16),
        document_starts=starts(lengths),
        span_starts=starts(spans),
        span_vectors=rng.standard_normal((sum(spans), width)).astype(np.float16),
        short_tokens=rng.integers(5, 25, sum(n for _, _, n in shorts)).astype(np.uint16),
        short_starts=starts([n for _, _, n in shorts]),
        short_vectors=rng.standard_normal((len(shorts), width)).astype(np.float16),
        short_document=np.array([d for d, _, _ in shorts], dtype=np.int64),
        short_kind=np.array([k for _, k, _ in shorts], dtype="U16"),
    )
