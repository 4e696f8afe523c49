"""Requests as bytes, and what servers say is wrong, without a server."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2rag.backends.wire import RequestRule, read_complaint, request_body
from m2rag.batching import Piece


def piece(number: int, text: str) -> Piece:
    return Piece(number, 0, np.zeros(len(text.encode("utf-8", "replace")) + 2, dtype=np.int32), text)


@given(
    st.lists(st.text(st.sampled_from('ab"\\\n\x01é🦜\ud83d'), min_size=1, max_size=400), max_size=30),
    st.integers(1, 8),
    st.integers(1, 600),
    st.integers(1, 4_000),
)
def test_requests_keep_every_cap_and_every_input(texts: list[str], items: int, tokens: int, size: int) -> None:
    pieces = [piece(number, text) for number, text in enumerate(texts)]
    plan = RequestRule(items, size).plan(pieces, tokens)
    assert [position for request in plan for position in request] == list(range(len(texts)))
    for request in plan:
        body = request_body("some/model", [texts[i] for i in request], dimensions=256, base64=True)
        assert json.loads(body)["input"] == [texts[i].replace("\ud83d", "\ufffd") for i in request]
        assert len(request) <= items
        assert len(request) == 1 or len(body) <= size and sum(len(pieces[i]) for i in request) <= tokens


@given(st.lists(st.integers(1, 50), min_size=2, max_size=12))
def test_half_the_cost_always_divides_a_request(lengths: list[int]) -> None:
    rule = RequestRule(100, 1_000_000)
    pieces = [piece(number, "a" * length) for number, length in enumerate(lengths)]
    assert len(rule.plan(pieces, rule.total(pieces) // 2)) > 1


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        ('{"error": {"message": "bad", "type": "invalid_request_error", "code": "oops"}}', "bad", "oops"),
        ('{"error": {"message": "bad", "type": "invalid", "code": null}}', "bad", "invalid"),
        ('{"error": "bad", "code": 7}', "bad", ""),
        ('{"detail": "bad"}', "bad", ""),
        ('{"detail": [{"loc": ["input"], "msg": "bad"}]}', '[{"loc": ["input"], "msg": "bad"}]', ""),
        ('{"message": "bad"}', "bad", ""),
        ("bad\nand\x1b[31m worse", "bad and [31m worse", ""),
        ("<html><body>Bad Gateway</body></html>", "", ""),
        ("", "", ""),
        ("[" * 100_000, "[" * 300, ""),
        ("x" * 5_000, "x" * 300, ""),
        ("17", "17", ""),
        ("null", "null", ""),
    ],
    ids=range(13),
)
def test_complaints_in_every_form(body: str, message: str, code: str) -> None:
    complaint = read_complaint(400, body.encode())
    assert (complaint.message, complaint.code) == (message, code)
    assert not complaint.about_model and not complaint.about_encoding
