"""Losses against numbers worked out by hand and against loops."""

from __future__ import annotations

import math

import pytest
import torch

from m2rag_train.distillation.losses import classification_loss, contrastive_loss, cosine_loss


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_cosine_loss_by_hand() -> None:
    student = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-5.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    # 1 - (1, 0, 1 / sqrt 2, -1)
    assert float(cosine_loss(student, teacher)) == pytest.approx((0 + 1 + (1 - math.sqrt(0.5)) + 2) / 4)


def test_classification_loss_by_hand() -> None:
    vectors = torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    # Scores 1 / 0.5 with its own, 0 with the other: -log(e^2 / (e^2 + 1)).
    assert float(classification_loss(vectors, vectors, 0.5)) == pytest.approx(math.log1p(math.exp(-2)))


def test_classification_loss_is_the_loop(rng: torch.Generator) -> None:
    student, teacher = torch.randn(5, 3, generator=rng), torch.randn(5, 3, generator=rng)
    total = 0.0
    for i in range(5):
        scores = [math.exp(cosine(student[i], teacher[j]) / 0.3) for j in range(5)]
        total -= math.log(scores[i] / sum(scores))
    assert float(classification_loss(student, teacher, 0.3)) == pytest.approx(total / 5, rel=1e-5)


def test_contrastive_loss_is_the_loop(rng: torch.Generator) -> None:
    queries, documents = torch.randn(4, 3, generator=rng), torch.randn(2, 3, generator=rng)
    bank, positives = torch.randn(3, 3, generator=rng), torch.tensor([0, 1, 1, 0])
    excluded = torch.tensor([[True, False, False], [False, True, True]])
    total = 0.0
    for q, positive in enumerate(positives.tolist()):
        scores = [math.exp(cosine(queries[q], d) / 0.2) for d in documents]
        scores += [math.exp(cosine(queries[q], b) / 0.2) for k, b in enumerate(bank) if not excluded[positive, k]]
        total -= math.log(scores[positive] / sum(scores))
    loss = contrastive_loss(queries, documents, positives, bank, excluded, 0.2)
    assert float(loss) == pytest.approx(total / 4, rel=1e-5)


def test_contrastive_loss_without_a_bank(rng: torch.Generator) -> None:
    queries, documents = torch.randn(3, 3, generator=rng), torch.randn(3, 3, generator=rng)
    nothing, excluded = torch.zeros(0, 3), torch.zeros(3, 0, dtype=torch.bool)
    loss = contrastive_loss(queries, documents, torch.arange(3), nothing, excluded, 0.1)
    # In-batch classification of documents by their queries is the same.
    assert float(loss) == pytest.approx(float(classification_loss(queries, documents, 0.1)), rel=1e-6)


def test_excluded_entries_have_no_effect(rng: torch.Generator) -> None:
    queries, documents = torch.randn(2, 3, generator=rng), torch.randn(2, 3, generator=rng)
    bank, positives = torch.randn(4, 3, generator=rng), torch.tensor([0, 1])
    excluded = torch.zeros(2, 4, dtype=torch.bool)
    excluded[:, 2:] = True
    loss = contrastive_loss(queries, documents, positives, bank, excluded, 0.05)
    without = contrastive_loss(queries, documents, positives, bank[:2], excluded[:, :2], 0.05)
    assert float(loss) == pytest.approx(float(without), rel=1e-6)
    # The document itself in the bank, which is what exclusion is for, would be a second right answer.
    with_itself = contrastive_loss(queries, documents, positives, documents, torch.eye(2, dtype=torch.bool), 0.05)
    counted = contrastive_loss(queries, documents, positives, documents, torch.zeros(2, 2, dtype=torch.bool), 0.05)
    assert float(counted) > float(with_itself)


def test_gradient_reaches_queries_and_documents_not_the_bank(rng: torch.Generator) -> None:
    queries = torch.randn(2, 3, generator=rng, requires_grad=True)
    documents = torch.randn(2, 3, generator=rng, requires_grad=True)
    bank = torch.randn(3, 3, generator=rng)
    contrastive_loss(
        queries, documents, torch.tensor([0, 1]), bank, torch.zeros(2, 3, dtype=torch.bool), 0.1
    ).backward()
    for tensor in (queries, documents):
        assert tensor.grad is not None and (tensor.grad.abs().sum(1) > 0).all()
    assert bank.grad is None


def test_length_of_a_student_vector_does_not_matter(rng: torch.Generator) -> None:
    student, teacher = torch.randn(4, 3, generator=rng), torch.randn(4, 3, generator=rng)
    for loss in (cosine_loss, lambda s, t: classification_loss(s, t, 0.1)):
        assert float(loss(student * 7, teacher)) == pytest.approx(float(loss(student, teacher)), rel=1e-5)
