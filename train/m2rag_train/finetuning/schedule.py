"""What each step trains on: planned as numbers before the run, so that a resumed run sees the same batches."""

from __future__ import annotations

import logging
import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from m2rag.tokenizer import TextTokenizer
from m2rag_train.errors import TrainingDataError
from m2rag_train.finetuning.data import Pairs
from m2rag_train.finetuning.recipe import FinetuneRecipe

logger = logging.getLogger(__name__)

# Candidates of a query, best first; None: any document.
Ranking = Sequence[Sequence[int]] | None


@dataclass(frozen=True)
class Row:
    """A document, some of its queries, and documents that answer none of them; all by number.

    With `bank_queries` a batch's first row has queries of other documents too: which answers which is in the pairs.
    """

    document: int
    queries: tuple[int, ...]
    negatives: tuple[int, ...] = ()


Batch = list[Row]

# A document by number, and the tokens of it that answer a query.
Span = tuple[int, int, int]


def plan_batches(
    pairs: Pairs, recipe: FinetuneRecipe, lengths: Sequence[int], candidates: Ranking = None, *, multiple: int = 1
) -> list[Batch]:
    """Batches of all epochs. No document is in a batch twice, as document or negative.

    Args:
        lengths: tokens of each document.
        candidates: for each query the documents that negatives are drawn from.
        multiple: the number of batches is cut to a multiple of this: batches per step times processes.

    Raises:
        TrainingDataError: there are fewer batches than `multiple`.
    """
    batches: list[Batch] = []
    with_queries = [number for number, queries in enumerate(pairs.queries_of) if queries]
    orders = {number: _shuffled(pairs.queries_of[number], f"{recipe.seed} {number}") for number in with_queries}
    lately: deque[int] = deque(maxlen=recipe.loss.bank)
    for epoch in range(recipe.epochs):
        rng = random.Random(f"{recipe.seed} epoch {epoch}")
        rows = [
            Row(number, queries)
            for number, visit in _documents_of_epoch(with_queries, pairs, recipe, epoch)
            for queries in _queries_of_rows(orders[number], visit, recipe.queries_per_document, recipe.every_query)
        ]
        rng.shuffle(rows)
        of_epoch = []
        for some in _by_source(rows, pairs) if recipe.one_source else [rows]:
            if recipe.batch_tokens is None:
                of_epoch += _in_batches(some, recipe.documents, math.inf, lengths)
            else:
                some = _by_length(some, lengths, rng)
                of_epoch += _in_batches(some, recipe.documents, recipe.batch_tokens, lengths)
        if recipe.one_source or recipe.batch_tokens is not None:
            rng.shuffle(of_epoch)
        for batch in of_epoch:
            # What is left over at an epoch's end may have nothing to be told apart from.
            if len(batch) == 1 < recipe.documents and not recipe.negatives.per_document and not recipe.loss.bank:
                continue
            batch = _with_negatives(batch, pairs, recipe.negatives.per_document, candidates, rng)
            if recipe.loss.bank_start == "empty":
                pool = [query for number in lately for query in pairs.queries_of[number]]
                lately.extend(row.document for row in batch)
            else:
                pool = list(range(len(pairs.queries)))
            batches.append(_with_queries(batch, pool, recipe.loss.bank_queries, rng))
    whole = len(batches) - len(batches) % multiple
    if not whole:
        raise TrainingDataError(f"{recipe.name}: {len(batches)} batches, a step takes {multiple}: too few documents")
    return batches[:whole]


def _shuffled(numbers: Sequence[int], seed: str) -> list[int]:
    return random.Random(seed).sample(numbers, len(numbers))


