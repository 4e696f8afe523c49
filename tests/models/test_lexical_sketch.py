"""A model with a lexical sketch: its vector by hand, the codes on every machine, and parts of a text."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import sentence, tiny_model

from m2rag import M2Embedder
from m2rag.backends.local import LocalBackend
from m2rag.models import M2BertModel
from m2rag.models.lexical_sketch import codes

SIZE = 20
WIDTH = 32


def sketching(**changes: Any) -> M2BertModel:
    """A tiny model whose weights of tokens and balance are no ones."""
    model = tiny_model(sketch_size=SIZE, **changes)
    torch.manual_seed(1)
    with torch.no_grad():
        for logarithms in (model.sketch.log_mean_weights, model.sketch.log_sketch_weights, model.sketch.log_balance):
            logarithms.copy_(0.5 * torch.randn_like(logarithms))
    return model


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def code_of(token: int, size: int) -> list[int]:
    """By Python's integers, which have no width."""
    signs = []
    for channel in range(size):
        z = ((token * -(-size // 64) + channel // 64 + 1) * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        signs.append(2 * ((z ^ (z >> 31)) >> (channel % 64) & 1) - 1)
    return signs


def by_hand(model: M2BertModel, ids: list[int]) -> np.ndarray:
    """The formula of `LexicalSketch`, token by token in float64."""
    sketch, ids = model.sketch, list(ids)
    model.sketch = None
    with torch.no_grad():
        hidden = model(torch.tensor([ids])).last_hidden_state[0].double().numpy()
    model.sketch = sketch
    weights = sketch.log_mean_weights.detach().double().exp().numpy()
    total = sum(weights[token] * state for token, state in zip(ids, hidden, strict=True))
    meaning = sketch.projection.weight.detach().double().numpy() @ total
    weights = sketch.log_sketch_weights.detach().double().exp().numpy()
    words = np.zeros(SIZE)
    for token, count in Counter(ids).items():
        words += np.sqrt(count) * weights[token] * np.array(code_of(token, SIZE))
    return np.concatenate([unit(meaning), unit(words) * np.exp(sketch.log_balance.item())])


@pytest.mark.parametrize("size", [1, 20, 64, 100, 256])
def test_codes_are_the_same_everywhere(size: int) -> None:
    found = codes(200, size)
    assert found.shape == (200, size) and found.dtype == np.int8
    for token in (0, 1, 7, 199):
        assert found[token].tolist() == code_of(token, size)


def test_codes_of_different_tokens_are_nearly_orthogonal() -> None:
    found = codes(2_000, 256).astype(np.float64)
    products = (found @ found.T)[np.triu_indices(2_000, 1)] / 16
    assert abs(products.mean()) < 0.01, "not centred"
    assert abs(products.std() - 1) < 0.01, "not of the spread that random signs have"


@pytest.mark.parametrize("kernels", ["cpu", "naive"])
def test_the_vector_is_what_the_formula_says(kernels: str) -> None:
    model = sketching()
    model.kernels = kernels
    for ids in ([101, 5, 5, 5, 2000, 7, 102], [9], list(range(1000, 1100)) * 2):
        with torch.no_grad():
            output = model(torch.tensor([ids]))
        np.testing.assert_allclose(output.pooler_output[0], by_hand(model, ids), atol=2e-5)
        np.testing.assert_allclose(output.last_hidden_state[0].mean(0), output.pooler_output[0], atol=1e-6)


def test_words_count_by_the_root_of_their_number() -> None:
    model = sketching()
    with torch.no_grad():
        model.sketch.log_balance.zero_()
    words = [[11] * 4 + [12], [11], [12]]
    with torch.no_grad():
        many, first, second = (model(torch.tensor([ids])).pooler_output[0, -SIZE:].double() for ids in words)
    weights = model.sketch.log_sketch_weights.detach().double().exp()
    expected = 2 * weights[11] * first + weights[12] * second
    torch.testing.assert_close(many, expected / expected.norm(), atol=1e-6, rtol=0)


def test_parts_of_a_text_are_scaled_like_texts() -> None:
    model = sketching()
    # [CLS] and [SEP] are in the text's vector and in no passage.
    with torch.no_grad():
        model.sketch.log_mean_weights[[101, 102]] = model.sketch.log_sketch_weights[[101, 102]] = -20
    embedder = M2Embedder(backend=LocalBackend(model, device="cpu"))
    text = sentence(120)
    passages = embedder.embed_passages(text, passage_tokens=40)
    assert len(passages.vectors) > 2
    vectors = np.asarray(passages.vectors)
    balance = model.sketch.balance.item()
    lengths = np.linalg.norm(vectors[:, -SIZE:], axis=1) / np.linalg.norm(vectors[:, :-SIZE], axis=1)
    np.testing.assert_allclose(lengths, balance, rtol=1e-4)
    # One passage of all of the text is the text.
    whole = embedder.embed_passages(text, passage_tokens=250)
    np.testing.assert_allclose(whole.vectors[0], embedder.embed_documents([text]).vectors[0], atol=1e-5)


def test_shortened_vectors_hold_the_meaning_first() -> None:
    model = sketching(matryoshka_dimensions=[WIDTH - SIZE, WIDTH])
    whole = M2Embedder(backend=LocalBackend(model, device="cpu"))
    short = M2Embedder(backend=LocalBackend(model, device="cpu"), dimensions=WIDTH - SIZE)
    text = sentence(30)
    expected = unit(whole.embed_query(text)[: WIDTH - SIZE])
    np.testing.assert_allclose(short.embed_query(text), expected, atol=1e-6)


def test_the_sketch_is_part_of_the_fingerprint() -> None:
    fingerprints = {
        M2Embedder(backend=LocalBackend(model, device="cpu")).fingerprint
        for model in (tiny_model(), tiny_model(sketch_size=SIZE), tiny_model(sketch_size=SIZE + 1))
    }
    assert len(fingerprints) == 3
