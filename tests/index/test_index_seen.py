"""What one run has seen: exact, and in little memory."""

from __future__ import annotations

import hashlib
import tracemalloc

from m2rag.index.seen import Seen


def digest(number: int) -> bytes:
    return hashlib.md5(str(number).encode()).digest()


def test_the_first_of_an_id_is_kept() -> None:
    seen = Seen()
    assert [seen.first(digest(i % 300), digest(i)) for i in range(600)] == [
        *[None] * 300,
        *[digest(i) for i in range(300)],
    ]


def test_what_only_looks_like_an_entry_is_none() -> None:
    """An id that lies across other entries of its bucket, or is the digest of one, has not been seen."""
    seen, id, again = Seen(), b"id" + bytes(range(14)), b"id" + bytes(range(100, 114))
    assert seen.first(id, again) is None and seen.first(again, id) is None
    across = id[2:] + again[:2]
    assert seen.first(b"id" + again[2:], b"x" * 16) == id
    assert seen.first(across, b"y" * 16) is None and seen.first(across, b"z" * 16) == b"y" * 16
    inside = Seen()
    inside.first(id, b"12idabcdefghijkl")
    inside.first(b"idmn" + bytes(12), b"d" * 16)
    assert inside.first(b"idabcdefghijklid", b"e" * 16) is None, "in a digest and on into the next id"


def test_memory() -> None:
    seen, n = Seen(), 200_000
    tracemalloc.start()
    for i in range(n):
        seen.first(digest(i), digest(-i))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken < 120 * n, "a dict takes twice as much already here"
