"""A made-up world where queries and documents share a hidden topic word, and a tiny model that must learn it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tiny_models import tiny_model

from m2rag.models import M2BertModel
from m2rag_train.export import save_embedder
from m2rag_train.finetuning.recipe import FinetuneRecipe
from m2rag_train.recipe import RunOptions, load_recipe

# A topic is asked for by one word and written about with another one: without training they have nothing in common.
ASKED = "apple bread chair daisy eagle flute grape house ivory jewel knife lemon mouse night ocean piano".split()
WRITTEN = "river stone tower cloud village pond yellow zebra anchor bridge candle coast oven forest garden hill".split()
FILLER = "the cat sat on a mat while dogs ran far away and rain fell over old houses near".split()


def text(topic: str, n_words: int, rng: np.random.Generator, share: float = 0.5) -> str:
    """Filler with the topic's word strewn in."""
    chosen = rng.choice(FILLER, n_words).tolist()
    for place in rng.choice(n_words, max(1, int(share * n_words)), replace=False):
        chosen[place] = topic
    return " ".join(chosen)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_world(data: Path, *, n_words: int = 24, queries: int = 3) -> Path:
    """Training pairs, 2 documents per topic, and a task on other documents with other queries."""
    rng = np.random.default_rng(0)
    documents, pairs, corpus, asked = [], [], [], []
    for number, (query_word, topic) in enumerate(zip(ASKED, WRITTEN, strict=True)):
        for copy in range(2):
            name = f"d{number}-{copy}"
            documents.append({"_id": name, "title": "", "text": text(topic, n_words, rng)})
            for _ in range(queries):
                pairs.append({"query": text(query_word, 5, rng), "document_id": name, "kind": "question"})
        corpus.append({"_id": f"t{number}", "text": text(topic, n_words, rng)})
        asked.append({"_id": f"q{number}", "text": text(query_word, 5, rng)})
    write_lines(data / "documents.jsonl", documents)
    write_lines(data / "pairs.jsonl", pairs)
    write_lines(data / "task" / "corpus.jsonl", corpus)
    write_lines(data / "task" / "queries.jsonl", asked)
    rows = "".join(f"q{number}\tt{number}\t1\n" for number in range(len(ASKED)))
    (data / "task" / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows, encoding="utf-8")
    return data


def base_model(**changes: Any) -> M2BertModel:
    """Texts' vectors are about the mean of their words' vectors, as after any pretraining."""
    model = tiny_model(
        **{
            "num_hidden_layers": 1,
            "hidden_dropout_prob": 0.1,
            "long_conv_l_max": 64,
            "max_position_embeddings": 64,
            **changes,
        }
    )
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.mul_(50)
    return model


def write_base(folder: Path, **changes: Any) -> Path:
    return save_embedder(base_model(**changes), folder, dtype=torch.float32)


def recipe_data(**changes: Any) -> dict[str, Any]:
    """A recipe as YAML holds it: 16 steps."""
    return {
        "kind": "finetune",
        "name": "tiny",
        "base": "base",
        "sources": [{"pairs": "pairs.jsonl", "documents": "documents.jsonl"}],
        "documents": 4,
        "queries_per_document": 2,
        "epochs": 2,
        "lr": 3e-3,
        "save_every": 5,
        "autocast": False,
        **changes,
    }


def make_recipe(folder: Path, **changes: Any) -> FinetuneRecipe:
    """The recipe through a YAML file."""
    path = folder / "recipe.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe_data(**changes)), encoding="utf-8")
    recipe = load_recipe(path)
    assert isinstance(recipe, FinetuneRecipe)
    return recipe


def options(run: Path, data: Path, stop_after: int | None = None) -> RunOptions:
    run.mkdir(parents=True, exist_ok=True)
    return RunOptions(run=run, data=data, device="cpu", stop_after=stop_after)
