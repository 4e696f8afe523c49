"""An index on a remote model: documents without passages, and what becomes of an `add` when the model fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.embedding_server import Answer, Request, complaint, serving
from support.fake_time import FakeTime

from m2rag import Document, LongDocumentIndex, M2Embedder
from m2rag.backends.providers import Caps
from m2rag.backends.remote import RemoteBackend
from m2rag.errors import RemoteError

DOCUMENTS = [Document(f"d{number}", f"document number {number}", f"Title {number}") for number in range(6)]


def embedder(url: str) -> M2Embedder:
    caps = Caps(items=2, tokens=1_000, bytes=10_000)
    return M2Embedder(backend=RemoteBackend("m", base_url=url, caps=caps, retry=FakeTime().policy(attempts=2)))


def test_documents_are_found_and_passages_shown_by_their_words(tmp_path: Path) -> None:
    with serving() as server, LongDocumentIndex(tmp_path / "index", embedder(server.url)) as index:
        report = index.add(DOCUMENTS)
        assert report.added == 6 and not report.failed
        for rescore in (0.0, 0.5):
            hits = index.search("document number 3", k=2, rescore=rescore)
            assert hits[0].id == "d3" and hits[0].score == pytest.approx(1, abs=1e-5)
            [passage] = hits[0].passages
            assert passage.text == "document number 3" and not passage.own_score
        assert index.add(DOCUMENTS).unchanged == 6


def test_a_partial_failure_stores_what_came_and_names_the_rest(tmp_path: Path) -> None:
    def fault(request: Request) -> Answer | None:
        return complaint(503, "overloaded") if "document number 5" in request.inputs else None

    with serving(fault) as server, LongDocumentIndex(tmp_path / "index", embedder(server.url)) as index:
        report = index.add(DOCUMENTS)
        stored, failed = set(index.ids()), {failure.id for failure in report.failed}
        assert {"d4", "d5"} <= failed and "d0" in stored and stored | failed == {f"d{n}" for n in range(6)}
        assert all("overloaded" in str(failure.cause) for failure in report.failed)
        server.fault = None
        asked = len(server.texts)
        assert index.add(DOCUMENTS).added == len(failed)
        assert len(server.texts) - asked == len(failed)  # nothing was paid for twice


def test_a_model_that_answers_nothing_ends_the_run(tmp_path: Path) -> None:
    with serving() as server, LongDocumentIndex(tmp_path / "index", embedder(server.url)) as index:
        index.add(DOCUMENTS[:2])
        server.fault = lambda request: complaint(401, "key expired")
        with pytest.raises(RemoteError, match="key expired"):
            index.add(DOCUMENTS)
        assert index.ids() == ["d0", "d1"]
