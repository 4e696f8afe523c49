"""Hybrid queries: the meaning of a whole document and its words, fused by the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from qdrant_client import models

from m2rag.errors import InvalidInputError
from m2rag.index import Embedder
from m2rag.index.filters import MetadataFilter, metadata_filter
from m2rag.index.hits import HIT_FIELDS
from m2rag.index.ingest import DOC, LEXICAL, PASSAGES
from m2rag.stores.lexical import Bm25
from m2rag.stores.qdrant import OVERSAMPLING
from m2rag.stores.qdrant_server import to_filter, to_vector


def hybrid_query(
    text: str,
    embedder: Embedder,
    *,
    limit: int = 10,
    depth: int = 100,
    filter: MetadataFilter | None = None,
    language: str = "english",
    rescore: bool = False,
    with_payload: Sequence[str] | bool = HIT_FIELDS,
) -> dict[str, Any]:
    """The arguments of `query_points` for one request: `client.query_points(name, **hybrid_query(...))`.

    The server fuses both rankings' scores with equal weights (distribution-based score fusion), which finds nearly what
    `DocumentCollection.search` does without `rescore`. That one does more: other weights, passages, and the check that
    the collection is the embedder's, which nobody makes here.

    Args:
        text: what is looked for.
        embedder: the one the collection was made with.
        limit: documents to return.
        depth: documents taken from each ranking.
        filter: what the metadata must be, as `DocumentCollection.search` takes it.
        language: of the collection's BM25 vectors.
        rescore: order the fused documents by their best passage (MAX_SIM on `passages`).
        with_payload: payload fields to return; the default leaves the text out, which may be long.

    Raises:
        InvalidInputError: `limit` or `depth` is out of range, the filter is malformed, the query empty, the language
            unknown.
    """
    if limit < 1 or depth < limit:
        raise InvalidInputError(f"limit must be at least 1 and depth at least limit, not {limit} and {depth}")
    where = to_filter(metadata_filter(filter))
    words = Bm25(language).query(text)
    dense = np.asarray(embedder.embed_query(text), dtype=np.float32)
    quantized = models.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)
    by_meaning = models.Prefetch(
        query=to_vector(dense),
        using=DOC,
        limit=depth,
        filter=where,
        params=models.SearchParams(quantization=quantized),
    )
    prefetch = [by_meaning]
    if words.indices.size:
        prefetch.append(models.Prefetch(query=to_vector(words), using=LEXICAL, limit=depth, filter=where))
    fusion = models.FusionQuery(fusion=models.Fusion.DBSF)
    shown = with_payload if isinstance(with_payload, bool) else list(with_payload)
    if not rescore:
        return {"prefetch": prefetch, "query": fusion, "limit": limit, "with_payload": shown}
    fused = models.Prefetch(prefetch=prefetch, query=fusion, limit=depth)
    # One query vector against the many of a document: a multivector query of one row.
    best_passage = {"prefetch": [fused], "query": to_vector(dense[None, :]), "using": PASSAGES}
    return {**best_passage, "limit": limit, "with_payload": shown}
