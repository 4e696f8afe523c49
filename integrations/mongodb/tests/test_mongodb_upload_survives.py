"""Uploads that are killed or lose their server: run again, nothing is lost, nothing paid twice, nothing left over."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import Doc, quick
from fake_embedder import HashEmbedder
from pymongo import MongoClient
from pymongo.database import Database
from support.atlas_front import AtlasFront
from support.collection_cases import DOCUMENTS, document
from support.killed import kill_once_done

from m2rag.errors import StoreError
from m2rag_mongodb import CollectionOptions, DocumentCollection, layout, parts

N = len(DOCUMENTS)
WORKER = Path(__file__).with_name("kill_worker.py")


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the worker: every document is kept in parts."""
    monkeypatch.setattr(layout, "INLINE_BYTES", 1500)
    monkeypatch.setattr(layout, "PART_BYTES", 700)


@pytest.mark.parametrize("kind", ["url", "async client"])
def test_killed_and_run_again(
    kind: str, mongodb_uri: str, database: Database[Doc], in_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _, options = mongodb_uri.partition("/?")
    paths = os.pathsep.join([str(WORKER.parent), *sys.path])
    there = 0
    for moment in (4, 11):
        script = [str(WORKER), kind, base, options, database.name]
        done = kill_once_done(script, moment, env={**os.environ, "PYTHONPATH": paths}, after=0.012)
        before, there = there, database["docs"].count_documents({"_id": {"$ne": "m2rag"}})
        assert max(done, before) <= there < N, "what was counted as done got lost"
    embedder = HashEmbedder()
    with DocumentCollection.on_server(database["docs"], embedder) as again:
        report = again.add(DOCUMENTS)
        assert (report.unchanged, report.added, len(again)) == (there, N - there, N)
        assert len(embedder.embedded) == N - there
        for one in DOCUMENTS:
            assert again.get(one.id) == one
        assert again.search("only3", 1, mode="dense")[0].passages
        monkeypatch.setattr(parts, "ABANDONED_AFTER", timedelta(0))
        again.add(document(0, " Changed."))
    named = database["docs"].distinct("m2rag.outside.revision")
    left = database["docs.parts"].distinct("revision")
    assert sorted(left) == sorted(named) and len(named) == N, "parts of a killed run were left over"


@pytest.mark.parametrize("done_first", [False, True], ids=["before", "after"])
def test_the_connection_breaks_in_the_middle(
    front: AtlasFront, own: Callable[..., DocumentCollection], done_first: bool, in_parts: None
) -> None:
    embedder = HashEmbedder()
    opened = own(embedder)
    front.fail(3, "insert", done_first=done_first, after=2)
    front.fail(3, "update", done_first=done_first, after=5)
    front.fail(3, "delete", done_first=done_first, after=1)
    report = opened.add(DOCUMENTS, batch_tokens=100)
    assert (report.added, report.failed, len(opened), len(embedder.embedded)) == (N, [], N, N)
    changed = [document(i, " Changed.") for i in range(3)]
    front.fail(2, "update", done_first=done_first)
    report = opened.add([*changed, *DOCUMENTS[3:]])
    assert (report.replaced, report.unchanged) == (3, N - 3)
    assert all(opened.get(one.id) == one for one in [*changed, *DOCUMENTS[3:]])


def test_the_server_goes_away(front: AtlasFront, own: Callable[..., DocumentCollection]) -> None:
    done: list[int] = []
    opened = own(patience=quick(0.3))

    def watch(state: Any) -> None:
        done.append(state.done)
        if state.done >= 6:
            front.stop()

    with pytest.raises(StoreError, match="cannot be reached.*Nothing of this call counts as done"):
        opened.add(DOCUMENTS, batch_tokens=60, progress=watch)
    front.start()
    again = own(patience=quick())
    there = len(again)
    assert done[-1] <= there < N
    report = again.add(DOCUMENTS)
    assert (report.unchanged, report.added, len(again)) == (there, N - there, N)


def test_a_server_that_restarts_is_waited_for(front: AtlasFront, own: Callable[..., DocumentCollection]) -> None:
    opened = own()
    timer: list[threading.Timer] = []

    def watch(state: Any) -> None:
        if state.done >= 6 and not timer:
            front.stop()
            timer.append(threading.Timer(0.4, front.start))
            timer[0].start()

    assert opened.add(DOCUMENTS, batch_tokens=60, progress=watch).added == N == len(opened)


def test_two_uploaders_at_once(front: AtlasFront, in_parts: None) -> None:
    """Both add the same documents to the same new collection: every document is there once, whole."""
    reports: list[Any] = []

    def upload() -> None:
        client: MongoClient[Doc] = MongoClient(front.uri)
        options = CollectionOptions(lexical=None)
        with DocumentCollection.on_server(client["m2rag_own"]["docs"], HashEmbedder(), options=options) as opened:
            reports.append(opened.add(DOCUMENTS, batch_tokens=100))
        client.close()

    threads = [threading.Thread(target=upload) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(reports) == 2 and all(report.failed == [] for report in reports)
    client: MongoClient[Doc] = MongoClient(front.uri)
    with DocumentCollection.on_server(client["m2rag_own"]["docs"], HashEmbedder()) as opened:
        assert opened.ids() == [one.id for one in DOCUMENTS]
        assert all(opened.get(one.id) == one for one in DOCUMENTS)
    client.close()
