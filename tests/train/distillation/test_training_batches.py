"""Batches: what a window and its targets hold, whose queries are asked, and that a step alone says what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_training import SPAN, make_shard

from m2rag_train.distillation.batches import Batch, BatchSampler
from m2rag_train.distillation.recipe import Stage

CLS, SEP = 2, 3
LENGTHS = [5, 6, 7, 20, 36, 61, 11, 48]
KINDS = ("title", "heading", "table")  # the last one is no query
SHORTS = [(document, kind, 1 + (document + i) % 5) for document in range(8) for i, kind in enumerate(KINDS)]
SHORTS = [short for short in SHORTS if short[0] != 1]  # document 1 has no short texts
STAGE = Stage(steps=1, window_tokens=26, documents=3, short_texts=4, queries=3)
STEPS = range(40)


@pytest.fixture(scope="module")
def sampler() -> BatchSampler:
    # Short texts lie in any order, as they do when shards are joined.
    order = np.random.default_rng(0).permutation(len(SHORTS))
    return make_sampler(shorts=[SHORTS[i] for i in order])


def make_sampler(seed: int = 7, shorts: list[tuple[int, str, int]] = SHORTS) -> BatchSampler:
    return BatchSampler(make_shard(LENGTHS, shorts), span_tokens=SPAN, cls_id=CLS, sep_id=SEP, seed=seed)


def tensors(batch: Batch) -> list[torch.Tensor]:
    found = [getattr(batch.short_texts, name) for name in ("input_ids", "attention_mask", "targets", "windows")]
    for window in batch.windows:
        found += [torch.tensor(window.document), window.input_ids, window.span_starts, window.targets]
    return found


def same(one: Batch, other: Batch) -> bool:
    pairs = list(zip(tensors(one), tensors(other), strict=True))
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_batch_depends_on_seed_step_and_stage_alone(sampler: BatchSampler) -> None:
    one, other = make_sampler(), make_sampler()
    for step in range(5):
        other.batch(step, STAGE)  # what was drawn before does not matter
    assert same(one.batch(5, STAGE), other.batch(5, STAGE))
    assert same(one.batch(5, STAGE), one.batch(5, STAGE))
    assert not same(one.batch(5, STAGE), one.batch(6, STAGE))
    assert not same(one.batch(5, STAGE), make_sampler(seed=8).batch(5, STAGE))


def test_windows_are_whole_spans_of_their_document(sampler: BatchSampler) -> None:
    shard = sampler.shard
    partial = 0
    for step in STEPS:
        for window in sampler.batch(step, STAGE).windows:
            ids = window.input_ids[0].numpy()
            assert window.input_ids.shape[0] == 1 and (ids[0], ids[-1]) == (CLS, SEP)
            start, end = shard.document_starts[window.document : window.document + 2]
            document, body = shard.tokens[start:end], ids[1:-1]
            offsets = [o for o in range(0, len(document), SPAN) if np.array_equal(document[o : o + len(body)], body)]
            assert offsets, "the ids are no stretch of the document that begins at a span"
            last = offsets[0] + len(body)
            assert last % SPAN == 0 or last == len(document), "a window ends where a span ends"
            partial += len(body) < len(document)

            starts = window.span_starts.tolist()
            assert starts == [*range(1, len(ids) - 1, SPAN), len(ids) - 1]
            first = shard.span_starts[window.document] + offsets[0] // SPAN
            expected = shard.span_vectors[first : first + len(starts) - 1].astype(np.float32)
            np.testing.assert_array_equal(window.targets.numpy(), expected)
    assert partial > 20, "the stage should draw parts of documents, too"


@pytest.mark.parametrize("window_tokens", [1, 8, 13, 14, 26, 50, 64])
def test_windows_are_no_longer_than_the_stage_says(sampler: BatchSampler, window_tokens: int) -> None:
    stage = Stage(steps=1, window_tokens=window_tokens, documents=4, short_texts=1)
    longest = 0
    for step in STEPS:
        for window in sampler.batch(step, stage).windows:
            assert len(window.targets) >= 1
            assert window.input_ids.numel() <= window_tokens or len(window.targets) == 1
            longest = max(longest, window.input_ids.numel())
    fits = max((window_tokens - 2) // SPAN, 1) * SPAN + 2
    assert longest == min(fits, max(LENGTHS) + 2), "the room is used"


def test_documents_of_a_step_differ_and_all_are_drawn(sampler: BatchSampler) -> None:
    seen: set[int] = set()
    for step in STEPS:
        documents = [window.document for window in sampler.batch(step, STAGE).windows]
        assert len(set(documents)) == STAGE.documents
        seen.update(documents)
    assert seen == set(range(8))


def test_queries_are_of_whole_windows_and_their_documents(sampler: BatchSampler) -> None:
    shard = sampler.shard
    asked, partial = 0, 0
    for step in STEPS:
        batch = sampler.batch(step, STAGE)
        texts = batch.short_texts
        owners = texts.windows.tolist()
        assert owners[: STAGE.short_texts] == [-1] * STAGE.short_texts
        assert min(owners[STAGE.short_texts :], default=0) >= 0
        for number, window in enumerate(batch.windows):
            rows = [row for row, owner in enumerate(owners) if owner == number]
            length = shard.document_starts[window.document + 1] - shard.document_starts[window.document]
            if window.input_ids.numel() - 2 < length:
                assert rows == []
                partial += 1
                continue
            candidates = [
                t
                for t in range(len(SHORTS))
                if shard.short_document[t] == window.document and shard.short_kind[t] != "table"
            ]
            assert len(rows) == min(STAGE.queries, len(candidates)) == (0 if window.document == 1 else 2)
            targets = sorted(texts.targets[rows].tolist())
            assert targets == sorted(shard.short_vectors[candidates].astype(np.float32).tolist())
            asked += len(rows)
    assert asked and partial


def test_no_more_queries_than_asked_for(sampler: BatchSampler) -> None:
    stage = Stage(steps=1, window_tokens=80, window_fractions=[1.0], documents=3, short_texts=2, queries=1)
    for step in STEPS:
        batch = sampler.batch(step, stage)
        counts = [batch.short_texts.windows.tolist().count(number) for number in range(3)]
        assert counts == [0 if window.document == 1 else 1 for window in batch.windows]


def test_short_texts_are_padded(sampler: BatchSampler) -> None:
    shard = sampler.shard
    by_vector = {tuple(v): t for t, v in enumerate(shard.short_vectors.astype(np.float32).tolist())}
    texts = sampler.batch(0, STAGE).short_texts
    for ids, mask, target in zip(texts.input_ids, texts.attention_mask, texts.targets, strict=True):
        expected = [CLS, *shard.tokens_of_short(by_vector[tuple(target.tolist())]), SEP]
        n = len(expected)
        assert ids[:n].tolist() == expected and not ids[n:].any()
        assert mask[:n].all() and not mask[n:].any()
    assert texts.attention_mask.sum(1).max() == texts.input_ids.shape[1], "no wider than the longest"


def test_n_tokens_counts_what_is_read(sampler: BatchSampler) -> None:
    for step in range(5):
        batch = sampler.batch(step, STAGE)
        by_hand = sum(1 + len(range(int(w.span_starts[-1]) - 1)) + 1 for w in batch.windows)
        by_hand += sum(int((row != 0).sum()) for row in batch.short_texts.input_ids)
        assert batch.n_tokens == by_hand


def test_expected_tokens_are_about_right(sampler: BatchSampler) -> None:
    stage = Stage(steps=1, window_tokens=64, window_fractions=[1.0], documents=1, short_texts=8)
    mean = np.mean([sampler.batch(step, stage).n_tokens for step in range(200)])
    assert sampler.expected_tokens(stage) == pytest.approx(mean, rel=0.35)


def test_spans_of_another_recipe_are_refused() -> None:
    with pytest.raises(ValueError, match="not 5 tokens long"):
        BatchSampler(make_shard(LENGTHS, SHORTS), span_tokens=5, cls_id=CLS, sep_id=SEP, seed=0)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Stage(steps=1, window_tokens=9, documents=9), "9 documents, the teacher's shards hold 8"),
        (Stage(steps=1, window_tokens=9, short_texts=22), "22 short_texts, the teacher's shards hold 21"),
    ],
)
def test_more_than_there_is(sampler: BatchSampler, stage: Stage, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler.batch(0, stage)
