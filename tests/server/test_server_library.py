"""Uploads into the index: order, bounds, failures, progress, deletion, the end."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fake_embedder import HashEmbedder

from m2rag.errors import StoreError
from m2rag.index import LongDocumentIndex
from m2rag.results import EmbeddingResult
from m2rag.server.errors import ApiError
from m2rag.server.library import Library, Progress


class GatedEmbedder(HashEmbedder):
    """Embeds nothing until the gate is opened; with `once` the gate falls shut after each call."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.once = False
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Event()

    def embed_documents(self, texts: Any, **options: Any) -> EmbeddingResult:
        self.arrived.set()
        assert self.gate.wait(20), "the test never opened the gate"
        if self.once:
            self.gate.clear()
        return super().embed_documents(texts, **options)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LongDocumentIndex, GatedEmbedder]]:
    """Making an index takes a second of waiting for the disk."""
    embedder = GatedEmbedder(poison={"crash": "crash", "unwell": "error"})
    with LongDocumentIndex(tmp_path_factory.mktemp("library") / "index", embedder) as index:
        yield index, embedder


@pytest.fixture
def embedder(shared: tuple[LongDocumentIndex, GatedEmbedder]) -> Iterator[GatedEmbedder]:
    embedder = shared[1]
    embedder.embedded.clear()
    embedder.groups.clear()
    embedder.arrived.clear()
    yield embedder
    embedder.once = False
    embedder.gate.set()


@pytest.fixture
def index(shared: tuple[LongDocumentIndex, GatedEmbedder], embedder: GatedEmbedder) -> Iterator[LongDocumentIndex]:
    index = shared[0]
    index.delete(index.ids())
    yield index
    embedder.gate.set()


@contextmanager
def serving(index: LongDocumentIndex, **options: Any) -> Iterator[Library]:
    library = Library(index, **{"idle_seconds": 0.05, **options})
    try:
        yield library
    finally:
        library.stop()


@pytest.fixture
def library(index: LongDocumentIndex) -> Iterator[Library]:
    with serving(index) as opened:
        yield opened


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def finished(library: Library) -> Progress:
    until(lambda: not library.progress().active)
    return library.progress()


