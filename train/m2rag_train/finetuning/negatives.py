"""Documents that do not answer a query, and vectors of the base model, which find the hardest of them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer

from m2rag.evaluation import BM25Ranker
from m2rag_train.errors import TrainingDataError
from m2rag_train.files import replacing
from m2rag_train.finetuning.data import Pairs
from m2rag_train.finetuning.evaluation import encoder_of
from m2rag_train.finetuning.recipe import Negatives
from m2rag_train.finetuning.schedule import Ranking, TokenTable, padded

logger = logging.getLogger(__name__)

BATCH_TOKENS = 16_384


def find_negatives(settings: Negatives, pairs: Pairs, vectors: dict[str, torch.Tensor] | None) -> Ranking:
    """For each query the documents that negatives are drawn from, hardest first; None: any.

    Args:
        vectors: of `base_vectors`, for negatives by "model".

    Raises:
        TrainingDataError: negatives of the data are asked for, and it has none.
    """
    if not settings.per_document or settings.by == "random":
        return None
    if settings.by == "given":
        if not any(pairs.given):
            raise TrainingDataError("negatives.by is 'given', and no row of the data has negatives")
        return pairs.given
    if settings.by == "bm25":
        found = _by_bm25(pairs, settings.depth)
    else:
        assert vectors is not None
        found = _by_vectors(vectors, pairs, settings)
    logger.info("negatives by %s: %.1f candidates a query", settings.by, np.mean([len(row) for row in found]))
    return found


def _by_bm25(pairs: Pairs, depth: int) -> list[list[int]]:
    corpus = {str(number): text for number, text in enumerate(pairs.documents)}
    queries = {str(number): text for number, text in enumerate(pairs.queries)}
    most = max(len(numbers) for numbers in pairs.relevant)
    run = BM25Ranker().rank(corpus, queries, depth + most)
    return [
        [int(document) for document in run[str(query)] if int(document) not in relevant][:depth]
        for query, relevant in enumerate(pairs.relevant)
    ]


def _by_vectors(vectors: dict[str, torch.Tensor], pairs: Pairs, settings: Negatives) -> list[list[int]]:
    documents = vectors["documents"]
    found = []
    for query, relevant in enumerate(pairs.relevant):
        scores = documents @ vectors["queries"][query]
        limit = (1 - settings.margin) * scores[relevant].max() if settings.margin else torch.tensor(float("inf"))
        scores[relevant] = -float("inf")
        order = scores.argsort(descending=True)[: settings.depth * 4].tolist()
        kept = [number for number in order if -float("inf") < scores[number] <= limit]
        found.append(kept[: settings.depth])
    return found


def base_vectors(
    model: SentenceTransformer, queries: TokenTable, documents: TokenTable, dtype: torch.dtype, cache: Path
) -> dict[str, torch.Tensor]:
    """Unit vectors `queries` (Q, D) and `documents` (N, D) by the model as it is, fp32 on the CPU.

    Args:
        dtype: of the products, float32 or bfloat16.
        cache: file that keeps them for a resumed run.
    """
    if cache.exists():
        return torch.load(cache, map_location="cpu", weights_only=True)
    logger.info("embedding %s documents with the base model", f"{len(documents):,}")
    vectors = {"queries": embed(model, queries, dtype), "documents": embed(model, documents, dtype)}
    with replacing(cache) as temporary:
        torch.save(vectors, temporary)
    return vectors


def embed(
    model: SentenceTransformer, table: TokenTable, dtype: torch.dtype, *, batch_tokens: int = BATCH_TOKENS
) -> torch.Tensor:
    """Unit vectors (N, D) of texts, fp32 on the CPU, by the fast path of inference with products in `dtype`."""
    encoder = encoder_of(model)
    training, device, precision = model.training, encoder.device, encoder.compute_dtype
    order = sorted(range(len(table)), key=table.used)
    vectors = torch.empty(len(table), encoder.config.hidden_size)
    model.eval()
    encoder.compute_dtype = dtype
    try:
        with torch.inference_mode():
            while order:
                size = max(1, batch_tokens // table.used(order[-1]))
                batch, order = order[-size:], order[:-size]
                features = {key: value.to(device) for key, value in padded([table[i] for i in batch]).items()}
                found = F.normalize(model(features)["sentence_embedding"].float(), dim=-1)
                vectors[batch] = found.cpu()
    finally:
        encoder.compute_dtype = precision
        model.train(training)
    return vectors
