"""`watch`: what happens in a folder is in its index a moment later."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest
from fake_embedder import HashEmbedder

from m2rag.errors import DocumentError, RemoteError
from m2rag.index import LongDocumentIndex, SyncReport, watching
from m2rag.index.watching import watch


class Watching:
    """`watch` in a thread; `next` is its next report, or the error it ended with."""

    def __init__(self, index: LongDocumentIndex, folder: Path, **settings: Any) -> None:
        self._reports: Queue[Any] = Queue()
        self.stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(index, folder, settings))
        self._thread.start()

    def _run(self, index: LongDocumentIndex, folder: Path, settings: dict[str, Any]) -> None:
        try:
            for report in watch(index, folder, stop=self.stop, **settings):
                self._reports.put(report)
        except DocumentError as error:
            self._reports.put(error)

    def next(self) -> Any:
        return self._reports.get(timeout=30)

    def nothing_for(self, seconds: float) -> None:
        with pytest.raises(Empty):
            self._reports.get(timeout=seconds)

    def end(self) -> None:
        self.stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("About apples.")
    (folder / "sub" / "c.txt").write_text("About cats.")
    return folder


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder()


@pytest.fixture
def index(folder: Path, embedder: HashEmbedder) -> Iterator[LongDocumentIndex]:
    with LongDocumentIndex(folder / "index", embedder) as index:  # in the folder: its own writes must not count
        yield index


@pytest.fixture
def watching_thread(index: LongDocumentIndex, folder: Path) -> Iterator[Watching]:
    thread = Watching(index, folder)
    yield thread
    thread.end()


def did(report: SyncReport) -> tuple[int, int, list[str]]:
    return report.added, report.replaced, report.deleted


def test_changes_are_followed(
    watching_thread: Watching, index: LongDocumentIndex, folder: Path, embedder: HashEmbedder
) -> None:
    assert did(watching_thread.next()) == (2, 0, [])
    (folder / "b.md").write_text("About bees.")
    assert did(watching_thread.next()) == (1, 0, [])
    (folder / "a.txt").write_text("About apples and pears.")
    (folder / "sub" / "c.txt").rename(folder / "sub" / "d.txt")
    assert did(watching_thread.next()) == (1, 1, ["sub/c.txt"])
    # None of these is a document, or a change of one.
    for name in (".hidden.txt", "tool.exe", "b.md"):
        (folder / name).touch()
    watching_thread.nothing_for(1.5)
    shutil.move(folder / "sub", folder.parent / "elsewhere")  # one event, of the folder alone
    assert did(watching_thread.next()) == (0, 0, ["sub/d.txt"])
    (folder / "b.md").write_bytes(b"")
    assert [failure.id for failure in watching_thread.next().failed] == ["b.md"]
    assert index.ids() == ["a.txt", "b.md"] and len(embedder.embedded) == 5


def test_a_folder_that_is_suddenly_empty_or_gone(
    watching_thread: Watching, index: LongDocumentIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert did(watching_thread.next()) == (2, 0, [])
    (folder / "a.txt").unlink()
    shutil.rmtree(folder / "sub")
    watching_thread.nothing_for(2)
    assert len(index) == 2
    (folder / "b.txt").write_text("About bees.")
    assert did(watching_thread.next()) == (1, 0, ["a.txt", "sub/c.txt"])
    folder.rename(folder.parent / "moved")
    error = watching_thread.next()
    assert isinstance(error, DocumentError) and "is gone" in str(error)
    assert index.ids() == ["b.txt"]


def test_a_model_that_fails_is_asked_again(
    watching_thread: Watching, index: LongDocumentIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert did(watching_thread.next()) == (2, 0, [])
    monkeypatch.setattr(watching, "RETRY_SECONDS", 2.0)
    embed = index._embedder.embed_documents
    failures = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        failures.append(time.monotonic())
        raise RemoteError("no answer", status=503)

    monkeypatch.setattr(index._embedder, "embed_documents", refuse)
    (folder / "b.txt").write_text("About bees.")
    watching_thread.nothing_for(1.5)
    assert len(failures) == 1
    monkeypatch.setattr(index._embedder, "embed_documents", embed)
    assert did(watching_thread.next()) == (1, 0, [])
    assert time.monotonic() - failures[0] >= 2.0


def test_a_folder_that_is_not_there(index: LongDocumentIndex, tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="does not exist"):
        next(watch(index, tmp_path / "none"))


def test_which_changes_are_looked_at(folder: Path, index: LongDocumentIndex) -> None:
    """An index in the folder it is made of would wake itself for ever."""
    matters = {"a.txt", "sub/c.txt", "new.pdf", "sub", "gone", "gone/x.csv.gz"}
    (folder / "tool.exe").touch()
    others = {".hidden.txt", ".git/x.txt", "tool.exe", "index/m2rag.json", "index/segments/1/x.json", "index/wal"}
    assert {name for name in matters | others if watching._matters(str(folder / name), str(folder))} == matters
