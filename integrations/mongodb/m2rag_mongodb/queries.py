"""Pipelines: what the server is asked for a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bson.binary import Binary

from m2rag_mongodb.server import Doc

SCORE = "m2rag_score"

CANDIDATES = 20
"""How many times the documents asked for an approximate search looks at; Atlas's documentation advises 20."""

MIN_CANDIDATES, MAX_CANDIDATES = 100, 10_000  # the latter is Atlas's limit


def index_name(what: str) -> str:
    """Name of the search index of a vector, or of the text."""
    return f"m2rag_{what}"


def vector_stage(name: str, vector: Binary, limit: int, condition: Doc, *, exact: bool) -> Doc:
    """The documents whose vector of this name is nearest.

    Args:
        name: of the vector.
        vector: of the kind that is stored.
        limit: how many documents.
        condition: that they must fulfil; empty for none.
        exact: compare with all of them; the graph gives 10,000 at most, so more are always compared with all.
    """
    stage: Doc = {"index": index_name(name), "path": name, "queryVector": vector, "limit": limit}
    if exact or limit > MAX_CANDIDATES:
        stage["exact"] = True
    else:
        stage["numCandidates"] = min(max(CANDIDATES * limit, MIN_CANDIDATES), MAX_CANDIDATES)
    return {"$vectorSearch": {**stage, **({"filter": condition} if condition else {})}}


def text_stages(text: str, limit: int, condition: Doc) -> list[Doc]:
    """The documents that fit some words best, in text or title."""
    search = {"index": index_name("text"), "text": {"query": text, "path": ["text", "title"]}}
    return [{"$search": search}, *([{"$match": condition}] if condition else []), {"$limit": limit}]


def shown(projection: Doc, score: str) -> Doc:
    """The last stage: some fields, and the score of this kind."""
    return {"$project": {**projection, SCORE: {"$meta": score}}}


def both(one: Doc, other: Mapping[str, Any] | None) -> Doc:
    """Two conditions, both of which must hold."""
    return {"$and": [one, dict(other)]} if one and other else one or dict(other or {})
