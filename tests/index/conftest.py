"""Fixtures of a Qdrant server."""

from __future__ import annotations

from support.qdrant_fixtures import collection, collection_url, double, qdrant, qdrant_url

__all__ = ["collection", "collection_url", "double", "qdrant", "qdrant_url"]
