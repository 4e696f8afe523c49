"""GLUE's metrics, by scikit-learn and SciPy."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np

from m2rag._optional import require

logger = logging.getLogger(__name__)


def measure(name: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    """One figure, from 0 (or -1: correlations) to 1.

    A correlation with predictions that are all the same is not defined, and 0 here.

    Args:
        name: "accuracy", "f1" (of class 1), "matthews", "pearson" or "spearman".
        labels: (N,) classes, or similarities.
        predictions: (N,) of the same kind.
    """
    value = float(_MEASURES[name](labels, predictions))
    if math.isnan(value):
        logger.warning("%s: all predictions are the same; it counts as 0", name)
        return 0.0
    return value


def _accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    return require("sklearn.metrics", extra="train").accuracy_score(labels, predictions)


def _f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    return require("sklearn.metrics", extra="train").f1_score(labels, predictions, zero_division=0.0)


def _matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    return require("sklearn.metrics", extra="train").matthews_corrcoef(labels, predictions)


def _pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    return _correlation("pearsonr", labels, predictions)


def _spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    return _correlation("spearmanr", labels, predictions)


def _correlation(name: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return math.nan
    return getattr(require("scipy.stats", extra="train"), name)(labels, predictions).statistic


_MEASURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
