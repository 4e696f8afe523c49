"""Losses on vectors. All take unnormalised student vectors and return a scalar."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cosine_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean of 1 - cos between rows: (N, D), (N, D)."""
    return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()


def classification_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Each student vector must be nearest to its own teacher vector among all of them: cross entropy, (N, D) twice."""
    scores = F.normalize(student, dim=-1) @ F.normalize(teacher, dim=-1).t() / temperature
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))


def contrastive_loss(
    queries: torch.Tensor,
    documents: torch.Tensor,
    positives: torch.Tensor,
    bank: torch.Tensor,
    excluded: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """InfoNCE of queries over the step's documents and a bank of earlier ones.

    Args:
        queries: (Q, D).
        documents: (N, D), with gradient.
        positives: (Q,) row of `documents` that each query belongs to.
        bank: (K, D) vectors of earlier documents, without gradient; K may be 0.
        excluded: (N, K) bool, bank entries that are the same document as one of this step.
        temperature: of the softmax over cosines.
    """
    queries = F.normalize(queries, dim=-1)
    scores = queries @ F.normalize(documents, dim=-1).t()
    bank_scores = queries @ F.normalize(bank, dim=-1).t()
    bank_scores = bank_scores.masked_fill(excluded[positives], float("-inf"))
    return F.cross_entropy(torch.cat([scores, bank_scores], dim=1) / temperature, positives)
