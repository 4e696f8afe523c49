"""A model with a lexical sketch: its vector by hand, what words count, and parts of a text."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import sentence, tiny_model

from m2rag import M2Embedder
from m2rag.backends.local import LocalBackend
from m2rag.models import M2BertModel
from m2rag.models.lexical_sketch import opening, saturation

SIZE = 20
WIDTH = 32


def sketching(**changes: Any) -> M2BertModel:
    """A tiny model whose weights of tokens and balance are no ones, and whose turn is no identity."""
    model = tiny_model(sketch_size=SIZE, **changes)
    torch.manual_seed(1)
    with torch.no_grad():
        for logarithms in (model.sketch.log_mean_weights, model.sketch.log_sketch_weights, model.sketch.log_balance):
            logarithms.copy_(0.5 * torch.randn_like(logarithms))
        model.sketch.turn.weight.copy_(torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0])
    return model


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def by_hand(model: M2BertModel, ids: list[int]) -> np.ndarray:
    """The formula of `LexicalSketch`, token by token in float64."""
    sketch, ids = model.sketch, list(ids)
    model.sketch = None
    with torch.no_grad():
        hidden = model(torch.tensor([ids])).last_hidden_state[0].double().numpy()
    model.sketch = sketch
    weights = sketch.log_mean_weights.detach().double().exp().numpy()
    places = [1 + 2 * math.exp(-position / 256) for position in range(len(ids))]
    total = sum(place * weights[token] * state for place, token, state in zip(places, ids, hidden, strict=True))
    meaning = sketch.projection.weight.detach().double().numpy() @ total
    weights = sketch.log_sketch_weights.detach().double().exp().numpy()
    words = np.zeros(SIZE)
    counts = defaultdict(float)
    for place, token in zip(places, ids, strict=True):
        counts[token] += place
    for token, count in counts.items():
        counted = count / (count + 2.5 + len(ids) / 1067)
        words += counted * weights[token] * sketch.codes.weight[token].detach().double().numpy()
    vector = np.concatenate([unit(meaning), unit(words) * np.exp(sketch.log_balance.item())])
    return sketch.turn.weight.detach().double().numpy() @ vector


@pytest.mark.parametrize("kernels", ["cpu", "naive"])
def test_the_vector_is_what_the_formula_says(kernels: str) -> None:
    model = sketching()
    model.kernels = kernels
    for ids in ([101, 5, 5, 5, 2000, 7, 102], [9], list(range(1000, 1100)) * 2):
        with torch.no_grad():
            output = model(torch.tensor([ids]))
        np.testing.assert_allclose(output.pooler_output[0], by_hand(model, ids), atol=2e-5)
        np.testing.assert_allclose(output.last_hidden_state[0].mean(0), output.pooler_output[0], atol=1e-6)


def test_words_count_less_the_more_there_are_and_the_longer_the_text() -> None:
    counts, lengths = torch.tensor([1.0, 2, 20, 20]), torch.tensor([10.0, 10, 10, 20_000])
    found = saturation(counts, lengths)
    assert found[0] < found[1] < 2 * found[0]
    assert found[3] < found[2] < 1
    # BM25 with k1 = 10, b = 0.75 and a mean length of 8,000.
    expected = counts / (counts + 10 * (1 - 0.75 + 0.75 * lengths / 8_000))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_what_comes_first_counts_up_to_three_times() -> None:
    found = opening(torch.tensor([0.0, 256.0, 1_024.0, 30_000.0]))
    expected = torch.tensor([3.0, 1 + 2 / math.e, 1 + 2 / math.e**4, 1.0])
    torch.testing.assert_close(found, expected)
    # Pads in front move nothing.
    model, ids = sketching(), [101, 5, 2000, 7, 102]
    with torch.no_grad():
        alone = model(torch.tensor([ids])).pooler_output
        padded = model(torch.tensor([[0, 0, *ids]]), torch.tensor([[0, 0, 1, 1, 1, 1, 1]])).pooler_output
    sketches = [model.sketch.parts(vectors)[1] for vectors in (alone, padded)]
    torch.testing.assert_close(*sketches, atol=1e-5, rtol=0)


def test_a_words_part_of_a_sketch_is_its_code() -> None:
    model = sketching()
    words = [[11] * 4 + [12], [11], [12]]
    with torch.no_grad():
        both, first, second = (model.sketch.parts(model(torch.tensor([ids])).pooler_output)[1][0] for ids in words)
    codes, weights = model.sketch.codes.weight.detach(), model.sketch.log_sketch_weights.detach().exp()
    for found, token in ((first, 11), (second, 12)):
        torch.testing.assert_close(found / found.norm(), codes[token] / codes[token].norm(), atol=1e-5, rtol=0)
    places = opening(torch.arange(5))
    counted = saturation(torch.stack([places[:4].sum(), places[4]]), torch.tensor(5.0))
    expected = counted[0] * weights[11] * codes[11] + counted[1] * weights[12] * codes[12]
    torch.testing.assert_close(both / both.norm(), expected / expected.norm(), atol=1e-5, rtol=0)


def test_words_count_less_in_passages() -> None:
    model = sketching()
    # [CLS] and [SEP] are in the text's vector and in no passage.
    with torch.no_grad():
        model.sketch.log_mean_weights[[101, 102]] = model.sketch.log_sketch_weights[[101, 102]] = -20
    embedder = M2Embedder(backend=LocalBackend(model, device="cpu"))
    text = sentence(120)
    passages = embedder.embed_passages(text, passage_tokens=40)
    assert len(passages.vectors) > 2
    with torch.no_grad():
        meaning, sketch = model.sketch.parts(torch.from_numpy(np.asarray(passages.vectors)))
    lengths = sketch.norm(dim=1) / meaning.norm(dim=1)
    np.testing.assert_allclose(lengths, 0.3 * model.sketch.balance.item(), rtol=1e-4)
    # One passage of all of the text has both parts of the text's vector.
    whole = embedder.embed_passages(text, passage_tokens=250).vectors[0]
    pair = torch.from_numpy(np.stack([whole, embedder.embed_documents([text]).vectors[0]]))
    for part in model.sketch.parts(pair):
        np.testing.assert_allclose(*F.normalize(part.detach(), dim=1), atol=1e-5)


def test_the_turn_changes_no_similarity() -> None:
    model = sketching()
    texts = [sentence(20, seed=number) for number in range(6)]
    turned = np.asarray(M2Embedder(backend=LocalBackend(model, device="cpu")).embed_documents(texts))
    with torch.no_grad():
        model.sketch.turn.weight.copy_(torch.eye(WIDTH))
    straight = np.asarray(M2Embedder(backend=LocalBackend(model, device="cpu")).embed_documents(texts))
    assert np.abs(turned - straight).max() > 0.1
    np.testing.assert_allclose(turned @ turned.T, straight @ straight.T, atol=1e-5)


def test_the_sketch_is_part_of_the_fingerprint() -> None:
    fingerprints = {
        M2Embedder(backend=LocalBackend(model, device="cpu")).fingerprint
        for model in (tiny_model(), tiny_model(sketch_size=SIZE), tiny_model(sketch_size=SIZE + 1))
    }
    assert len(fingerprints) == 3
