"""Codes of words for a lexical sketch: random ones, equal for words of one stem, and what bags of words teach them.

The sketch of a text is a sum over its words, so it can be trained without the encoder: on bags of words of whole
documents, with queries and random pieces of the documents to tell them apart by. Words that are often in the same texts
get codes that disturb each other less, words that stand for each other get nearer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from m2rag._optional import require
from m2rag.models.lexical_sketch import LexicalSketch, opening, saturation
from m2rag_train.errors import TrainingDataError
from m2rag_train.finetuning.data import Pairs
from m2rag_train.recipe import check_positive

Stemmer = require("Stemmer", extra="train")

logger = logging.getLogger(__name__)

WARMUP = 30
REPORT_EVERY = 100

# Tokens of the pieces that serve as queries.
PIECE_TOKENS = (8, 200)


@dataclass(frozen=True)
class CodeLearning:
    """How codes learn from bags of words, by InfoNCE over a batch of documents.

    Attributes:
        steps: optimizer steps; the rate falls to nothing over the second half.
        runs: as often, each time from the same random codes and on other batches; their mean is what was learned.
        documents: in a batch, each with two queries and a piece of it; every other batch is of one source.
        lr: of the codes, which start as -1 and 1.
        weights_lr: of the logarithms of the words' weights.
        temperature: of the similarities.
    """

    steps: int
    runs: int = 1
    documents: int = 192
    lr: float = 0.015
    weights_lr: float = 0.01
    temperature: float = 0.03

    def __post_init__(self) -> None:
        check_positive(self, "steps", "runs", "documents", "lr", "weights_lr", "temperature")


def stems(vocabulary: Mapping[str, int]) -> np.ndarray:
    """For each token the first one of the same English stem: (V,). Ends of words have stems of their own."""
    stemmer = Stemmer.Stemmer("english")
    first: dict[tuple[bool, str], int] = {}
    found = np.arange(max(vocabulary.values()) + 1)
    for token, number in sorted(vocabulary.items(), key=lambda item: item[1]):
        word = token.removeprefix("##")
        stem = stemmer.stemWord(word) if word.isalpha() and len(word) > 2 else word
        found[number] = first.setdefault((token.startswith("##"), stem), number)
    return found


def random_codes(vocabulary: Mapping[str, int], count: int, size: int, seed: int) -> torch.Tensor:
    """-1 and 1 at random, the same for tokens of one stem: (count, size)."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2, (count, size), generator=generator).float() * 2 - 1
    same = stems(vocabulary)
    codes[: len(same)] = codes[torch.from_numpy(same)]
    return codes


class Bags:
    """Which tokens are in each of many texts, and how much each counts there.

    Args:
        texts: ids of each text, special tokens included.
        special: ids that are in every text, and count nothing.
    """

    def __init__(self, texts: Sequence[np.ndarray], special: Sequence[int]) -> None:
        tokens, counts = [], []
        for ids in texts:
            found, places = np.unique(ids, return_inverse=True)
            times = np.bincount(places, weights=opening(torch.arange(len(ids))).numpy())
            keep = ~np.isin(found, special)
            tokens.append(found[keep].astype(np.int64))
            counts.append(saturation(torch.from_numpy(times[keep]).float(), torch.tensor(len(ids))))
        self._tokens, self._counts = tokens, counts

    def sketches(self, sketch: LexicalSketch, numbers: Sequence[int]) -> torch.Tensor:
        """Of the texts with these numbers, scaled to length 1: (n, S)."""
        device = sketch.codes.weight.device
        lengths = [len(self._tokens[number]) for number in numbers]
        offsets = torch.tensor([0, *np.cumsum(lengths)[:-1]], device=device)
        tokens = torch.from_numpy(np.concatenate([self._tokens[number] for number in numbers])).to(device)
        counts = torch.cat([self._counts[number] for number in numbers]).to(device)
        weights = counts * sketch.log_sketch_weights[tokens].exp()
        return F.normalize(
            F.embedding_bag(tokens, sketch.codes.weight, offsets, mode="sum", per_sample_weights=weights), dim=1
        )


