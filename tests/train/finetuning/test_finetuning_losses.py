"""The losses against dense computations of the same formula, with everything in memory at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_model
from torch import nn

from m2rag_train.finetuning.gradients import chunks, with_gradients
from m2rag_train.finetuning.losses import (
    Anchors,
    DocumentBank,
    OrthogonalLoss,
    RankingLoss,
    overlap,
    ranking_loss,
    right_documents,
)
from m2rag_train.finetuning.schedule import padded

Features = dict[str, torch.Tensor]


class Stack(nn.Module):
    """What a `SentenceTransformer` is to a loss, and how often texts went through it."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        settings = {"vocab_size": 100, "hidden_dropout_prob": 0.0, "pooling": "mean", **changes}
        self.encoder = tiny_model(**settings).train()
        with torch.no_grad():
            self.encoder.embeddings.word_embeddings.weight.mul_(50)
        self.seen: list[tuple[tuple[int, ...], bool]] = []

    def forward(self, features: Features) -> Features:
        self.seen.append((tuple(features["input_ids"].shape), torch.is_grad_enabled()))
        output = self.encoder(**features)
        features["sentence_embedding"], features["token_embeddings"] = output.pooler_output, output.last_hidden_state
        return features


def texts(lengths: list[int], seed: int) -> Features:
    rng = np.random.default_rng(seed)
    return padded([rng.integers(5, 100, n) for n in lengths])


# Four queries over five documents; the first document answers two, query 3 has a second answer in the step.
QUERIES = texts([4, 7, 3, 5], seed=1)
DOCUMENTS = texts([40, 25, 33, 60, 12], seed=2)
LABELS = {
    "queries": torch.tensor([3, 4, 7, 9]),
    "documents": torch.tensor([10, 11, 12, 13, 14]),
    "relevant": torch.tensor([[10, -1], [10, -1], [11, 77], [12, 13]]),
}
RIGHT = torch.tensor([[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 1, 0]], dtype=torch.bool)


def gradients_of(loss: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-6) -> None:
    """Equal to a millionth of the largest gradient of all."""
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 1e-3, "no gradient to speak of"
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) <= tolerance * largest, name


def dense_vectors(model: Stack, features: Features) -> torch.Tensor:
    """Each text by itself, without padding: all graphs at once."""
    return torch.cat([model(some)["sentence_embedding"] for _, some in chunks(features, 1)])


def dense_orthogonal(model: Stack, form: str, sizes: tuple[int, ...] = (32,)) -> torch.Tensor:
    q, d = dense_vectors(model, QUERIES), dense_vectors(model, DOCUMENTS)
    losses = []
    for size in sizes:
        cosines = F.cosine_similarity(q[:, None, :size], d[None, :, :size], dim=-1)
        right, wrong = 1 - cosines[RIGHT], cosines[~RIGHT]
        f: Callable[[torch.Tensor], torch.Tensor] = torch.square if form == "squared" else torch.abs
        losses.append(f(right).mean() + f(wrong).mean())
    return torch.stack(losses).mean()


def dense_ranking(model: Stack, temperature: float, sizes: tuple[int, ...] = (32,)) -> torch.Tensor:
    """One cross entropy per pair of a query and its document, written out."""
    q, d = dense_vectors(model, QUERIES), dense_vectors(model, DOCUMENTS)
    terms = []
    for size in sizes:
        cosines = F.cosine_similarity(q[:, None, :size], d[None, :, :size], dim=-1) / temperature
        for query, document in RIGHT.nonzero().tolist():
            against = [n for n in range(5) if n == document or not RIGHT[query, n]]
            terms.append(torch.logsumexp(cosines[query, against], 0) - cosines[query, document])
    return torch.stack(terms).mean()


def test_right_documents() -> None:
    assert torch.equal(right_documents(LABELS), RIGHT)


@pytest.mark.parametrize("form", ["squared", "absolute"])
@pytest.mark.parametrize("sizes", [(), (8, 32)], ids=["whole", "matryoshka"])
def test_orthogonal_is_the_dense_sum(form: str, sizes: tuple[int, ...]) -> None:
    model = Stack()
    loss = OrthogonalLoss(model, form=form, dimensions=sizes)([QUERIES, DOCUMENTS], LABELS)
    expected = dense_orthogonal(model, form, sizes or (32,))
    torch.testing.assert_close(loss, expected, rtol=0, atol=2e-6)
    assert_same(gradients_of(loss, model), gradients_of(expected, model))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("sizes", [(), (8, 32)], ids=["whole", "matryoshka"])
