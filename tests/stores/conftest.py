"""Fixtures of a Qdrant server."""

from __future__ import annotations

import pytest
from support.qdrant_fixtures import collection, collection_url, double, qdrant, qdrant_url

pytest.register_assert_rewrite("support.store_cases")  # asserts that show their values

__all__ = ["collection", "collection_url", "double", "qdrant", "qdrant_url"]
