"""What a step trains on: every document, all queries in turn, no document twice, negatives that are none."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_finetuning import make_recipe
from tiny_models import TOKENIZER, sentence

from m2rag_train.errors import RecipeError, TrainingDataError
from m2rag_train.finetuning import schedule
from m2rag_train.finetuning.data import Pairs
from m2rag_train.finetuning.losses import right_documents
from m2rag_train.finetuning.negatives import find_negatives
from m2rag_train.finetuning.recipe import FinetuneRecipe, Negatives
from m2rag_train.finetuning.schedule import Batch, BatchCollator, Ranking, TokenTable


def world(n_documents: int = 9, queries: int = 5, extra: int = 3) -> Pairs:
    """Documents with `queries` queries each, but document 0 with one; the last query of each is asked of the next one
    too; `extra` documents without any."""
    pairs = Pairs(documents=[sentence(30 + i, seed=i) for i in range(n_documents + extra)])
    pairs.queries_of = [[] for _ in pairs.documents]
    pairs.source_of = [document % 2 for document in range(len(pairs.documents))]
    for document in range(n_documents):
        for number in range(queries if document else 1):
            query = len(pairs.queries)
            pairs.queries.append(f"query {document} {number}")
            answers = [document] + ([document % (n_documents - 1) + 1] if number == queries - 1 else [])
            pairs.relevant.append(answers)
            pairs.given.append([])
            for answer in answers:
                pairs.queries_of[answer].append(query)
    return pairs


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    def make(**changes: Any) -> FinetuneRecipe:
        return make_recipe(tmp_path, **{"epochs": 3, "documents": 4, "queries_per_document": 2, **changes})

    return make


def plan_batches(pairs: Pairs, recipe: FinetuneRecipe, candidates: Ranking = None, *, multiple: int = 1) -> list[Batch]:
    lengths = [len(text.split()) for text in pairs.documents]
    return schedule.plan_batches(pairs, recipe, lengths, candidates, multiple=multiple)


def per_epoch(batches: list[Batch], epochs: int) -> list[list[Batch]]:
    size = len(batches) // epochs
    return [batches[i * size : (i + 1) * size] for i in range(epochs)]


def test_every_document_once_an_epoch(recipe: Any) -> None:
    batches = plan_batches(world(), recipe(documents=3))
    for epoch in per_epoch(batches, 3):
        assert sorted(row.document for batch in epoch for row in batch) == list(range(9))
    orders = [[row.document for batch in epoch for row in batch] for epoch in per_epoch(batches, 3)]
    assert orders[0] != orders[1]


def test_queries_take_turns(recipe: Any) -> None:
    pairs = world()
    batches = plan_batches(pairs, recipe(documents=3, epochs=6))
    asked = Counter((row.document, query) for batch in batches for row in batch for query in row.queries)
    for document in range(9):
        own = pairs.queries_of[document]
        counts = [asked[document, query] for query in own]
        assert max(counts) - min(counts) <= 1, "6 epochs of 2 queries go round evenly"
        assert sum(counts) == 6 * min(2, len(own))
    assert all(len(set(row.queries)) == len(row.queries) for batch in batches for row in batch)


def test_every_query_in_one_epoch(recipe: Any) -> None:
    pairs = world()
    batches = plan_batches(pairs, recipe(documents=3, epochs=1, every_query=True, negatives={"per_document": 1}))
    asked = {(row.document, query) for batch in batches for row in batch for query in row.queries}
    assert asked == {(document, query) for document, queries in enumerate(pairs.queries_of) for query in queries}


@pytest.mark.parametrize(
    "changes",
    [{}, {"every_query": True}, {"negatives": {"per_document": 2}}, {"every_query": True, "batch_tokens": 99}],
)
def test_no_document_twice_in_a_batch(recipe: Any, changes: dict[str, Any]) -> None:
    for batch in plan_batches(world(), recipe(**changes)):
        documents = [number for row in batch for number in (row.document, *row.negatives)]
        assert len(documents) == len(set(documents))


def test_negatives_answer_none_of_their_rows_queries(recipe: Any) -> None:
    pairs = world()
    batches = plan_batches(pairs, recipe(negatives={"per_document": 2}))
    for batch in batches:
        for row in batch:
            assert len(row.negatives) == 2
            assert not set(row.negatives) & {number for query in row.queries for number in pairs.relevant[query]}
    used = Counter(number for batch in batches for row in batch for number in row.negatives)
    assert {9, 10, 11} <= used.keys(), "documents without queries are good negatives"


def test_negatives_come_from_the_candidates(recipe: Any) -> None:
    pairs = world()
    candidates = [[9, 10, relevant[0]] for relevant in pairs.relevant]
    for batch in plan_batches(pairs, recipe(documents=1, negatives={"per_document": 3}), candidates):
        assert set(batch[0].negatives) == {9, 10}, "there are no more, and the answer is none"


def test_batches_by_tokens(recipe: Any) -> None:
    """9 documents of 30 to 38 words: three fit into 120, but not four of the longest."""
    batches = plan_batches(world(), recipe(epochs=4, documents=4, batch_tokens=140, loss={"bank": 5}))
    for batch in batches:
        longest = max(30 + row.document for row in batch)
        assert len(batch) * longest <= 140 and len(batch) <= 4
    assert max(len(batch) for batch in batches) == 4
    seen = Counter(row.document for batch in batches for row in batch)
    assert seen == {number: 4 for number in range(9)}
    spread = [max(row.document for row in batch) - min(row.document for row in batch) for batch in batches]
    assert sum(spread) / len(spread) < 5, "of like length"
    meetings = {frozenset(row.document for row in batch) for batch in batches}
    assert len(meetings) > 4, "not the same ones in every epoch"


def test_a_document_above_the_limit_is_a_batch_of_its_own(recipe: Any) -> None:
    batches = plan_batches(world(), recipe(epochs=1, batch_tokens=10, loss={"bank": 5}))
    assert sorted(row.document for (row,) in batches) == list(range(9))


def test_queries_of_the_bank_join_the_batch(recipe: Any) -> None:
    pairs = world()
    batches = plan_batches(pairs, recipe(loss={"bank": 20, "bank_queries": 6}))
    for batch in batches:
        assert len(batch[0].queries) == min(2, len(pairs.queries_of[batch[0].document])) + 6
        assert all(len(row.queries) <= 2 for row in batch[1:])
    plain = plan_batches(pairs, recipe(loss={"bank": 20}))
    assert [row.document for row in plain[0]] == [row.document for row in batches[0]]


def test_a_bank_that_starts_empty_is_asked_for_what_it_holds(recipe: Any) -> None:
    pairs = world(n_documents=40, extra=0)
    loss = {"bank": 6, "bank_start": "empty", "bank_queries": 3}
    read: list[int] = []
    for batch in plan_batches(pairs, recipe(loss=loss)):
        own = {query for row in batch for query in pairs.queries_of[row.document]}
        others = [query for query in batch[0].queries if query not in own]
        assert bool(read) == (len(batch[0].queries) > 2), "three more, once there is something to ask for"
        assert all(set(pairs.relevant[query]) & set(read[-6:]) for query in others)
        read += [row.document for row in batch]


def test_shares_go_round_each_source(recipe: Any) -> None:
    """Documents 0, 2, 4, 6, 8 are of one source, 1, 3, 5, 7 of the other."""
    pairs = world()
    sources = [{"rows": "a", "share": 0.4}, {"rows": "b", "share": 1.5}]
    batches = plan_batches(pairs, recipe(sources=sources, epochs=4, loss={"bank": 5}))
    rows = [row for batch in batches for row in batch]
    times = Counter(row.document for row in rows)
    assert [times[n] for n in (1, 3, 5, 7)] == [6] * 4, "4 epochs of 1.5"
    assert sorted(times[n] for n in (0, 2, 4, 6, 8)) == [1, 1, 2, 2, 2], "4 epochs of 2 documents of 5"
    asked = Counter(query for row in rows for query in row.queries if row.document == 1)
    assert max(asked.values()) - min(asked.values()) <= 1, "other queries at each visit"


def test_batches_of_one_source(recipe: Any) -> None:
    pairs = world()
    for changes in ({}, {"batch_tokens": 140}):
        batches = plan_batches(pairs, recipe(one_source=True, loss={"bank": 5}, **changes))
        assert all(len({pairs.source_of[row.document] for row in batch}) == 1 for batch in batches)
        assert Counter(row.document for batch in batches for row in batch) == dict.fromkeys(range(9), 3)
        order = [pairs.source_of[batch[0].document] for batch in batches]
        assert order != sorted(order), "sources take turns"


def test_a_lonely_last_document_is_left_out(recipe: Any) -> None:
    """9 documents in batches of 4: the ninth would have nothing to be told apart from."""
    assert [len(batch) for batch in plan_batches(world(), recipe(epochs=1))] == [4, 4]
    assert [len(batch) for batch in plan_batches(world(), recipe(epochs=1, negatives={"per_document": 1}))] == [4, 4, 1]
    alone = recipe(epochs=1, documents=1, loss={"name": "orthogonal"})
    assert [len(batch) for batch in plan_batches(world(), alone)] == [1] * 9


def test_the_plan_is_a_function_of_the_seed(recipe: Any) -> None:
    changes = {"negatives": {"per_document": 1}}
    assert plan_batches(world(), recipe(**changes)) == plan_batches(world(), recipe(**changes))
    assert plan_batches(world(), recipe(**changes)) != plan_batches(world(), recipe(seed=1, **changes))


def test_whole_steps_only(recipe: Any) -> None:
    assert len(plan_batches(world(), recipe(documents=3), multiple=4)) == 8, "of 9"
    with pytest.raises(TrainingDataError, match="tiny: 9 batches, a step takes 10: too few documents"):
        plan_batches(world(), recipe(documents=3), multiple=10)


def test_long_texts_are_cut_and_told(caplog: pytest.LogCaptureFixture) -> None:
    texts = ["a", sentence(50), sentence(8), sentence(30)]
    with caplog.at_level(logging.INFO):
        table = TokenTable(texts, TOKENIZER, 16)
        table.report("documents")
    for number, text in enumerate(texts):
        ids = TOKENIZER.encode(text).ids
        assert table[number].tolist() == [*TOKENIZER.prefix, *ids[:14].tolist(), *TOKENIZER.suffix]
        assert table.lengths[number] == len(ids) + 2
    lost = sum(max(0, int(length) - 16) for length in table.lengths)
    assert f"2 of 4 documents cut to 16 tokens; {lost} tokens are not seen" in caplog.text
    assert table[0].dtype == np.uint16


def test_nothing_is_told_where_nothing_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        TokenTable(["a", "b c"], TOKENIZER, 16).report("documents")
    assert not caplog.records


def collate(recipe: FinetuneRecipe, *, columns: bool = False) -> tuple[Batch, Pairs, dict[str, Any], BatchCollator]:
    pairs = world()
    batches = plan_batches(pairs, recipe)
    tables = TokenTable(pairs.queries, TOKENIZER, 16), TokenTable(pairs.documents, TOKENIZER, 64)
    collator = BatchCollator(batches, pairs, *tables, columns=columns)
    return batches[1], pairs, collator([{"batch": 1}]), collator


def test_a_batch_as_our_losses_take_it(recipe: Any) -> None:
    batch, pairs, found, collator = collate(recipe(negatives={"per_document": 2}))
    labels = found["label"]
    documents = [row.document for row in batch] + [number for row in batch for number in row.negatives]
    assert labels["documents"].tolist() == documents
    assert set(labels["queries"].tolist()) == {query for row in batch for query in row.queries}
    right = right_documents(labels)
    for i, query in enumerate(labels["queries"].tolist()):
        assert right[i].tolist() == [number in pairs.relevant[query] for number in documents]
    lengths = found["document_attention_mask"].sum(1)
    for i, number in enumerate(documents):
        ids = found["document_input_ids"][i, : lengths[i]]
        assert ids[1:-1].tolist() == TOKENIZER.encode(pairs.documents[number]).ids.tolist()
    assert torch.equal(found["document_input_ids"] != 0, found["document_attention_mask"].bool())
    used = found["query_attention_mask"].sum(1).tolist()
    assert used == sorted(used), "queries of like length go through the model together"
    assert collator.tokens(1) == int(lengths.sum() + found["query_attention_mask"].sum())


def test_a_query_of_two_documents_of_a_batch_is_there_once(recipe: Any) -> None:
    """Twice, it would be weighed twice."""
    queries = [collate(recipe(seed=seed, documents=9, queries_per_document=5))[2]["label"]["queries"] for seed in (0,)]
    for numbers in queries:
        assert len(numbers) == len(set(numbers.tolist()))


def test_a_batch_as_stock_losses_take_it(recipe: Any) -> None:
    settings = recipe(negatives={"per_document": 2}, queries_per_document=1, loss={"name": "cached_mnrl"})
    batch, _, found, _ = collate(settings, columns=True)
    names = ["query", "document", "negative_1", "negative_2"]
    assert list(found) == [f"{name}_{key}" for name in names for key in ("input_ids", "attention_mask")]
    assert {len(value) for value in found.values()} == {len(batch)}


def test_random_negatives_need_no_candidates() -> None:
    assert find_negatives(Negatives(by="random", per_document=3), world(), None) is None
    assert find_negatives(Negatives(by="bm25", per_document=0), world(), None) is None


def test_bm25_finds_what_shares_words() -> None:
    pairs = Pairs(
        queries=["purple elephants dance"],
        documents=["the purple elephants dance at night", "grey stones", "purple elephants sleep", "elephants eat"],
        relevant=[[0]],
        queries_of=[[0], [], [], []],
        given=[[]],
    )
    assert find_negatives(Negatives(by="bm25", per_document=1), pairs, None) == [[2, 3]]
    assert find_negatives(Negatives(by="bm25", per_document=1, depth=1), pairs, None) == [[2]]


def test_the_models_negatives_and_their_margin() -> None:
    angles = torch.tensor([0.3, 0.1, 0.32, 0.8, 1.2])  # document 1 is nearer to the query than its answer, 0
    vectors = {
        "documents": torch.stack([angles.cos(), angles.sin()], dim=1),
        "queries": torch.tensor([[1.0, 0.0]]),
    }
    pairs = Pairs(["q"], list("abcde"), [[0]], [[0], [], [], [], []], [[]])

    def found(**settings: Any) -> Any:
        return find_negatives(Negatives(by="model", per_document=1, **settings), pairs, vectors)

    assert found() == [[1, 2, 3, 4]]
    assert found(depth=2) == [[1, 2]]
    assert found(margin=1e-6) == [[2, 3, 4]], "what scores above the answer may be one"
    assert found(margin=0.2) == [[3, 4]]


def test_given_negatives_must_be_there() -> None:
    with pytest.raises(TrainingDataError, match="negatives.by is 'given', and no row of the data has negatives"):
        find_negatives(Negatives(by="given", per_document=1), world(), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"sources": []}, "sources is empty", id="no sources"),
        pytest.param({"documents": 0}, "documents is 0, must be above 0", id="no documents"),
        pytest.param({"documents": 1}, "documents is 1 and there are no negatives", id="nothing to tell apart"),
        pytest.param({"keep": 1.0}, "keep is 1: the released weights would be the base's", id="keep all"),
        pytest.param({"warmup": 1.5}, "warmup is 1.5, must be from 0 to 1", id="warm-up"),
        pytest.param({"betas": [0.9]}, "betas has 1 values", id="betas"),
        pytest.param(
            {"loss": {"name": "cached_mnrl"}}, "queries_per_document is 2; 'cached_mnrl' takes pairs", id="pairs"
        ),
        pytest.param({"loss": {"name": "orthogonal", "bank": 4}}, "bank is for the loss 'mnrl'", id="bank"),
        pytest.param({"loss": {"passage_weight": 1.0}}, "passage_weight is for the loss 'mnrl'", id="passages cached"),
        pytest.param({"loss": {"bank_queries": 4}}, "bank_queries needs a bank", id="queries without a bank"),
        pytest.param({"sources": [{"rows": "a", "share": 0}]}, "share is 0", id="no share"),
        pytest.param({"batch_tokens": 0}, "batch_tokens is 0, must be above 0", id="no tokens"),
        pytest.param({"loss": {"name": "triplet"}}, "loss: name: 'triplet' is none of 'orthogonal', 'mnrl'", id="loss"),
        pytest.param({"loss": {"temperature": 0}}, "temperature is 0", id="temperature"),
        pytest.param({"loss": {"dimensions": [0]}}, "dimensions is", id="dimensions"),
        pytest.param({"negatives": {"margin": 1.0}}, "margin is 1.0, must be from 0 to below 1", id="margin"),
        pytest.param({"evaluation": {"tasks": []}}, "evaluation: tasks is empty", id="no tasks"),
        pytest.param({"sources": [{"rows": "a", "task": "b"}]}, r"sources\[0\]: rows and task given", id="source"),
    ],
)
def test_recipes_that_make_no_sense(recipe: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(**changes)