def test_ranking_is_the_dense_softmax(cached: bool, sizes: tuple[int, ...]) -> None:
    model = Stack()
    loss = RankingLoss(model, temperature=0.1, cached=cached, dimensions=sizes)([QUERIES, DOCUMENTS], LABELS)
    expected = dense_ranking(model, 0.1, sizes or (32,))
    torch.testing.assert_close(loss, expected, rtol=0, atol=2e-6)
    assert_same(gradients_of(loss, model), gradients_of(expected, model))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_changes_nothing(checkpointing: bool) -> None:
    model = Stack(padding="max_length", pooling="cls_tanh")
    expected = gradients_of(dense_orthogonal(model, "squared"), model)
    if checkpointing:
        model.encoder.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(gradients_of(OrthogonalLoss(model)([QUERIES, DOCUMENTS], LABELS), model), expected)


def make_losses() -> list[Any]:
    return [
        pytest.param(OrthogonalLoss, id="orthogonal"),
        pytest.param(RankingLoss, id="ranking"),
    ]


@pytest.mark.parametrize("make", make_losses())
def test_documents_go_through_one_at_a_time(make: Callable[..., nn.Module]) -> None:
    model = Stack()
    make(model, chunk_tokens=16)([QUERIES, DOCUMENTS], LABELS)
    documents = [(shape, grad) for shape, grad in model.seen if shape[1] > 7]
    lengths = [40, 25, 33, 60, 12]
    once = [((1, n), True) for n in lengths]
    assert documents == (once if isinstance(make(model), OrthogonalLoss) else [((1, n), False) for n in lengths] + once)
    queries = [shape for shape, _ in model.seen if shape[1] <= 7]
    assert queries == [(2, 7), (2, 5)] * 2, "groups of up to 16 padded tokens, twice"


@pytest.mark.parametrize("make", make_losses())
def test_dropout_is_the_same_in_both_passes(make: Callable[..., nn.Module]) -> None:
    """With masks that differ between the passes the gradient would belong to no function at all: compare with finite
    differences of the loss along the gradient, at one random state."""
    model = Stack(hidden_dropout_prob=0.3)
    loss = make(model)

    def at(state: int) -> torch.Tensor:
        torch.manual_seed(state)
        return loss([QUERIES, DOCUMENTS], LABELS)

    gradients = gradients_of(at(5), model)
    with torch.no_grad():
        assert abs(at(5) - at(6)) > 1e-4, "dropout must do something"
        norm = torch.sqrt(sum((value.square().sum() for value in gradients.values()), torch.zeros(())))
        values = []
        for step in (1e-3, -2e-3):
            for name, parameter in model.named_parameters():
                if name in gradients:
                    parameter += step / norm * gradients[name]
            values.append(at(5))
    slope = (values[0] - values[1]) / 2e-3
    torch.testing.assert_close(slope, norm, rtol=2e-2, atol=0)


@pytest.mark.parametrize("make", make_losses())
def test_anchor_pulls_to_the_base(make: Callable[..., nn.Module]) -> None:
    model = Stack()
    torch.manual_seed(0)
    base = Anchors(F.normalize(torch.randn(20, 32), dim=-1), F.normalize(torch.randn(20, 32), dim=-1), weight=0.7)
    plain = make(model)([QUERIES, DOCUMENTS], LABELS)
    loss = make(model, anchors=base)([QUERIES, DOCUMENTS], LABELS)
    q, d = dense_vectors(model, QUERIES), dense_vectors(model, DOCUMENTS)
    away = 0.5 * (1 - F.cosine_similarity(q, base.queries[LABELS["queries"]])).mean()
    away = away + 0.5 * (1 - F.cosine_similarity(d, base.documents[LABELS["documents"]])).mean()
    torch.testing.assert_close(loss, plain + 0.7 * away, rtol=0, atol=2e-6)
    expected = gradients_of(plain, model)
    for name, value in gradients_of(0.7 * away, model).items():
        expected[name] = expected[name] + value
    assert_same(gradients_of(loss, model), expected)


@pytest.mark.parametrize("make", make_losses())
def test_backward_scales_and_accumulates(make: Callable[..., nn.Module]) -> None:
    model = Stack()
    once = gradients_of(make(model)([QUERIES, DOCUMENTS], LABELS), model)
    for _ in range(2):
        (make(model)([QUERIES, DOCUMENTS], LABELS) / 4).backward()
    halves = {name: p.grad * 2 for name, p in model.named_parameters() if p.grad is not None}
    assert_same(halves, once)