def _documents_of_epoch(
    numbers: Sequence[int], pairs: Pairs, recipe: FinetuneRecipe, epoch: int
) -> list[tuple[int, int]]:
    """Documents that an epoch reads, each with how often it was read before."""
    shares = [source.share for source in recipe.sources]
    if all(share == 1 for share in shares):
        return [(number, epoch) for number in numbers]
    found = []
    for source, share in enumerate(shares):
        order = _shuffled([n for n in numbers if pairs.source_of[n] == source], f"{recipe.seed} source {source}")
        count = max(round(share * len(order)), 1) if order else 0
        found += [(order[i % len(order)], i // len(order)) for i in range(epoch * count, (epoch + 1) * count)]
    return found


def _by_source(rows: Sequence[Row], pairs: Pairs) -> list[list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(pairs.source_of[row.document], []).append(row)
    return [found[source] for source in sorted(found)]


def _queries_of_rows(order: list[int], epoch: int, size: int, every_query: bool) -> list[tuple[int, ...]]:
    """The queries of each row that a document has in this epoch.

    Epoch by epoch the draw goes on through the queries, so that all are asked equally often.
    """
    count = min(size, len(order))
    rows = -(-len(order) // size) if every_query else 1
    start = epoch * rows * count
    return [tuple(order[(start + row * count + i) % len(order)] for i in range(count)) for row in range(rows)]


def _by_length(rows: list[Row], lengths: Sequence[int], rng: random.Random) -> list[Row]:
    """Rows by the length of their documents, in a little disorder: the same ones do not meet in every epoch."""
    jittered = {id(row): lengths[row.document] * rng.uniform(0.9, 1.1) for row in rows}
    return sorted(rows, key=lambda row: jittered[id(row)])


def _in_batches(rows: list[Row], size: int, max_tokens: float, lengths: Sequence[int]) -> list[Batch]:
    """Rows in their order, in batches of up to `size` rows and `max_tokens` padded tokens, but at least one row.

    A row whose document is in the batch waits for the next one.
    """
    batches, waiting = [], deque(rows)
    while waiting:
        batch: Batch = []
        put_off, longest = [], 0
        while waiting and len(batch) < size:
            row = waiting.popleft()
            longest = max(longest, lengths[row.document])
            if batch and longest * (len(batch) + 1) > max_tokens:
                put_off.append(row)
                break
            if any(row.document == other.document for other in batch):
                put_off.append(row)
            else:
                batch.append(row)
        waiting.extendleft(reversed(put_off))
        batches.append(batch)
    return batches


def _with_queries(batch: Batch, pool: Sequence[int], count: int, rng: random.Random) -> Batch:
    """Queries of other documents, whose vectors are in the bank, join the first row's."""
    drawn = tuple(rng.sample(pool, min(count, len(pool))))
    first = batch[0]
    return [Row(first.document, first.queries + drawn, first.negatives), *batch[1:]] if drawn else batch


def _with_negatives(batch: Batch, pairs: Pairs, count: int, candidates: Ranking, rng: random.Random) -> Batch:
    if not count:
        return batch
    taken = {row.document for row in batch}
    result = []
    for row in batch:
        excluded = taken.union(*(pairs.relevant[query] for query in row.queries))
        if candidates is None:
            # Drawn from more than needed, instead of from a list of all that are left.
            pool = rng.sample(range(len(pairs.documents)), min(len(pairs.documents), count + len(excluded)))
        else:
            pool = sorted({number for query in row.queries for number in candidates[query]})
            rng.shuffle(pool)
        chosen = [number for number in pool if number not in excluded][:count]
        taken.update(chosen)
        result.append(Row(row.document, row.queries, tuple(chosen)))
    return result


class TokenTable:
    """Token ids of texts, special tokens included, each cut to `max_tokens`.

    Attributes:
        lengths: (N,) tokens of each text before it was cut.
        max_tokens: the limit.
    """

    def __init__(self, texts: Sequence[str], tokenizer: TextTokenizer, max_tokens: int) -> None:
        room = max_tokens - len(tokenizer.prefix) - len(tokenizer.suffix)
        kind = np.uint16 if tokenizer.vocab_size <= 65536 else np.int32
        lengths = []
        self._ids: list[np.ndarray] = []
        for tokens in tokenizer.encode_many(texts):
            lengths.append(len(tokens) + max_tokens - room)
            ids = np.concatenate([tokenizer.prefix, tokens.ids[:room], tokenizer.suffix])
            self._ids.append(ids.astype(kind))
        self.lengths = np.array(lengths, dtype=np.int64)
        self.max_tokens = max_tokens

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, number: int) -> np.ndarray:
        """(n,) ids."""
        return self._ids[number]

    def used(self, number: int) -> int:
        """Tokens of a text after it was cut."""
        return len(self._ids[number])

    def report(self, what: str) -> None:
        """Log how many texts were cut. Nothing is cut in silence."""
        cut = int((self.lengths > self.max_tokens).sum())
        total = int(np.minimum(self.lengths, self.max_tokens).sum())
        logger.info("%s %s, %s tokens, longest %s", f"{len(self):,}", what, f"{total:,}", f"{self.lengths.max():,}")
        if cut:
            lost = int((self.lengths - self.max_tokens).clip(min=0).sum())
            logger.warning(
                "%s of %s %s cut to %s tokens; %s tokens are not seen",
                *(f"{cut:,}", f"{len(self):,}", what, f"{self.max_tokens:,}", f"{lost:,}"),
            )


def token_spans(pairs: Pairs, tokenizer: TextTokenizer, max_tokens: int) -> dict[int, Span]:
    """The passages of `pairs.passages` in tokens, special ones counted in; those behind the limit are left out."""
    by_document: dict[int, list[int]] = {}
    for query, (document, _, _) in pairs.passages.items():
        by_document.setdefault(document, []).append(query)
    found = {}
    prefix, room = len(tokenizer.prefix), max_tokens - len(tokenizer.suffix)
    for document, queries in by_document.items():
        tokens = tokenizer.encode(pairs.documents[document])
        for query in queries:
            _, start, end = pairs.passages[query]
            first = prefix + int(np.searchsorted(tokens.ends, start, "right"))
            last = prefix + int(np.searchsorted(tokens.starts, end, "left"))
            if first < last <= room:
                found[query] = (document, first, last)
    return found


class BatchCollator:
    """A planned batch as tensors; `SentenceTransformerTrainer` calls it with the batch's number.

    Attributes:
        valid_label_columns: names that the trainer looks for in a dataset; there are none.
    """

    valid_label_columns: list[str] = []

    def __init__(
        self,
        batches: list[Batch],
        pairs: Pairs,
        queries: TokenTable,
        documents: TokenTable,
        *,
        columns: bool,
        passages: Mapping[int, Span] | None = None,
    ) -> None:
        self._batches = batches
        self._passages = passages or {}
        self._relevant = pairs.relevant
        self._queries = queries
        self._documents = documents
        self._columns = columns

    def tokens(self, batch: int) -> int:
        """Tokens of a batch."""
        rows = self._batches[batch]
        documents = sum(self._documents.used(number) for row in rows for number in (row.document, *row.negatives))
        return documents + sum(self._queries.used(query) for row in rows for query in row.queries)

    def __call__(self, features: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """Queries (Q, L) and documents (N, L) with `labels` as our losses take them.

        With `columns`, for losses of sentence-transformers: queries (B, L), their documents (B, L), and as many columns
        of negatives (B, L) as every row has.
        """
        rows = self._batches[features[0]["batch"]]
        if self._columns:
            return self._as_columns(rows)
        # Those of like length go through the model together: few pads.
        queries = sorted(dict.fromkeys(query for row in rows for query in row.queries), key=self._queries.used)
        documents = [row.document for row in rows] + [number for row in rows for number in row.negatives]
        relevant = [self._relevant[query] for query in queries]
        width = max(map(len, relevant))
        return {
            **_named("query", self._queries, queries),
            **_named("document", self._documents, documents),
            "label": {
                "queries": torch.tensor(queries),
                "documents": torch.tensor(documents),
                "relevant": torch.tensor([numbers + [-1] * (width - len(numbers)) for numbers in relevant]),
                "passages": torch.tensor([self._passages.get(query, (-1, 0, 0)) for query in queries]),
            },
        }

    def _as_columns(self, rows: Batch) -> dict[str, Any]:
        columns = {
            **_named("query", self._queries, [row.queries[0] for row in rows]),
            **_named("document", self._documents, [row.document for row in rows]),
        }
        for i in range(min(len(row.negatives) for row in rows)):
            columns.update(_named(f"negative_{i + 1}", self._documents, [row.negatives[i] for row in rows]))
        return columns


def _named(name: str, table: TokenTable, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
    return {f"{name}_{key}": value for key, value in padded([table[number] for number in numbers]).items()}


def padded(rows: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """Ids of texts -> `input_ids` and `attention_mask`, (N, L) each."""
    length = max(map(len, rows))
    ids, mask = np.zeros((len(rows), length), dtype=np.int64), np.zeros((len(rows), length), dtype=np.int64)
    for row, values in enumerate(rows):
        ids[row, : len(values)] = values
        mask[row, : len(values)] = 1
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
