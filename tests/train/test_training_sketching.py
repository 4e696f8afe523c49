"""A sketch for a model: weights from counts, directions from vectors, learned codes, a folder that loads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from tiny_models import TOKENIZER, saved, tiny_model

from m2rag import M2Embedder
from m2rag.backends.local import LocalBackend
from m2rag.models import M2BertModel, load_checkpoint
from m2rag_train.errors import RecipeError
from m2rag_train.recipe import RunOptions, load_recipe
from m2rag_train.sketching import inverse_document_frequencies, principal_directions

SIZE = 24


def words(count: int, seed: int) -> str:
    """Of a vocabulary of two hundred words."""
    known = [word for word in TOKENIZER.whole_words() if len(word) > 3][:200]
    return " ".join(np.random.default_rng(seed).choice(known, count))


def sketched(folder: Path, **changes: Any) -> Path:
    documents = [{"_id": str(number), "text": words(60, seed=number)} for number in range(12)]
    pairs = [{"query": words(5, seed=100 + number), "document_id": str(number)} for number in range(12)]
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
    out = sketched(tmp_path, dimensions=[8], balance=1.5)
    model = load_checkpoint(out)
    assert model.config.sketch_size == SIZE and model.config.matryoshka_dimensions == [8, 32]
    for name, value in base.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)
    sketch = model.sketch
    directions = sketch.projection.weight
    torch.testing.assert_close(directions @ directions.T, torch.eye(32 - SIZE), atol=1e-5, rtol=0)
    torch.testing.assert_close(sketch.turn.weight @ sketch.turn.weight.T, torch.eye(32), atol=1e-5, rtol=0)
    same, other, codes = *TOKENIZER.encode("houses house").ids, sketch.codes.weight
    assert same != other and torch.equal(codes[same], codes[other]), "words of one stem have one code"
    assert (codes.abs() == 1).all()
    assert sketch.balance.item() == pytest.approx(1.5)
    special = [*TOKENIZER.prefix, *TOKENIZER.suffix, 0]
    weights = sketch.log_sketch_weights.exp()
    assert (weights[special] < 1e-4).all()
    rare, common = TOKENIZER.encode(f"zebra {words(1, seed=0)}").ids
    assert weights[rare] > 1.5 * weights[common]
    torch.testing.assert_close(sketch.log_mean_weights[rare], sketch.log_sketch_weights[rare] / 2)
    # Words that are there count, whatever untrained layers make of them.
    embedder = M2Embedder(str(out))
    zebra, dogs, query = embedder.embed_documents(["a zebra sat on a mat", "the dogs ran far away", "zebra"]).vectors
    _, (zebra, dogs, query) = sketch.parts(torch.from_numpy(np.stack([zebra, dogs, query])))
    assert zebra @ query > dogs @ query + 0.1
    assert sketched(tmp_path) == out, "a finished run is left as it is"


def test_the_turn_puts_first_what_queries_ask_for(tmp_path: Path) -> None:
    saved(tmp_path / "base")
    embedder = M2Embedder(str(sketched(tmp_path)))
    queries = np.stack([embedder.embed_query(words(5, seed=100 + number)) for number in range(12)])
    held = (queries**2).sum(0)
    assert (held[:-1] >= held[1:] - 1e-4).all()


def test_codes_that_learn_keep_the_meaning_and_find_more(tmp_path: Path) -> None:
    saved(tmp_path / "base")
    random = load_checkpoint(sketched(tmp_path))
    (tmp_path / "run").rename(tmp_path / "random")
    learned = load_checkpoint(sketched(tmp_path, base="random/model", codes={"steps": 60, "documents": 12, "lr": 0.1}))
    for name, value in random.state_dict().items():
        changed = not torch.equal(value, learned.state_dict()[name])
        assert changed == (name in ("sketch.codes.weight", "sketch.log_sketch_weights", "sketch.turn.weight")), name
    special = [*TOKENIZER.prefix, *TOKENIZER.suffix, 0]
    assert (learned.sketch.log_sketch_weights.exp()[special] < 1e-4).all()
    assert margin(learned) > margin(random) + 0.1


def margin(model: M2BertModel) -> float:
    """By how much the sketch of a piece is nearer to that of its text than to those of other texts, in the mean."""
    texts = [words(60, seed=number) for number in range(12)]
    embedder = M2Embedder(backend=LocalBackend(model, device="cpu"))
    vectors = [embedder.embed_documents(some).vectors for some in (texts, [text[:60] for text in texts])]
    found, pieces = (F.normalize(model.sketch.parts(torch.from_numpy(some))[1].detach(), dim=1) for some in vectors)
    similarity = pieces @ found.T
    return float(similarity.diagonal().mean() - (similarity.sum() - similarity.trace()) / (12 * 11))


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        ({"sketch_size": 8}, {}, "words: base has a sketch of 8 channels, not 24"),
        ({"padding": "max_length"}, {}, "words: base: .*needs pooling 'mean' and padding 'masked'"),
        ({}, {"size": 32}, "words: base: .*sketch_size is 32, must be from 0 to hidden_size - 1"),
        ({}, {"size": 0}, "size is 0, must be above 0"),
        ({}, {"sources": []}, "sources is empty"),
        ({}, {"balance": 0.0}, "balance is 0.0, must be above 0"),
        ({}, {"codes": {"steps": 0}}, "codes: steps is 0, must be above 0"),
    ],
)
def test_what_cannot_be_sketched_is_named(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    saved(tmp_path / "base", **base)
    with pytest.raises(RecipeError, match=message):
        sketched(tmp_path, **changes)
    assert not (tmp_path / "run" / "model").exists()