@pytest.mark.parametrize("make", make_losses())
def test_no_gradients_no_replay(make: Callable[..., nn.Module]) -> None:
    model = Stack()
    expected = make(model)([QUERIES, DOCUMENTS], LABELS)
    model.seen.clear()
    with torch.no_grad():
        loss = make(model)([QUERIES, DOCUMENTS], LABELS)
    torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=2e-6)
    assert not loss.requires_grad and not any(grad for _, grad in model.seen)
    assert len(model.seen) == 6, "each text once: five documents, one group of queries"


@pytest.mark.parametrize("make", make_losses())
def test_bfloat16_autocast_stays_near(make: Callable[..., nn.Module]) -> None:
    model = Stack()
    expected = gradients_of(make(model)([QUERIES, DOCUMENTS], LABELS), model)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients_of(make(model)([QUERIES, DOCUMENTS], LABELS), model)
    name = "encoder.layers.1.mixer.out_proj.weight"
    assert found[name].dtype == torch.float32
    difference = (found[name] - expected[name]).norm() / expected[name].norm()
    assert 1e-5 < difference < 0.05


def test_ranking_loss_of_one_right_document_is_cross_entropy() -> None:
    torch.manual_seed(0)
    scores, target = torch.randn(6, 9), torch.tensor([3, 1, 0, 2, 3, 3])
    right = F.one_hot(target, 9).bool()
    torch.testing.assert_close(ranking_loss(scores, right), F.cross_entropy(scores, target))


def test_bank_holds_each_document_once_newest_first() -> None:
    bank = DocumentBank(3)
    bank.push(torch.tensor([[1.0, 0], [2, 0]]), torch.tensor([5, 6]))
    bank.push(torch.tensor([[3.0, 0], [4, 0]]), torch.tensor([6, 7]))
    assert bank.documents.tolist() == [6, 7, 5]
    assert bank.vectors[:, 0].tolist() == [3, 4, 1]
    bank.push(torch.tensor([[9.0, 0]]), torch.tensor([8]))
    assert bank.documents.tolist() == [8, 6, 7]
    again = DocumentBank(3)
    again.restore(bank.state())
    assert torch.equal(again.vectors, bank.vectors) and torch.equal(again.documents, bank.documents)


@pytest.mark.parametrize("cached", [True, False])
def test_bank_adds_negatives_and_answers(cached: bool) -> None:
    """Document 77, of the bank, answers query 2; document 11 is in the step and its old vector counts for nothing."""
    model = Stack()
    bank = DocumentBank(10)
    torch.manual_seed(0)
    old = torch.randn(3, 32)
    bank.push(old, torch.tensor([77, 50, 11]))
    found = RankingLoss(model, temperature=0.1, bank=bank, cached=cached)([QUERIES, DOCUMENTS], LABELS)
    q, d = dense_vectors(model, QUERIES), dense_vectors(model, DOCUMENTS)
    everything = torch.cat([d, old[:2]])
    right = F.pad(RIGHT, (0, 2))
    right[2, 5] = True
    cosines = F.cosine_similarity(q[:, None], everything[None], dim=-1) / 0.1
    terms = []
    for query, document in right.nonzero().tolist():
        against = [n for n in range(7) if n == document or not right[query, n]]
        terms.append(torch.logsumexp(cosines[query, against], 0) - cosines[query, document])
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert_same(gradients_of(found, model), gradients_of(expected, model))
    assert bank.documents.tolist() == [10, 11, 12, 13, 14, 77, 50]
    torch.testing.assert_close(bank.vectors[:5], d.detach(), rtol=0, atol=2e-6)


def test_documents_together_are_documents_apart() -> None:
    """Padded to one length, masked: the same vectors, fewer passes."""
    model = Stack()
    apart = RankingLoss(model, cached=False)([QUERIES, DOCUMENTS], LABELS)
    gradients = gradients_of(apart, model)
    model.seen.clear()
    together = RankingLoss(model, cached=False, document_tokens=130)([QUERIES, DOCUMENTS], LABELS)
    assert [shape for shape, _ in model.seen if shape[1] > 7] == [(3, 40), (2, 60)]
    torch.testing.assert_close(together, apart, rtol=0, atol=2e-6)
    assert_same(gradients_of(together, model), gradients)