def learn_codes(
    sketch: LexicalSketch,
    pairs: Pairs,
    documents: Sequence[np.ndarray],
    queries: Sequence[np.ndarray],
    special: Sequence[int],
    learning: CodeLearning,
    seed: int,
) -> None:
    """Change the codes and the words' weights of a sketch, so that queries find their documents by them.

    Args:
        documents, queries: ids of each text of `pairs`, special tokens included.
        special: ids that are in every text, and count nothing.

    Raises:
        TrainingDataError: fewer than two documents have queries.
    """
    asked = np.array([number for number, found in enumerate(pairs.queries_of) if found])
    if len(asked) < 2:
        raise TrainingDataError(f"{len(asked)} documents have queries: codes learn by telling documents apart")
    document_bags, query_bags = Bags(documents, special), Bags(queries, special)
    learned = [sketch.codes.weight, sketch.log_sketch_weights]
    start = [values.detach().clone() for values in learned]
    mean = [torch.zeros_like(values) for values in start]
    for run in range(learning.runs):
        with torch.no_grad():
            for values, first in zip(learned, start, strict=True):
                values.copy_(first)
        rng = np.random.default_rng((seed, run))
        _run(sketch, pairs, documents, document_bags, query_bags, asked, special, learning, rng)
        for total, values in zip(mean, learned, strict=True):
            total += values.detach() / learning.runs
    with torch.no_grad():
        for values, total in zip(learned, mean, strict=True):
            values.copy_(total)


def _run(
    sketch: LexicalSketch,
    pairs: Pairs,
    documents: Sequence[np.ndarray],
    document_bags: Bags,
    query_bags: Bags,
    asked: np.ndarray,
    special: Sequence[int],
    learning: CodeLearning,
    rng: np.random.Generator,
) -> None:
    sources = np.array(pairs.source_of)[asked]
    rates = (learning.lr, learning.weights_lr)
    groups: list[dict[str, Any]] = [{"params": [sketch.codes.weight]}, {"params": [sketch.log_sketch_weights]}]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    total = 0.0
    for step in range(learning.steps):
        factor = min(1.0, (step + 1) / WARMUP, 2 * (learning.steps - step) / learning.steps)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        pool = asked if step % 2 else asked[sources == rng.choice(sources)]
        chosen = rng.choice(pool, min(learning.documents, len(pool)), replace=False).tolist()
        found = document_bags.sketches(sketch, chosen)
        two = [int(rng.choice(pairs.queries_of[number])) for number in chosen for _ in range(2)]
        pieces = Bags([_piece(documents[number], rng) for number in chosen], special)
        loss = _contrast(query_bags.sketches(sketch, two), found, 2, learning.temperature)
        loss = loss + _contrast(pieces.sketches(sketch, range(len(chosen))), found, 1, learning.temperature)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
        if (step + 1) % REPORT_EVERY == 0:
            logger.info("step %d of %d: loss %.3f", step + 1, learning.steps, total / REPORT_EVERY)
            total = 0.0


def _contrast(queries: torch.Tensor, documents: torch.Tensor, each: int, temperature: float) -> torch.Tensor:
    """InfoNCE of queries (each * n, S), the first `each` of them the first document's, over documents (n, S)."""
    answers = torch.arange(len(documents), device=documents.device).repeat_interleave(each)
    return F.cross_entropy(queries @ documents.T / temperature, answers)


def _piece(ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Some tokens in a row; short pieces as often as long ones."""
    shortest, longest = np.log(PIECE_TOKENS)
    length = int(np.exp(rng.uniform(shortest, longest)))
    start = int(rng.integers(max(1, len(ids) - length)))
    return ids[start : start + length]
