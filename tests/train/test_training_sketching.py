"""A sketch for a model without one: weights from counts, directions from vectors, a folder that loads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_models import TOKENIZER, saved, sentence, tiny_model

from m2rag import M2Embedder
from m2rag.models import load_checkpoint
from m2rag_train.errors import RecipeError
from m2rag_train.recipe import RunOptions, load_recipe
from m2rag_train.sketching import inverse_document_frequencies, principal_directions

SIZE = 24


def sketched(folder: Path, **changes: Any) -> Path:
    documents = [{"_id": str(number), "text": sentence(60, seed=number)} for number in range(12)]
    pairs = [{"query": sentence(5, seed=100 + number), "document_id": str(number)} for number in range(12)]
    for name, rows in (("documents", documents), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {
        "kind": "sketch",
        "name": "words",
        "base": "base",
        "size": SIZE,
        "sources": [{"pairs": "pairs.jsonl", "documents": "documents.jsonl"}],
        "dtype": "float32",
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    (folder / "run").mkdir(exist_ok=True)
    out = load_recipe(path).run(RunOptions(run=folder / "run", data=folder, device="cpu"))
    assert out == folder / "run" / "model"
    return out


def test_weights_are_counted_over_pieces() -> None:
    # Token 7 is in each of three pieces, 8 in one of them, twice; 9 in none.
    documents = [np.array([7] * 256 + [7, 8, 8]), np.array([7])]
    found = inverse_document_frequencies(documents, 10)
    assert found[7] == pytest.approx(math.log(4 / 3.5) + 0.1)
    assert found[8] == pytest.approx(math.log(4 / 1.5) + 0.1)
    assert found[9] == pytest.approx(math.log(4 / 0.5) + 0.1)
    assert inverse_document_frequencies([np.array([7])] * 50, 10)[7] >= 0.1


def test_directions_hold_most_first() -> None:
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    vectors = torch.randn(4000, 6, generator=generator) * torch.tensor([3.0, 5.0, 1.0, 0.1, 0.1, 0.1]) @ turned
    found = principal_directions(vectors, 2)
    expected = turned[[1, 0]]
    torch.testing.assert_close((found @ expected.T).abs(), torch.eye(2), atol=0.05, rtol=0)


def test_a_sketched_model_is_the_base_and_its_words(tmp_path: Path) -> None:
    base = tiny_model()
    saved(tmp_path / "base")
    out = sketched(tmp_path, dimensions=[8])
    model = load_checkpoint(out)
    assert model.config.sketch_size == SIZE and model.config.matryoshka_dimensions == [8, 32]
    for name, value in base.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)
    sketch = model.sketch
    directions = sketch.projection.weight
    torch.testing.assert_close(directions @ directions.T, torch.eye(32 - SIZE), atol=1e-5, rtol=0)
    special = [*TOKENIZER.prefix, *TOKENIZER.suffix, 0]
    weights = sketch.log_sketch_weights.exp()
    assert (weights[special] < 1e-4).all()
    rare, common = TOKENIZER.encode("zebra the").ids
    assert weights[rare] > 3 * weights[common]
    torch.testing.assert_close(sketch.log_mean_weights[rare], sketch.log_sketch_weights[rare] / 2)
    # Words that are there count, whatever untrained layers make of them.
    embedder = M2Embedder(str(out))
    documents = ["a zebra sat on a mat", "the dogs ran far away"]
    query = embedder.embed_query("zebra")[-SIZE:]
    near = np.asarray(embedder.embed_documents(documents).vectors)[:, -SIZE:] @ query
    assert near[0] > near[1] + 0.1
    assert sketched(tmp_path) == out, "a finished run is left as it is"


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        ({"sketch_size": 8}, {}, "words: base has a sketch of 8 channels already"),
        ({"padding": "max_length"}, {}, "words: base: .*needs pooling 'mean' and padding 'masked'"),
        ({}, {"size": 32}, "words: base: .*sketch_size is 32, must be from 0 to hidden_size - 1"),
        ({}, {"size": 0}, "size is 0, must be above 0"),
        ({}, {"sources": []}, "sources is empty"),
    ],
)
def test_what_cannot_be_sketched_is_named(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    saved(tmp_path / "base", **base)
    with pytest.raises(RecipeError, match=message):
        sketched(tmp_path, **changes)
    assert not (tmp_path / "run" / "model").exists()
