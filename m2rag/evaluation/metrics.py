"""NDCG, recall, MRR and accuracy of a ranking, as TREC's evaluation program computes them, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from m2rag._optional import require
from m2rag.errors import NonFiniteError

# Our name of each metric -> what pytrec_eval calls it; MRR@10 is the reciprocal rank over a run cut after 10.
_TREC = {"ndcg@10": "ndcg_cut_10", "recall@10": "recall_10", "recall@1": "recall_1", "accuracy@1": "success_1"}
METRICS = (*_TREC, "mrr@10")

Run = Mapping[str, Mapping[str, float]]


def order(scores: Mapping[str, float], k: int | None = None) -> list[str]:
    """Document ids, best first; equal scores in ascending order of id, so that a run has one reading.

    Raises:
        NonFiniteError: a score is NaN or infinite.
    """
    for document, score in scores.items():
        if not math.isfinite(score):
            raise NonFiniteError(f"document {document!r} has the score {score}")
    return sorted(scores, key=lambda document: (-scores[document], document))[:k]


def score_run(qrels: Mapping[str, Mapping[str, int]], run: Run) -> dict[str, dict[str, float]]:
    """Each metric of `METRICS` for each query of `qrels`; a query the run lacks or leaves empty scores 0.

    Documents without a judgment count as not relevant. `recall@1` divides by the number of relevant documents,
    `accuracy@1` is 1 if the first document is relevant; with one relevant document a query they are the same.

    Raises:
        NonFiniteError: a score is NaN or infinite.
    """
    pytrec_eval = require("pytrec_eval", extra="eval")
    # Ranks instead of scores: trec_eval keeps scores in 32 bits, where close ones tie, and breaks ties its own way.
    ranked = {query: order(run[query], k=10) for query in qrels if run.get(query)}
    by_rank = {query: {document: float(-rank) for rank, document in enumerate(ids)} for query, ids in ranked.items()}
    evaluator = pytrec_eval.RelevanceEvaluator(
        {query: dict(grades) for query, grades in qrels.items()},
        {"ndcg_cut.10", "recall.1,10", "success.1", "recip_rank"},
    )
    found = evaluator.evaluate(by_rank)
    result = {}
    for query in qrels:
        values = found.get(query, {})
        result[query] = {name: float(values.get(trec, 0.0)) for name, trec in _TREC.items()}
        result[query]["mrr@10"] = float(values.get("recip_rank", 0.0))
    return result


def mean_metrics(per_query: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over the queries, 0 to 1."""
    return {name: float(np.mean([values[name] for values in per_query.values()])) for name in METRICS}


def bootstrap_interval(
    values: np.ndarray, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (N,), queries drawn with replacement.

    It says how much the mean would move with other queries on the same corpus, and nothing of other corpora.
    """
    values = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    # Counts of each query in each resample: (resamples, N) numbers of 8 bytes, in blocks to bound the memory.
    means = np.concatenate(
        [
            rng.multinomial(len(values), np.full(len(values), 1 / len(values)), size=size) @ values / len(values)
            for size in np.diff(np.append(np.arange(0, resamples, 100), resamples))
        ]
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
