"""Requests that nobody thought of, made from the server's own description: no 5xx, and answers are as described."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from support.serving import serving
from tiny_models import FakeBackend

from m2rag.server.app import Server
from m2rag.server.settings import ServerSettings

# The description says 503 for what stops; while the server runs, there is none.
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
EXAMPLES = int(os.environ.get("M2RAG_SCHEMA_EXAMPLES", "40"))


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    limits = ServerSettings(max_request_bytes=1_000_000)
    index = tmp_path_factory.mktemp("described") / "index"
    with serving(Server(FakeBackend(matryoshka=(4,)), settings=limits, index=index).app) as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


def test_every_route_keeps_to_its_description(described: Any) -> None:
    seen = set()
    for found in described.get_all_operations():
        operation = found.ok()
        seen.add(operation.label)

        @given(case=operation.as_strategy())
        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        def keeps(case: Any) -> None:
            case.call_and_validate(checks=CHECKS, timeout=30)

        keeps()
    assert {"POST /v1/embeddings", "GET /v1/models", "POST /api/search", "PUT /api/documents/{id}"} <= seen
