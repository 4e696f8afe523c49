"""Retrieval systems behind one small protocol: BM25, the vectors of an embedder, and the fusion of several.

Those that cut documents into chunks are in `m2rag.evaluation.chunks`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from m2rag._optional import require
from m2rag.errors import NonFiniteError
from m2rag.evaluation.metrics import order
from m2rag.fusion import LEAST_SPREAD, scale
from m2rag.index.modes import WEIGHTS
from m2rag.results import EmbeddingResult

Scores = dict[str, dict[str, float]]


class Ranker(Protocol):
    """A retrieval system.

    Attributes:
        name: what tables call it.
        settings: what its figures depend on, as plain data; result files hold it. May be missing.
    """

    name: str

    def rank(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int) -> Scores:
        """For each query id the scores of its best `k` or fewer documents by id; higher is better.

        `corpus` and `queries` hold texts by id. A document left out was not found.
        """
        ...


class Embedder(Protocol):
    """What `DenseRanker` needs of an embedder; `m2rag.M2Embedder` has it."""

    def embed_documents(
        self, texts: Sequence[str], *, on_too_long: str | None = None, show_progress: bool | None = None
    ) -> EmbeddingResult: ...

    def embed_queries(self, texts: Sequence[str], *, on_too_long: str | None = None) -> EmbeddingResult: ...


class BM25Ranker:
    """BM25 over whole documents: English stop words removed, English (Snowball) stems, Lucene's weighting.

    Documents that share no term with the query are not returned.
    """

    name = "BM25"

    def __init__(self, *, k1: float = 1.5, b: float = 0.75) -> None:
        self.k1 = k1
        self.b = b
        self.settings = {"k1": k1, "b": b, "stemmer": "english", "stop_words": "english"}

    def rank(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int) -> Scores:
        bm25s = require("bm25s", extra="eval")
        stemmer = require("Stemmer", extra="eval").Stemmer("english")
        settings = {"stopwords": "en", "stemmer": stemmer, "show_progress": False}
        ids = [document for document, text in corpus.items() if text]
        if not ids:
            return {query: {} for query in queries}
        tokens = bm25s.tokenize([corpus[document] for document in ids], **settings)
        if not tokens.vocab:  # nothing but stop words anywhere: there is no term to find
            return {query: {} for query in queries}
        index = bm25s.BM25(k1=self.k1, b=self.b)
        index.index(tokens, show_progress=False)
        asked = bm25s.tokenize(list(queries.values()), return_ids=False, **settings)
        result: Scores = {}
        for query, terms in zip(queries, asked, strict=True):
            known = [term for term in terms if term in tokens.vocab]
            scores = index.get_scores(known) if known else np.zeros(len(ids), np.float32)
            result[query] = best(scores, ids, k, positive_only=True)
        return result


class VectorMemory:
    """Vectors of texts by their hash, so that a text is embedded once however often it is asked for.

    Args:
        embed: gives the vectors (N, D) of N texts.
    """

    def __init__(self, embed: Callable[[list[str]], Any]) -> None:
        self._embed = embed
        self._vectors: dict[bytes, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32, of N > 0 texts."""
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._vectors}
        if new:
            vectors = np.asarray(self._embed(list(new.values())), dtype=np.float32)
            self._vectors.update(zip(new, vectors, strict=True))
        return np.stack([self._vectors[key] for key in keys])


class DenseRanker:
    """Exact cosine between the vector of the whole document and the vector of the query.

    A document or query longer than the model takes is embedded in windows. Vectors of documents are kept for as long
    as this object lives, so tasks over one corpus embed it once.

    Args:
        embedder: see `Embedder`.
        name: what tables call it.
        show_progress: passed on to `embed_documents`.
        settings: what result files say of the embedder, as `M2Embedder.info()` gives it.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        name: str = "dense",
        show_progress: bool | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.settings = {**(settings or {}), "on_too_long": "window"}
        self._embedder = embedder
        self._document_vectors = VectorMemory(
            lambda texts: embedder.embed_documents(texts, on_too_long="window", show_progress=show_progress).vectors
        )

    def rank(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int) -> Scores:
        """See `Ranker`.

        Raises:
            NonFiniteError: a vector holds NaN or infinity; the message names the document or query.
        """
        ids = [document for document, text in corpus.items() if text]
        if not ids or not queries:
            return {query: {} for query in queries}
        documents = unit(self._document_vectors([corpus[document] for document in ids]), "document", ids)
        asked_vectors = self._embedder.embed_queries(list(queries.values()), on_too_long="window").vectors
        asked = unit(asked_vectors, "query", list(queries))
        return {query: best(documents @ vector, ids, k) for query, vector in zip(queries, asked, strict=True)}


class FusionRanker:
    """Words and meaning by their scores, as the index's hybrid search joins them, but without passages.

    Args:
        words: ranks by words; is asked for its best 100, or `k` if that is more, as the other is.
        meaning: ranks by cosine.
        weights: of meaning and words, in the order in which the index has them.
        name: what tables call it; default: the systems' names joined by " + ".
    """

    def __init__(
        self,
        words: Ranker,
        meaning: Ranker,
        *,
        weights: tuple[float, float] = WEIGHTS,
        name: str | None = None,
    ) -> None:
        self.name = name or f"{words.name} + {meaning.name}"
        self.settings = {"fusion": "scores", "weights": [*weights], "of": [meaning.name, words.name]}
        self._words = words
        self._meaning = meaning
        self._weights = weights

    def rank(self, corpus: Mapping[str, str], queries: Mapping[str, str], k: int) -> Scores:
        depth = max(k, 100)
        by_words, by_meaning = (one.rank(corpus, queries, depth) for one in (self._words, self._meaning))
        fused = {query: self._fused(by_words.get(query, {}), by_meaning.get(query, {}), depth) for query in queries}
        return {query: {i: scores[i] for i in order(scores, k)} for query, scores in fused.items()}

    def _fused(self, words: Mapping[str, float], meaning: Mapping[str, float], depth: int) -> dict[str, float]:
        meant = scale(sorted(meaning.values(), reverse=True), least=LEAST_SPREAD)
        said = scale(sorted(words.values(), reverse=True), None if len(words) == depth else 0)
        share = self._weights[0] / sum(self._weights)
        return {
            id: share * (meant(meaning[id]) if id in meaning else 0.0)
            + (1 - share) * (said(words[id]) if id in words else 0.0)
            for id in {**meaning, **words}
        }


def best(scores: np.ndarray, ids: list[str], k: int, *, positive_only: bool = False) -> dict[str, float]:
    """The `k` best of `scores` (N,) by id, equal ones in ascending order of id wherever the cut falls."""
    candidates = np.arange(len(ids))
    if positive_only:
        candidates = candidates[scores > 0]
    if len(candidates) > k:
        cut = np.partition(scores[candidates], -k)[-k]
        candidates = candidates[scores[candidates] >= cut]
    found = {ids[i]: float(scores[i]) for i in candidates}
    return {document: found[document] for document in order(found, k)}


def unit(vectors: np.ndarray, what: str, ids: list[str]) -> np.ndarray:
    """Rows of `vectors` (N, D) at length 1, float32."""
    vectors = np.asarray(vectors, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise NonFiniteError(f"the vector of {what} {ids[bad[0]]!r} holds NaN or infinity ({len(bad)} such vectors)")
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