def refused(call: Callable[[], Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call()
    return caught.value


def test_an_upload_is_indexed_as_a_file_of_that_name(library: Library, index: LongDocumentIndex) -> None:
    assert library.upload("notes/walk.md", b"# A walk\n\nThrough the forest, past the lake.") == "queued"
    progress = finished(library)
    assert (progress.done, progress.added, progress.failed, progress.queued, progress.indexing) == (1, 1, 0, 0, 0)
    assert progress.tokens > 0 and progress.documents_per_second > 0 and progress.tokens_per_second > 0
    found = library.get("notes/walk.md")
    assert found is not None
    document, known = found
    assert document.title == known.title == "A walk" and document.text.endswith("past the lake.")
    assert document.origin is None and known.metadata["path"] == "notes/walk.md"
    [(hit, n_characters)] = library.search("forest lake", 3)
    assert hit.id == "notes/walk.md" and n_characters == len(document.text) == known.n_characters


def test_what_comes_in_quick_succession_goes_in_one_group(library: Library, embedder: GatedEmbedder) -> None:
    embedder.gate.clear()
    library.upload("first.txt", b"the first")
    assert embedder.arrived.wait(10)
    for i in range(30):
        library.upload(f"{i:02}.txt", b"one of the others, number %d" % i)
    progress = library.progress()
    assert (progress.active, progress.queued, progress.indexing, progress.done) == (True, 30, 1, 0)
    embedder.gate.set()
    assert finished(library).added == 31
    assert embedder.groups == [1, 30]


def test_again_the_same_is_unchanged_and_a_new_version_replaces(
    library: Library, index: LongDocumentIndex, embedder: GatedEmbedder
) -> None:
    library.upload("a.txt", b"old words")
    finished(library)
    library.upload("a.txt", b"old words")
    assert finished(library).unchanged == 1 and len(embedder.embedded) == 1
    library.upload("a.txt", b"new words")
    assert finished(library).replaced == 1
    document = index.get("a.txt")
    assert document is not None and document.text == "new words"


def test_a_new_version_while_the_old_one_is_at_hand(
    library: Library, index: LongDocumentIndex, embedder: GatedEmbedder
) -> None:
    embedder.gate.clear()
    library.upload("a.txt", b"version one")
    assert embedder.arrived.wait(10)
    for number in (b"two", b"three", b"four"):  # those that wait are dropped for the newest
        library.upload("a.txt", b"version " + number)
    assert library.progress().queued == 1
    embedder.gate.set()
    progress = finished(library)
    assert (progress.added, progress.replaced, progress.failed) == (1, 1, 0)
    assert embedder.embedded == ["version one", "version four"]


def test_failures_are_told_with_their_cause_and_the_others_indexed(library: Library, index: LongDocumentIndex) -> None:
    library.upload("good.txt", b"good")
    library.upload("empty.txt", b"  \n ")
    library.upload("broken.pdf", b"%PDF-1.4 and nothing more")
    library.upload("binary.txt", bytes(range(256)) * 4)
    library.upload("unwell.txt", b"the model is unwell with this")
    progress = finished(library)
    assert (progress.added, progress.failed) == (1, 4)
    told = {failure.id: (failure.error, failure.message) for failure in progress.failures}
    assert told["empty.txt"] == ("DocumentError", "empty.txt is empty")
    assert told["broken.pdf"][0] == "DocumentError" and told["binary.txt"][0] == "DocumentError"
    assert told["unwell.txt"][0] == "InvalidInputError"
    assert index.ids() == ["good.txt"]


def test_a_file_of_rows_is_many_documents(library: Library, index: LongDocumentIndex) -> None:
    rows = [{"id": str(i), "text": f"the text of row {i}"} for i in range(5)]
    lines = "\n".join([*map(json.dumps, rows), "{broken"])
    library.upload("rows.jsonl.gz", gzip.compress(lines.encode()))
    progress = finished(library)
    assert (progress.added, progress.failed) == (5, 1)
    assert len(index) == 5 and index.ids()[0].endswith("#0")


def test_a_model_that_falls_over_fails_what_it_had_and_the_next_ones_are_indexed(
    library: Library, index: LongDocumentIndex, embedder: GatedEmbedder
) -> None:
    embedder.gate.clear()
    library.upload("bad.txt", b"crash")
    library.upload("beside.txt", b"beside it in the same batch")
    assert embedder.arrived.wait(10)
    library.upload("after.txt", b"after it")
    embedder.gate.set()
    progress = finished(library)
    assert progress.added == 1 and index.ids() == ["after.txt"]
    assert {failure.id for failure in progress.failures} == {"bad.txt", "beside.txt"}
    assert all("RuntimeError: the model fell over" in failure.message for failure in progress.failures)


def test_a_store_that_fails_for_a_while(
    library: Library, index: LongDocumentIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.upload("before.txt", b"before")
    finished(library)

    def full(*args: Any, **kwargs: Any) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(index._store, "upsert", full)
        library.upload("during.txt", b"during")
        [failure] = finished(library).failures
    assert (failure.id, failure.error, failure.message) == ("during.txt", "StoreError", "the disk is full")
    library.upload("during.txt", b"during")
    assert finished(library).added == 1
    assert index.ids() == ["before.txt", "during.txt"]


def test_a_parser_that_falls_over_fails_its_file_only(
    library: Library, index: LongDocumentIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    from m2rag.server import library as module

    parse = module.parse_documents

    def faulty(data: Any, name: str) -> Iterator[Any]:
        if name == "evil.txt":
            raise ZeroDivisionError("evil")
        yield from parse(data, name)

    monkeypatch.setattr(module, "parse_documents", faulty)
    for name in ("a.txt", "evil.txt", "b.txt"):
        library.upload(name, name.encode())
    progress = finished(library)
    assert progress.added == 2 and index.ids() == ["a.txt", "b.txt"]
    assert [failure.id for failure in progress.failures] == ["evil.txt"]
    assert "ZeroDivisionError" in progress.failures[0].message


def test_the_queue_is_bounded_in_files_and_bytes(index: LongDocumentIndex, embedder: GatedEmbedder) -> None:
    with serving(index, max_upload_bytes=100, max_waiting=3, max_waiting_bytes=150) as library:
        embedder.gate.clear()
        library.upload("at hand.txt", b"x" * 80)
        assert embedder.arrived.wait(10)
        assert refused(lambda: library.upload("large.txt", b"x" * 101)).status == 413
        library.upload("a.txt", b"x" * 90)
        full = refused(lambda: library.upload("b.txt", b"x" * 90))
        assert (full.status, full.code, full.retry_after) == (429, "queue_full", 2.0)
        library.upload("b.txt", b"x")
        library.upload("c.txt", b"x")
        assert refused(lambda: library.upload("d.txt", b"x")).status == 429
        library.upload("a.txt", b"a new version is no new file")
        with library.room("a.txt", 40):
            assert refused(lambda: library.upload("b.txt", b"x" * 90)).status == 429
            with pytest.raises(ApiError), library.room("a.txt", 90):
                pass
        embedder.gate.set()
        assert finished(library).added == 4
        with library.room("e.txt", 100):  # all of it is free again
            pass


@pytest.mark.parametrize(
    "name",
    ["", " ", "/etc/passwd.txt", "../up.txt", "a/../b.txt", "a//b.txt", "./a.txt", "a\0.txt", "a\n.txt", "\ud800.txt"]
    + ["x" * 1025 + ".txt"],
)
def test_names_that_are_none(library: Library, name: str) -> None:
    assert refused(lambda: library.upload(name, b"text")).status == 400


def test_kinds_that_are_not_read(library: Library) -> None:
    error = refused(lambda: library.upload("photo.png", b"..."))
    assert error.status == 415 and ".pdf" in error.message


def test_deleting_takes_its_turn_while_uploads_keep_coming(
    library: Library, index: LongDocumentIndex, embedder: GatedEmbedder
) -> None:
    library.upload("old.txt", b"old")
    finished(library)
    embedder.gate.clear()
    embedder.arrived.clear()
    library.upload("at hand.txt", b"at hand")
    assert embedder.arrived.wait(10)
    library.upload("waiting.txt", b"waiting")
    gone: list[tuple[str, bool]] = []
    threads = [
        threading.Thread(target=lambda name=name: gone.append((name, library.delete(name))))
        for name in ("old.txt", "at hand.txt", "waiting.txt", "nowhere.txt")
    ]
    for thread in threads:
        thread.start()
    until(lambda: library._others_turn == 4)
    library.upload("after.txt", b"after")
    embedder.gate.set()
    for thread in threads:
        thread.join(20)
    finished(library)
    assert dict(gone) == {"old.txt": True, "at hand.txt": True, "waiting.txt": True, "nowhere.txt": False}
    assert index.ids() == ["after.txt"]
    assert not library.delete("old.txt")


def test_the_time_left_is_judged_by_lengths(index: LongDocumentIndex, embedder: GatedEmbedder) -> None:
    now = [100.0]
    embedder.once = True
    embedder.gate.clear()
    with serving(index, clock=lambda: now[0], batch_tokens=1) as library:
        for name in ("a.txt", "b.txt", "c.txt"):
            library.upload(name, b"word " * 100)
        assert embedder.arrived.wait(10)
        assert library.progress().eta_seconds is None
        now[0] += 10
        embedder.gate.set()
        until(lambda: library.progress().done == 1)
        assert library.progress().eta_seconds == pytest.approx(20)
        embedder.once = False
        embedder.gate.set()
        progress = finished(library)
    assert progress.seconds == 10 and progress.documents_per_second == pytest.approx(0.3)
    assert progress.eta_seconds == 0


def test_stopping_finishes_what_is_at_hand_and_says_what_is_left(
    index: LongDocumentIndex, embedder: GatedEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    library = Library(index, idle_seconds=0.05)
    embedder.gate.clear()
    library.upload("at hand.txt", b"at hand")
    assert embedder.arrived.wait(10)
    library.upload("left.txt", b"left")
    assert library.stop(timeout=0.01) == ["at hand.txt", "left.txt"]
    assert refused(lambda: library.upload("late.txt", b"late")).status == 503
    embedder.gate.set()
    assert library.stop() == ["left.txt"]
    assert index.ids() == ["at hand.txt"]
    assert "left.txt" in caplog.text


def test_what_is_kept_of_failures_is_bounded(index: LongDocumentIndex) -> None:
    with serving(index) as library:
        for i in range(250):
            library.upload(f"{i:03}.txt", b" ")
        progress = finished(library)
    assert progress.failed == 250 and len(progress.failures) == 200
    assert progress.failures[-1].id == "249.txt"


def test_listing_and_fields(library: Library) -> None:
    rows = [{"id": f"{i:02}", "text": f"row {i}", "year": 2000 + i % 3, "tags": ["a", "b"]} for i in range(20)]
    library.upload("rows.jsonl", "\n".join(map(json.dumps, rows)).encode())
    library.upload("other.txt", b"something else")
    finished(library)
    everything, total = library.documents(0, 100)
    assert total == 21 and [stored.id for stored in everything] == sorted(stored.id for stored in everything)
    some, total = library.documents(18, 100, "rows.jsonl#")
    assert total == 20 and [stored.id for stored in some] == ["rows.jsonl#18", "rows.jsonl#19"]
    assert library.documents(1000, 5) == ([], 21)
    fields = library.fields()
    assert fields["year"] == [2000, 2001, 2002] and fields["tags"] == ["a", "b"]
    library.upload("more.jsonl", json.dumps({"id": "1", "text": "one more", "colour": "red"}).encode())
    finished(library)
    assert library.fields()["colour"] == ["red"]
