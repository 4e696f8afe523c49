"""Which row of which source every sample of a run is: arithmetic on the sample's number and the seed.

Nothing is drawn one after the other, so a run resumes at any sample, and every process finds its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from m2rag_train.pretraining.corpus import TokenFile

# Samples over which every source has exactly its share.
_BLOCK = 10_000

_ROUNDS = 4


class Rows(Protocol):
    """Rows of token ids that a source is made into."""

    def __len__(self) -> int: ...

    def ids(self, row: int) -> np.ndarray:
        """(L,) int64 with special tokens."""
        ...

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """L of each row."""
        ...


@dataclass(frozen=True)
class NaturalRows:
    """Every document is a row, cut at `max_tokens`; `prefix` and `suffix` are the special tokens around it."""

    file: TokenFile
    max_tokens: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    def __len__(self) -> int:
        return self.file.n_documents

    def ids(self, row: int) -> np.ndarray:
        room = self.max_tokens - len(self.prefix) - len(self.suffix)
        return _between(self.file.document(row)[:room], self.prefix, self.suffix)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        around = len(self.prefix) + len(self.suffix)
        # The file counts a separator into every document.
        bare = self.file.starts[rows + 1] - self.file.starts[rows] - len(self.suffix)
        return np.minimum(bare + around, self.max_tokens)


@dataclass(frozen=True)
class ConcatenatedRows:
    """Documents strung together, cut into rows of `max_tokens`; an incomplete last row counts if it is the only one."""

    file: TokenFile
    max_tokens: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @property
    def _room(self) -> int:
        return self.max_tokens - len(self.prefix) - len(self.suffix)

    def __len__(self) -> int:
        return max(len(self.file.tokens) // self._room, int(len(self.file.tokens) > 0))

    def ids(self, row: int) -> np.ndarray:
        return _between(self.file.tokens[row * self._room : (row + 1) * self._room], self.prefix, self.suffix)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        return np.full(len(rows), min(self.max_tokens, len(self.file.tokens) + self.max_tokens - self._room))


def rows_of(file: TokenFile, mode: str, max_tokens: int, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> Rows:
    """The rows of a source by its mode."""
    made = NaturalRows if mode == "natural" else ConcatenatedRows
    return made(file, max_tokens, prefix, suffix)


def _between(ids: np.ndarray, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([prefix, ids, suffix]).astype(np.int64)


class Mixture:
    """Samples 0, 1, 2, ... of a run, without end.

    In every 10,000 samples each source has its share to the sample. A source gives each of its rows once, in an order
    of its own, before it gives one again, in another order.

    Args:
        sources: rows of each source, none of them empty.
        weights: their shares, relative to each other.
        seed: of the order.
    """

    def __init__(self, sources: Sequence[Rows], weights: Sequence[float], seed: int) -> None:
        self.sources = list(sources)
        self.seed = seed
        exact = np.array(weights) / np.sum(weights) * _BLOCK
        self._counts = np.floor(exact).astype(np.int64)
        missing = _BLOCK - self._counts.sum()
        self._counts[np.argsort(self._counts - exact, kind="stable")[:missing]] += 1
        self._block = lru_cache(maxsize=4)(self._make_block)

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and row of each sample (N,) -> two (N,)."""
        samples = np.asarray(samples, dtype=np.int64)
        sources, rows = np.empty_like(samples), np.empty_like(samples)
        blocks = samples // _BLOCK
        for block in np.unique(blocks):
            here = blocks == block
            places = samples[here] - block * _BLOCK
            kinds, ordinals = self._block(int(block))
            sources[here] = kinds[places]
            rows[here] = ordinals[places] + block * self._counts[kinds[places]]
        for number, source in enumerate(self.sources):
            here = sources == number
            epochs, places = np.divmod(rows[here], len(source))
            shuffled = np.empty_like(places)
            for epoch in np.unique(epochs):
                now = epochs == epoch
                shuffled[now] = permuted(places[now], len(source), (self.seed, number, int(epoch)))
            rows[here] = shuffled
        return sources, rows

    def lengths(self, samples: np.ndarray) -> np.ndarray:
        """Tokens of each sample, special tokens included: (N,) -> (N,)."""
        sources, rows = self.locate(samples)
        lengths = np.empty_like(rows)
        for number, source in enumerate(self.sources):
            here = sources == number
            lengths[here] = source.lengths(rows[here])
        return lengths

    def ids(self, sample: int) -> np.ndarray:
        """Token ids of a sample, (L,) int64."""
        sources, rows = self.locate(np.array([sample]))
        return self.sources[int(sources[0])].ids(int(rows[0]))

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For each place of the block: its source, and the how-manieth sample of that source it is in the block."""
        kinds = np.random.default_rng([self.seed, block]).permutation(
            np.repeat(np.arange(len(self._counts)), self._counts)
        )
        ordinals = np.empty_like(kinds)
        for number, count in enumerate(self._counts):
            ordinals[kinds == number] = np.arange(count)
        return kinds, ordinals

    def __getstate__(self) -> dict[str, object]:
        # For processes that prepare batches: a cache holds a bound method, which pickle would follow in a circle.
        return {key: value for key, value in self.__dict__.items() if key != "_block"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._block = lru_cache(maxsize=4)(self._make_block)


def permuted(places: np.ndarray, n: int, key: tuple[int, ...]) -> np.ndarray:
    """Images of `places` under a permutation of 0..n-1 that `key` names, in memory that does not depend on n.

    A Feistel network permutes the numbers of an even number of bits; those that fall outside 0..n-1 go through again.
    """
    half = max((max(n - 1, 1).bit_length() + 1) // 2, 1)
    mask = np.uint64((1 << half) - 1)
    keys = np.random.default_rng(key).integers(0, 2**63, _ROUNDS, dtype=np.uint64)
    images = np.asarray(places, dtype=np.uint64).copy()
    outside = np.ones(len(images), dtype=bool)
    while outside.any():
        values = images[outside]
        left, right = values >> np.uint64(half), values & mask
        for round_key in keys:
            left, right = right, left ^ (_mixed(right ^ round_key) & mask)
        images[outside] = (left << np.uint64(half)) | right
        outside = images >= n
    return images.astype(np.int64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """A number whose every bit depends on all bits of `values` (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
