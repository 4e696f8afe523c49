"""`sync`: the index holds what the folder holds, and nothing is deleted that might still be there."""

from __future__ import annotations

import asyncio
import gzip
import os
import shutil
import signal
from pathlib import Path

import pytest
from fake_embedder import HashEmbedder
from test_index_survives import assert_same, contents, end, start, wait_for

from m2rag.errors import DocumentError, InvalidInputError
from m2rag.index import AsyncLongDocumentIndex, Document, LongDocumentIndex, SyncReport


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("About apples.")
    (folder / "b.md").write_text("# Bees\n\nAbout bees.")
    (folder / "sub" / "c.txt").write_text("About cats.")
    (folder / "rows.jsonl").write_text(
        '{"id": 1, "text": "row one"}\n{"id": 2, "text": "row two"}\n{"text": "third"}\n'
    )
    return folder


ALL = ["a.txt", "b.md", "rows.jsonl#1", "rows.jsonl#2", "rows.jsonl:3", "sub/c.txt"]


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder()


@pytest.fixture
def index(tmp_path: Path, embedder: HashEmbedder):
    with LongDocumentIndex(tmp_path / "index", embedder) as index:
        yield index


def counts(report: SyncReport) -> tuple[int, int, int, list[str], list[str]]:
    failed = [failure.id for failure in report.failed]
    return report.added, report.replaced, report.unchanged, report.deleted, failed


def test_adds_replaces_deletes(index: LongDocumentIndex, folder: Path, embedder: HashEmbedder) -> None:
    assert counts(index.sync(folder)) == (6, 0, 0, [], [])
    assert counts(index.sync(folder)) == (0, 0, 6, [], [])
    (folder / "a.txt").unlink()
    (folder / "b.md").write_text("# Bees\n\nAbout honey.")
    (folder / "rows.jsonl").write_text('{"id": 2, "text": "row two"}\n{"id": 4, "text": "row four"}\n')
    (folder / "new.rst").write_text("New\n===\n")
    (folder / "other.exe").touch()
    embedder.embedded.clear()
    report = index.sync(folder)
    assert counts(report) == (2, 1, 2, ["a.txt", "rows.jsonl#1", "rows.jsonl:3"], [])
    assert len(embedder.embedded) == 3 and report.skipped == [f"{folder.as_posix()}/other.exe"]
    assert index.ids() == ["b.md", "new.rst", "rows.jsonl#2", "rows.jsonl#4", "sub/c.txt"]


