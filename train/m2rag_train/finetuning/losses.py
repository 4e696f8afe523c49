"""Losses over queries and long documents, as `SentenceTransformerTrainer` takes them.

All are called as `loss(sentence_features, labels)` with two features, queries (Q, L) and documents (N, L), and

| key of `labels` | shape | |
|---|---|---|
| `queries` | (Q,) | number of each query in the training data |
| `documents` | (N,) | number of each document |
| `relevant` | (Q, M) | numbers of all documents that answer each query, filled up with -1 |
| `passages` | (Q, 3) | a document's number and which of its tokens answer the query, begin and end; or -1, 0, 0 |

A document of the step that does not answer a query is one of its negatives, whatever row it came with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from m2rag_train.finetuning.evaluation import encoder_of
from m2rag_train.finetuning.gradients import Features, GradientSum, Replay, chunks, with_gradients

Labels = Mapping[str, torch.Tensor]

# A document's parts that a passage is told apart from: as long as indexed passages are.
PASSAGE_TOKENS = 256


@dataclass(frozen=True)
class Anchors:
    """Where the base model has the training texts: its unit vectors of queries (Q, D) and documents (N, D)."""

    queries: torch.Tensor
    documents: torch.Tensor
    weight: float

    def loss(self, vectors: torch.Tensor, base: torch.Tensor, numbers: torch.Tensor, count: int) -> torch.Tensor:
        """Sum of 1 - cos over vectors (n, D) of texts `numbers` (n,), over 2 `count`, times the weight."""
        base = base[numbers.cpu()].to(vectors.device, vectors.dtype)
        return self.weight * (1 - F.cosine_similarity(vectors, base, dim=-1)).sum() / (2 * count)


class RetrievalLoss(nn.Module):
    """What the losses share.

    Args:
        model: a `SentenceTransformer`.
        dimensions: the loss is the mean over vectors cut to each of these (Matryoshka, arXiv:2205.13147); none: whole
            vectors only. sentence-transformers' own `MatryoshkaLoss` cannot wrap losses that compute their gradients.
        anchors: keep the texts' vectors near where the base model has them.
        chunk_tokens: queries go through the model in groups of so many padded tokens; documents one at a time.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dimensions: Sequence[int] = (),
        anchors: Anchors | None = None,
        chunk_tokens: int = 4096,
    ) -> None:
        super().__init__()
        self.model = model
        self.dimensions = tuple(dimensions)
        self.anchors = anchors
        self.chunk_tokens = chunk_tokens

    def encode(self, features: Features) -> torch.Tensor:
        """Vectors (n, D) in fp32."""
        return self.run(features)["sentence_embedding"].float()

    def run(self, features: Features) -> Features:
        """All that the model's modules return; they write into what they are given."""
        return self.model(dict(features))

    def cuts(self, queries: torch.Tensor, documents: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Unit vectors of queries (Q, D) and documents (N, D), once per dimension."""
        sizes = self.dimensions or (queries.shape[-1],)
        return [(F.normalize(queries[:, :size], dim=-1), F.normalize(documents[:, :size], dim=-1)) for size in sizes]

    def encode_without_graph(self, features: Features, max_tokens: int) -> tuple[torch.Tensor, list[Replay]]:
        """Vectors (n, D), and what a second pass with the same dropout needs."""
        vectors, replays = [], []
        with torch.no_grad():
            for _, some in chunks(features, max_tokens):
                replays.append(Replay(some))
                vectors.append(self.encode(some))
        return torch.cat(vectors), replays

    def replay(
        self, features: Features, max_tokens: int, replays: list[Replay], to: torch.Tensor, gradients: GradientSum
    ) -> None:
        """Encode again, and back-propagate the gradients `to` (n, D) of the vectors."""
        with torch.enable_grad():
            for again, (rows, some) in zip(replays, chunks(features, max_tokens), strict=True):
                gradients.add(again(self.encode, some), to[rows])


class OrthogonalLoss(RetrievalLoss):
    r"""Right documents to cosine 1, wrong ones to cosine 0, each pair of texts by itself.

    $$L = \frac{1}{|P|} \sum_{(q, d) \in P} f(1 - \cos(q, d)) + \frac{1}{|N|} \sum_{(q, d) \in N} f(\cos(q, d))$$

    over the step's pairs P that belong together and N that do not, both halves counting alike, as the reference samples
    them. f(x) is x squared, or its absolute value (`form="absolute"`). The idea is that of orthogonal projection loss
    (arXiv:2103.14021), which the long-context retrieval models (arXiv:2402.07440) name as theirs; their code of it is
    not public.

    No term needs two documents, so one document is in memory at a time, with its activations, and each goes through
    the model once; the queries go through it twice. The gradient is that of the whole sum, and peak memory does not
    depend on the number of negatives. It works with a single document per step (and negatives), where a softmax has
    nothing to compare; with many documents per step `RankingLoss` learns faster, as it looks at the hardest ones.

    Args:
        form: "squared" or "absolute".
        options: see `RetrievalLoss`.
    """

    def __init__(self, model: nn.Module, *, form: str = "squared", **options: object) -> None:
        super().__init__(model, **options)  # type: ignore[arg-type]
        if form not in ("squared", "absolute"):
            raise ValueError(f"form is {form!r}, must be 'squared' or 'absolute'")
        self.form = form

    def forward(self, sentence_features: Iterable[Features], labels: Labels) -> torch.Tensor:
        """() loss; see the module for its inputs."""
        queries, documents = sentence_features
        return with_gradients(self.model, lambda gradients: self._compute(queries, documents, labels, gradients))

    def _compute(
        self, queries: Features, documents: Features, labels: Labels, gradients: GradientSum | None
    ) -> torch.Tensor:
        vectors, replays = self.encode_without_graph(queries, self.chunk_tokens)
        vectors = vectors.requires_grad_(gradients is not None)
        right = right_documents(labels)
        weights = torch.where(right, 1 / right.sum(), 1 / (~right).sum().clamp(min=1))
        total, to_queries = torch.zeros((), device=vectors.device), torch.zeros_like(vectors)

        def count(term: torch.Tensor) -> None:
            nonlocal total
            total = total + term.detach()
            if gradients is not None:
                (found,) = gradients.add(term, leaves=[vectors])
                to_queries.add_(found)

        for rows, document in chunks(documents, 1):
            with torch.set_grad_enabled(gradients is not None):
                vector = self.encode(document)
                term = self._terms(vectors, vector, right[:, rows], weights[:, rows])
                if self.anchors is not None:
                    numbers = labels["documents"]
                    term = term + self.anchors.loss(vector, self.anchors.documents, numbers[rows], len(numbers))
            count(term)
        if self.anchors is not None:
            with torch.set_grad_enabled(gradients is not None):
                numbers = labels["queries"]
                term = self.anchors.loss(vectors, self.anchors.queries, numbers, len(numbers))
            count(term)
        if gradients is not None:
            self.replay(queries, self.chunk_tokens, replays, to_queries, gradients)
        return total

    def _terms(
        self, queries: torch.Tensor, documents: torch.Tensor, right: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        cuts = self.cuts(queries, documents)
        total = torch.zeros((), device=queries.device)
        for q, d in cuts:
            off = q @ d.t() - right.to(q.dtype)
            total = total + (weights * (off.square() if self.form == "squared" else off.abs())).sum()
        return total / len(cuts)


class RankingLoss(RetrievalLoss):
    """Each query must rank its document above all other documents of the step: cross entropy over cosines.

    Multiple-negatives ranking loss (arXiv:1705.00652) with several queries per document. Documents of the step that
    answer the query as well are left out of its softmax. With `cached`, documents go through the model one at a time,
    first for their vectors, then again with the gradients of those: memory is that of one document, time a third more,
    the gradient is the same (gradient caching, arXiv:2101.06983). sentence-transformers'
    `CachedMultipleNegativesRankingLoss` does that too, for one query per document.

    With a `bank`, vectors of the documents of earlier steps are further negatives: with two documents per step a query
    is told apart from all that were seen lately. A query whose document is in the bank only learns from that vector.

    Args:
        temperature: of the softmax.
        bank: see `DocumentBank`.
        cached: one document in memory at a time.
        document_tokens: without `cached`, documents go through the model in groups of so many padded tokens.
        passage_weight: of the mean `passage_loss` of the queries that have a passage; not with `cached`.
        options: see `RetrievalLoss`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        temperature: float = 0.05,
        bank: DocumentBank | None = None,
        cached: bool = True,
        document_tokens: int = 1,
        passage_weight: float = 0.0,
        **options: object,
    ) -> None:
        super().__init__(model, **options)  # type: ignore[arg-type]
        self.temperature = temperature
        self.passage_weight = passage_weight
        self.bank = bank
        self.cached = cached
        self.document_tokens = document_tokens

    def forward(self, sentence_features: Iterable[Features], labels: Labels) -> torch.Tensor:
        """() loss; see the module for its inputs."""
        queries, documents = sentence_features
        if not self.cached:
            vectors = torch.cat([self.encode(some) for _, some in chunks(queries, self.chunk_tokens)])
            found, passages = self._documents(documents, vectors, labels)
            return self._loss(vectors, found, labels) + passages
        return with_gradients(self.model, lambda gradients: self._compute(queries, documents, labels, gradients))

    def _documents(
        self, documents: Features, queries: torch.Tensor, labels: Labels
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors (N, D), and the loss of their passages."""
        vectors, total = [], torch.zeros((), device=queries.device)
        passages = labels["passages"].tolist() if self.passage_weight else []
        asked = sum(document >= 0 for document, _, _ in passages)
        for rows, some in chunks(documents, self.document_tokens):
            output = self.run(some)
            vectors.append(output["sentence_embedding"].float())
            lengths = some["attention_mask"].sum(1).tolist()
            for row, number in enumerate(labels["documents"][rows].tolist() if asked else []):
                of_row = [(i, begin, end) for i, (document, begin, end) in enumerate(passages) if document == number]
                if of_row:
                    hidden = output["token_embeddings"][row, : lengths[row]]
                    total = total + self._passage_terms(queries, hidden, of_row) * (self.passage_weight / asked)
        return torch.cat(vectors), total

    def _passage_terms(
        self, queries: torch.Tensor, hidden: torch.Tensor, asked: Sequence[tuple[int, int, int]]
    ) -> torch.Tensor:
        """Sum over queries, by their row and their passage's tokens, in a document's hidden states (L, D)."""
        grid = [(begin, min(begin + PASSAGE_TOKENS, len(hidden))) for begin in range(0, len(hidden), PASSAGE_TOKENS)]
        parts = [(begin, end) for _, begin, end in asked] + grid
        vectors = encoder_of(self.model).span_vectors(hidden, parts).float()
        rivals = torch.tensor([[not overlap(span, other) for other in grid] for span in parts[: len(asked)]])
        rivals = rivals.to(hidden.device)
        total = torch.zeros((), device=hidden.device)
        cuts = self.cuts(queries[[row for row, _, _ in asked]], vectors)
        for q, v in cuts:
            total = total + passage_loss(q, v[: len(asked)], v[len(asked) :], rivals, self.temperature)
        return total / len(cuts)

    def _compute(
        self, queries: Features, documents: Features, labels: Labels, gradients: GradientSum | None
    ) -> torch.Tensor:
        q, q_replays = self.encode_without_graph(queries, self.chunk_tokens)
        d, d_replays = self.encode_without_graph(documents, 1)
        if gradients is None:
            return self._loss(q, d, labels)
        with torch.enable_grad():
            loss = self._loss(q.requires_grad_(), d.requires_grad_(), labels)
            to_queries, to_documents = torch.autograd.grad(loss, [q, d])
        self.replay(documents, 1, d_replays, to_documents, gradients)
        self.replay(queries, self.chunk_tokens, q_replays, to_queries, gradients)
        return loss

    def _loss(self, queries: torch.Tensor, documents: torch.Tensor, labels: Labels) -> torch.Tensor:
        right = right_documents(labels)
        bank = self.bank
        if bank is None or not len(bank.vectors):
            earlier, elsewhere = documents[:0], right[:, :0]
        else:
            stays = ~torch.isin(bank.documents, labels["documents"].cpu())
            earlier = bank.vectors[stays].to(documents.device)
            elsewhere = right_documents({**labels, "documents": bank.documents[stays].to(right.device)})
        right = torch.cat([right, elsewhere], dim=1)
        cuts = self.cuts(queries, documents)
        total = torch.zeros((), device=queries.device)
        for q, d in cuts:
            old = F.normalize(earlier[:, : d.shape[1]], dim=-1)
            scores = torch.cat([q @ d.t(), q @ old.t()], dim=1)
            total = total + ranking_loss(scores / self.temperature, right)
        total = total / len(cuts)
        if self.anchors is not None:
            total = total + self.anchors.loss(queries, self.anchors.queries, labels["queries"], len(queries))
            total = total + self.anchors.loss(documents, self.anchors.documents, labels["documents"], len(documents))
        if bank is not None and torch.is_grad_enabled():
            bank.push(documents, labels["documents"])
        return total


class DocumentBank:
    """Vectors of the documents of the last steps; a document that comes again replaces its old vector.

    Args:
        size: vectors kept, at most.

    Attributes:
        vectors: (K, D) fp32 on the CPU, newest first.
        documents: (K,) their numbers.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.vectors = torch.zeros(0, 0)
        self.documents = torch.zeros(0, dtype=torch.long)

    def push(self, vectors: torch.Tensor, documents: torch.Tensor) -> None:
        """Add (N, D) and their numbers (N,)."""
        new, numbers = vectors.detach().float().cpu(), documents.cpu()
        stays = ~torch.isin(self.documents, numbers)
        old = self.vectors[stays] if len(self.vectors) else new[:0]
        self.vectors = torch.cat([new, old])[: self.size]
        self.documents = torch.cat([numbers, self.documents[stays]])[: self.size]

    def state(self) -> dict[str, torch.Tensor]:
        """What `restore` takes."""
        return {"vectors": self.vectors, "documents": self.documents}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Become what the bank was when `state` was taken."""
        self.vectors, self.documents = state["vectors"], state["documents"]


def right_documents(labels: Labels) -> torch.Tensor:
    """(Q, N) bool: which documents of the step answer which query."""
    return (labels["relevant"][:, :, None] == labels["documents"]).any(1)


def overlap(span: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether more than a fifth of `other` is in `span`: so much may hold the answer too."""
    return 5 * (min(span[1], other[1]) - max(span[0], other[0])) > other[1] - other[0]


def passage_loss(
    queries: torch.Tensor, right: torch.Tensor, parts: torch.Tensor, rivals: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Sum over queries of the cross entropy of their passage among the parts of its document that do not overlap it.

    Args:
        queries, right: unit vectors (Q, D) of queries and the passages that answer them.
        parts: unit vectors (P, D) of all parts of the document.
        rivals: (Q, P) bool, which of them a query's passage is to be told apart from.
    """
    wrong = (queries @ parts.t()).masked_fill(~rivals, float("-inf"))
    scores = torch.cat([(queries * right).sum(1, keepdim=True), wrong], dim=1) / temperature
    return F.cross_entropy(scores, torch.zeros(len(queries), dtype=torch.long, device=scores.device), reduction="sum")


def ranking_loss(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over all pairs of a query and a right document, other right ones left out of its softmax.

    Args:
        scores: (Q, N), divided by the temperature.
        right: (Q, N) bool.
    """
    pairs = right.nonzero()
    others = right[pairs[:, 0]]
    others[torch.arange(len(pairs), device=scores.device), pairs[:, 1]] = False
    return F.cross_entropy(scores[pairs[:, 0]].masked_fill(others, float("-inf")), pairs[:, 1])