def test_chunks_cover_every_row_and_cut_padding() -> None:
    features = texts([3, 9, 2, 2, 2, 30], seed=0)
    found = [(rows.start, rows.stop, some["input_ids"].shape) for rows, some in chunks(features, 10)]
    assert found == [(0, 1, (1, 3)), (1, 2, (1, 9)), (2, 5, (3, 2)), (5, 6, (1, 30))]
    joined = torch.cat(
        [F.pad(some["input_ids"], (0, 30 - some["input_ids"].shape[1])) for _, some in chunks(features, 10)]
    )
    assert torch.equal(joined, features["input_ids"])


def test_parameters_without_a_part_get_no_gradient() -> None:
    """As with an ordinary loss: an optimizer must not decay what nothing depends on."""
    model = Stack()
    model.unused = nn.Linear(2, 2)
    OrthogonalLoss(model)([QUERIES, DOCUMENTS], LABELS).backward()
    assert model.unused.weight.grad is None


def test_a_model_without_parameters_to_train_has_a_loss() -> None:
    model = Stack()
    model.requires_grad_(False)
    with nullcontext():
        assert not with_gradients(model, lambda gradients: torch.tensor(1.0)).requires_grad


def test_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="form is 'cubic', must be 'squared' or 'absolute'"):
        OrthogonalLoss(Stack(), form="cubic")


# A document of two parts and a rest; two queries about it, one about another document, one without a passage.
LONG = texts([40, 600], seed=3)
PASSAGES = {
    **{key: LABELS[key] for key in ("queries",)},
    "documents": torch.tensor([10, 11]),
    "relevant": torch.tensor([[11], [11], [10], [10]]),
    "passages": torch.tensor([[11, 30, 200], [11, 520, 560], [10, 3, 20], [-1, 0, 0]]),
}


@pytest.mark.parametrize("changes", [{}, {"sketch_size": 20}], ids=["mean", "sketch"])
@pytest.mark.parametrize("together", [1, 2000], ids=["apart", "together"])
def test_passages_are_told_from_the_parts_beside_them(changes: dict[str, Any], together: int) -> None:
    model = Stack(long_conv_l_max=640, max_position_embeddings=640, **changes)
    found = {
        weight: RankingLoss(
            model, cached=False, temperature=0.1, passage_weight=weight, document_tokens=together, dimensions=[12, 32]
        )([QUERIES, LONG], PASSAGES)
        for weight in (0.0, 0.5)
    }
    q = dense_vectors(model, QUERIES)
    hidden = {
        n: model.encoder(LONG["input_ids"][row : row + 1, :n]).last_hidden_state[0] for row, n in enumerate((40, 600))
    }

    def vector(n: int, begin: int, end: int) -> torch.Tensor:
        return model.encoder.span_vectors(hidden[n], [(begin, end)])[0]

    # The first passage is most of the first 256 tokens, the second one lies in the rest of 88; the third document has
    # one part only, and nothing to tell it from.
    rivals = {0: [(256, 512), (512, 600)], 1: [(0, 256), (256, 512)], 2: []}
    terms = []
    for size in (12, 32):
        for query, others in rivals.items():
            n = 40 if query == 2 else 600
            own = tuple(PASSAGES["passages"][query, 1:].tolist())
            cosines = torch.stack(
                [F.cosine_similarity(q[query, :size], vector(n, *part)[:size], dim=0) for part in (own, *others)]
            )
            terms.append(torch.logsumexp(cosines / 0.1, 0) - cosines[0] / 0.1)
    expected = found[0.0] + 0.5 * torch.stack(terms).sum() / (2 * 3)
    torch.testing.assert_close(found[0.5], expected, rtol=0, atol=2e-6)
    assert_same(gradients_of(found[0.5], model), gradients_of(expected, model), 4e-6)


def test_what_overlaps_a_passage_is_no_rival() -> None:
    assert overlap((30, 200), (0, 256))
    assert overlap((200, 456), (0, 256)), "56 of 256 tokens"
    assert not overlap((206, 456), (0, 256)), "50 of 256 tokens"
    assert not overlap((256, 300), (0, 256))


def test_passages_need_their_queries() -> None:
    """A step whose queries have no passages has the loss it always had."""
    model = Stack()
    none = {**LABELS, "passages": torch.tensor([[-1, 0, 0]] * 4)}
    with_weight = RankingLoss(model, cached=False, passage_weight=1.0)([QUERIES, DOCUMENTS], none)
    torch.testing.assert_close(with_weight, RankingLoss(model, cached=False)([QUERIES, DOCUMENTS], LABELS))
