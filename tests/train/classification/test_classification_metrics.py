"""GLUE's metrics against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from m2rag_train.classification.metrics import measure

LABELS = np.array([1, 1, 1, 0, 0, 0, 0, 1])
PREDICTIONS = np.array([1, 0, 1, 0, 1, 0, 0, 1])  # 3 true and 1 false positive, 3 true and 1 false negative
SCORES = np.array([0.0, 1.0, 2.0, 5.0])


@pytest.mark.parametrize(
    ("name", "labels", "predictions", "expected"),
    [
        ("accuracy", LABELS, PREDICTIONS, 6 / 8),
        ("accuracy", np.array([0, 1, 2]), np.array([0, 2, 2]), 2 / 3),
        ("f1", LABELS, PREDICTIONS, 6 / 8),  # 2 x 3 / (2 x 3 + 1 + 1)
        ("f1", 1 - LABELS, np.array([0, 0, 0, 1, 1, 1, 1, 1]), 8 / 9),  # of class 1: 2 x 4 / (2 x 4 + 1)
        ("f1", LABELS, np.zeros(8, dtype=int), 0.0),
        ("matthews", LABELS, PREDICTIONS, 0.5),  # (3 x 3 - 1 x 1) / sqrt(4 x 4 x 4 x 4)
        ("matthews", LABELS, 1 - LABELS, -1.0),
        ("matthews", LABELS, np.ones(8, dtype=int), 0.0),
        # Centred: (-2, -1, 0, 3) and (-1, 0, -1, 2) / 2: 8 / sqrt(14 x 6).
        ("pearson", SCORES, np.array([0.0, 0.5, 0.0, 1.5]), 8 / np.sqrt(84)),
        # Ranks 1, 2, 3, 4 and 2, 3, 1, 4: 1 - 6 x (1 + 1 + 4) / (4 x 15).
        ("spearman", SCORES, np.array([3.0, 4.0, -7.0, 9.0]), 0.4),
        ("spearman", SCORES, SCORES**3, 1.0),
        # Ties share their mean rank, 1.5: (-1.5, -0.5, 0.5, 1.5) and (-1, -1, 0.5, 1.5), 4.5 / sqrt(5 x 4.5).
        ("spearman", SCORES, np.array([1.0, 1.0, 2.0, 3.0]), 4.5 / np.sqrt(22.5)),
    ],
)
def test_measure(name: str, labels: np.ndarray, predictions: np.ndarray, expected: float) -> None:
    assert measure(name, labels, predictions) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_correlation_with_nothing_that_varies_is_zero_and_told(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert measure(name, SCORES, np.full(4, 2.5)) == 0.0
    assert f"{name}: all predictions are the same" in caplog.text