def test_documents_of_other_places_stay(index: LongDocumentIndex, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "others"
    other.mkdir()
    (other / "o.txt").write_text("From another folder.")
    (other / "gone.txt").write_text("Of a disk that is not there now.")
    index.add([other, Document("mine", "Has no file."), Document("a", "Its own id.", origin=str(folder / "a.txt"))])
    index.add(tmp_path / "docs" / "sub")  # "c.txt", of the folder docs/sub
    (other / "gone.txt").unlink()
    index.sync(folder)
    shutil.rmtree(folder / "sub")
    (folder / "a.txt").unlink()
    report = index.sync(folder)
    assert report.deleted == ["a.txt", "sub/c.txt"]
    assert {"o.txt", "gone.txt", "mine", "a", "c.txt"} <= set(index.ids())
    (folder / "sub").mkdir()
    (folder / "sub" / "d.txt").write_text("d")
    assert index.sync(folder / "sub").deleted == ["c.txt"]


def test_what_add_indexed_is_synced_too(
    index: LongDocumentIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    index.add("docs")
    (folder / "a.txt").unlink()
    (folder.parent / "link").symlink_to(folder, target_is_directory=True)
    assert counts(index.sync(folder.parent / "link")) == (0, 0, 5, ["a.txt"], [])


def test_a_folder_that_was_moved(index: LongDocumentIndex, folder: Path, embedder: HashEmbedder) -> None:
    """Its documents are known as its own at the new place, with the vectors they had."""
    index.sync(folder)
    moved = folder.rename(folder.parent / "moved")
    before = {mode: index.search("about row cats", mode=mode) for mode in index.modes}
    embedder.embedded.clear()
    (moved / "a.txt").unlink()
    dry = index.sync(moved, dry_run=True)
    assert (dry.unchanged, index.get("b.md").origin) == (5, str(folder / "b.md"))  # type: ignore[union-attr]
    assert counts(index.sync(moved)) == (0, 0, 5, [], [])  # a.txt may still be on a disk that is not there
    assert index.get("b.md").origin == str(moved / "b.md")  # type: ignore[union-attr]
    assert {mode: index.search("about row cats", mode=mode) for mode in index.modes} == before
    (moved / "b.md").unlink()
    (moved / "rows.jsonl").write_text('{"id": 2, "text": "row two"}')
    assert counts(index.sync(moved)) == (0, 0, 2, ["b.md", "rows.jsonl#1", "rows.jsonl:3"], [])
    assert embedder.embedded == []


def test_on_a_server(folder: Path, collection_url: str) -> None:
    with LongDocumentIndex(collection_url, HashEmbedder()) as index:
        assert counts(index.sync(folder)) == (6, 0, 0, [], [])
        moved = folder.rename(folder.parent / "moved")
        assert counts(index.sync(moved)) == (0, 0, 6, [], [])
        (moved / "a.txt").unlink()
        (moved / "b.md").write_text("changed")
        assert counts(index.sync(moved)) == (0, 1, 4, ["a.txt"], [])
        assert index.ids() == ALL[1:]


def test_a_renamed_file(index: LongDocumentIndex, folder: Path) -> None:
    index.sync(folder)
    (folder / "a.txt").rename(folder / "sub" / "z.txt")
    assert counts(index.sync(folder)) == (1, 0, 5, ["a.txt"], [])


def test_a_file_that_became_unreadable_is_reported_and_its_document_stays(
    index: LongDocumentIndex, folder: Path
) -> None:
    index.sync(folder)
    for content in (b"", b" \n", bytes(range(256))):
        (folder / "a.txt").write_bytes(content)
        report = index.sync(folder)
        assert counts(report) == (0, 0, 5, [], ["a.txt"]), content
        assert report.failed[0].path == str(folder / "a.txt")
        assert index.get("a.txt").text == "About apples."  # type: ignore[union-attr]


def test_rows_of_a_file_with_a_fault_stay(index: LongDocumentIndex, folder: Path) -> None:
    index.sync(folder)
    for content, failed in (
        (b"", "rows.jsonl"),
        (b'{"id": 1, "text": "row one"}\n{"id": 2, "te', "rows.jsonl:2"),
        (b'{"id": 1, "text": "row one"}\n{"id": 2, "text": ""}', "rows.jsonl#2"),
        (b"\0\0\0\0", "rows.jsonl"),
    ):
        (folder / "rows.jsonl").write_bytes(content)
        report = index.sync(folder)
        assert report.deleted == [] and [failure.id for failure in report.failed] == [failed]
        assert index.ids() == ALL


def test_rows_of_a_damaged_compressed_file_stay(index: LongDocumentIndex, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    folder.mkdir()
    lines = "".join(f'{{"id": {i}, "text": "{os.urandom(99).hex()}"}}\n' for i in range(200)).encode()
    (folder / "r.jsonl.gz").write_bytes(gzip.compress(lines))
    assert index.sync(folder).added == 200
    (folder / "r.jsonl.gz").write_bytes(gzip.compress(lines)[:-5000])
    report = index.sync(folder)
    assert report.deleted == [] and len(report.failed) == 1 and len(index) == 200


def test_a_subfolder_that_cannot_be_listed_keeps_its_documents(
    index: LongDocumentIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.sync(folder)
    scandir = os.scandir

    def refuse(place: Path):
        if Path(place).name == "sub":
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refuse)
    report = index.sync(folder)
    assert report.deleted == [] and report.failed[0].path == str(folder / "sub")
    assert index.ids() == ALL


def test_a_folder_that_is_missing_or_empty_is_an_error(index: LongDocumentIndex, folder: Path) -> None:
    """A disk that is not mounted looks the same."""
    index.sync(folder)
    for path in folder.rglob("*.*"):
        path.unlink()
    (folder / "tool.exe").touch()
    with pytest.raises(DocumentError, match="holds no document.*if that is right"):
        index.sync(folder)
    shutil.rmtree(folder)
    with pytest.raises(DocumentError, match="does not exist: if that is right"):
        index.sync(folder)
    folder.touch()
    with pytest.raises(DocumentError, match="is a file: sync takes a folder"):
        index.sync(folder, allow_empty=True)
    assert index.ids() == ALL

    folder.unlink()
    assert index.sync(folder, allow_empty=True, dry_run=True).deleted == ALL and index.ids() == ALL
    assert index.sync(folder, allow_empty=True).deleted == ALL and len(index) == 0


def test_a_folder_that_cannot_be_listed_is_an_error(
    index: LongDocumentIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.sync(folder)

    def refuse(place: Path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DocumentError, match="Permission denied"):
        index.sync(folder, allow_empty=True)
    monkeypatch.undo()
    assert index.ids() == ALL


def test_a_dry_run_tells_and_does_nothing(index: LongDocumentIndex, folder: Path, embedder: HashEmbedder) -> None:
    index.sync(folder)
    (folder / "a.txt").unlink()
    (folder / "b.md").write_text("changed")
    (folder / "new.txt").write_text("new")
    embedder.embedded.clear()
    report = index.sync(folder, dry_run=True)
    assert counts(report) == (1, 1, 4, ["a.txt"], [])
    assert (report.to_add, report.to_replace, report.dry_run) == (["new.txt"], ["b.md"], True)
    assert embedder.embedded == [] and report.n_tokens == 0 and index.ids() == ALL
    assert counts(index.sync(folder)) == counts(report)


def test_only_some_paths(index: LongDocumentIndex, folder: Path) -> None:
    index.sync(folder)
    (folder / "a.txt").unlink()
    (folder / "b.md").write_text("changed")
    shutil.rmtree(folder / "sub")
    assert counts(index.sync(folder, only=[folder / "b.md", folder / "new.txt"])) == (0, 1, 0, [], [])
    assert counts(index.sync(folder, only=[folder / "sub"])) == (0, 0, 0, ["sub/c.txt"], [])
    assert counts(index.sync(folder, only=[])) == (0, 0, 0, [], [])
    assert counts(index.sync(folder)) == (0, 0, 4, ["a.txt"], [])


def test_touching_files_changes_nothing(index: LongDocumentIndex, folder: Path) -> None:
    index.sync(folder)
    for path in folder.rglob("*.*"):
        os.utime(path, (1, 1))
    assert counts(index.sync(folder)) == (0, 0, 6, [], [])


def test_nothing_is_deleted_when_the_model_fails(index: LongDocumentIndex, folder: Path, tmp_path: Path) -> None:
    index.sync(folder)
    index.close()
    (folder / "a.txt").unlink()
    (folder / "b.md").write_text("poison")
    with LongDocumentIndex(tmp_path / "index", HashEmbedder(poison={"poison": "crash"})) as broken:
        with pytest.raises(RuntimeError):
            broken.sync(folder)
        assert broken.ids() == ALL
    with LongDocumentIndex(tmp_path / "index", HashEmbedder()) as again:
        assert counts(again.sync(folder)) == (0, 1, 4, ["a.txt"], [])


def test_wrong_arguments(index: LongDocumentIndex, folder: Path) -> None:
    for wrong in ({"on_too_long": "never"}, {"batch_tokens": 0}):
        with pytest.raises(InvalidInputError):
            index.sync(folder, **wrong)  # type: ignore[arg-type]


def test_async(index: LongDocumentIndex, folder: Path) -> None:
    async def main() -> None:
        twin = AsyncLongDocumentIndex(index)
        assert counts(await twin.sync(folder)) == (6, 0, 0, [], [])
        (folder / "a.txt").unlink()
        assert counts(await twin.sync(folder, dry_run=True, only=[folder])) == (0, 0, 5, ["a.txt"], [])
        assert (await twin.sync(folder)).deleted == ["a.txt"]

    asyncio.run(main())


def test_killed_and_run_again_it_is_the_same_index(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for i in range(24):
        (docs / f"{i:02}.txt").write_text(f"Document {i} is about w{i}. It has {i * i} words of wisdom.\n" * 2)
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    with LongDocumentIndex(killed, HashEmbedder()) as index:
        index.sync(docs)
    for i in range(0, 24, 3):
        (docs / f"{i:02}.txt").unlink()
        (docs / f"{i + 1:02}.txt").write_text(f"Changed {i}.")
        (docs / f"new{i}.txt").write_text(f"New {i}.")
    for done in (7, 20):
        process = start("sync", killed, docs, seconds=0.03)
        wait_for(process, done)
        end(process, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert len(contents(killed)) >= 24, "deleted before all was read"
    process = start("sync", killed, docs)
    wait_for(process, "deleting")
    end(process, signal.SIGKILL)

    with LongDocumentIndex(killed, HashEmbedder()) as index:
        index.sync(docs)
    with LongDocumentIndex(straight, HashEmbedder()) as index:
        index.sync(docs)
    assert_same(contents(killed), contents(straight))


def test_what_a_broken_link_hides_stays(index: LongDocumentIndex, folder: Path, tmp_path: Path) -> None:
    """The target may lie on a disk that is not mounted; a link that was removed is another matter."""
    disk = tmp_path / "disk"
    (disk / "deep").mkdir(parents=True)
    (disk / "far.txt").write_text("About far things.")
    (disk / "deep" / "deeper.txt").write_text("About deep things.")
    (folder / "one.txt").symlink_to(disk / "far.txt")
    (folder / "many").symlink_to(disk)
    assert index.sync(folder).added == 9
    disk.rename(tmp_path / "unmounted")
    assert counts(index.sync(folder)) == (0, 0, 6, [], ["one.txt"])
    (folder / "many").unlink()
    assert counts(index.sync(folder)) == (0, 0, 6, ["many/deep/deeper.txt", "many/far.txt"], ["one.txt"])
    (folder / "one.txt").unlink()
    assert counts(index.sync(folder)) == (0, 0, 6, ["one.txt"], [])
