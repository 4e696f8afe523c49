"""Codes of words: stems, bags as the model counts them, and what cannot be learned from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import TOKENIZER, sentence, tiny_model

from m2rag_train.errors import TrainingDataError
from m2rag_train.finetuning.data import Pairs
from m2rag_train.word_codes import Bags, CodeLearning, learn_codes, random_codes, stems

SPECIAL = [*TOKENIZER.prefix, *TOKENIZER.suffix]


def with_special(text: str) -> np.ndarray:
    return np.concatenate([TOKENIZER.prefix, TOKENIZER.encode(text).ids, TOKENIZER.suffix])


def test_words_of_one_stem_share_the_first_one() -> None:
    vocabulary = {"house": 0, "##s": 1, "houses": 2, "housing": 3, "##houses": 4, "as": 5, "a": 6, "##house": 7}
    assert stems(vocabulary).tolist() == [0, 1, 0, 0, 4, 5, 6, 4]


def test_random_codes_are_signs_and_nearly_orthogonal() -> None:
    codes = random_codes(TOKENIZER.vocabulary, 30_522, 256, seed=3)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(codes, random_codes(TOKENIZER.vocabulary, 30_522, 256, seed=3))
    assert not torch.equal(codes, random_codes(TOKENIZER.vocabulary, 30_522, 256, seed=4))
    of_stems = np.unique(stems(TOKENIZER.vocabulary))
    some = codes[of_stems[:2_000]].double()
    products = (some @ some.T)[np.triu_indices(2_000, 1)] / 16
    assert abs(products.mean()) < 0.01 and abs(products.std() - 1) < 0.02


def test_rows_beyond_the_vocabulary_have_codes() -> None:
    assert random_codes({"house": 0, "houses": 1}, 4, 64, seed=0).abs().sum() == 4 * 64


def test_a_bag_is_the_models_sketch() -> None:
    model = tiny_model(sketch_size=20)
    with torch.no_grad():
        model.sketch.log_sketch_weights.normal_()
        model.sketch.log_sketch_weights[SPECIAL] = -20
    texts = [with_special(sentence(n_words, seed=n_words)) for n_words in (1, 7, 90)]
    bags = Bags(texts, SPECIAL).sketches(model.sketch, [2, 0, 1])
    for ids, found in zip((texts[2], texts[0], texts[1]), bags, strict=True):
        with torch.no_grad():
            expected = model.sketch.parts(model(torch.from_numpy(ids)[None]).pooler_output)[1][0]
        torch.testing.assert_close(found, F.normalize(expected, dim=0), atol=1e-5, rtol=0)


def test_runs_begin_alike_and_their_mean_is_learned() -> None:
    texts = [with_special(sentence(40, seed=number)) for number in range(4)]
    queries = [with_special(sentence(3, seed=10 + number)) for number in range(4)]
    numbers = [[number] for number in range(4)]
    pairs = Pairs([""] * 4, [""] * 4, numbers, numbers, [[]] * 4, [0] * 4)

    def learned(runs: int, seed: int) -> torch.Tensor:
        sketch = tiny_model(sketch_size=20).sketch
        learn_codes(sketch, pairs, texts, queries, SPECIAL, CodeLearning(5, runs, documents=3), seed)
        return sketch.codes.weight.detach()

    start = tiny_model(sketch_size=20).sketch.codes.weight.detach()
    one, two = learned(1, seed=7), learned(2, seed=7)
    assert torch.equal(one, learned(1, seed=7)), "the seed does not say all"
    # Two of the mean are the first run and another one.
    other = 2 * two - one
    assert (other - one).abs().max() > 1e-3
    used = np.setdiff1d(np.unique(np.concatenate(texts)), SPECIAL)
    moved = [(codes - start)[used].abs().mean() for codes in (one, other)]
    assert 0.5 < moved[0] / moved[1] < 2, "the second run did not begin where the first did"


def test_one_document_is_not_enough() -> None:
    ids = with_special("old stone houses")
    pairs = Pairs(["old"], ["old stone houses", "rain"], [[0]], [[0], []], [[]], [0, 0])
    with pytest.raises(TrainingDataError, match="1 documents have queries"):
        learn_codes(tiny_model(sketch_size=20).sketch, pairs, [ids, ids], [ids], SPECIAL, CodeLearning(1), 0)
