"""`kill -9`, Ctrl-C and a second opener: real processes, real signals."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_embedder import HashEmbedder

from m2rag.errors import IndexLockedError
from m2rag.index import LongDocumentIndex
from m2rag.index.documents import point_id
from m2rag.stores import EdgeStore, SparseVector

WORKER = Path(__file__).with_name("index_worker.py")
N_DOCUMENTS = 24


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for i in range(N_DOCUMENTS):
        (folder / f"{i:02}.txt").write_text(f"Document {i} is about w{i}. It has {i * i} words of wisdom.\n" * 2)
    return folder


def start(action: str, index: Path, docs: Path, seconds: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, str(WORKER), action, str(index), str(docs), str(seconds)]
    pipe = subprocess.PIPE
    # A test run in the background hands on an ignored SIGINT; the child must have the usual one.
    return subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(process: subprocess.Popen[str], moment: int | str) -> int:
    """Read until the process says this line, or that so many documents are done; returns how many are."""
    assert process.stdout is not None and process.stderr is not None
    for said in process.stdout:
        done = int(said.split()[1]) if said.startswith("done") else -1
        if said.strip() == moment or (isinstance(moment, int) and done >= moment):
            return done
    pytest.fail(f"the process ended before {moment!r}: {process.stderr.read()}")


def end(process: subprocess.Popen[str], signal_number: int) -> str:
    """Send the signal, wait, and return what the process wrote after what was read before."""
    process.send_signal(signal_number)
    rest, errors = process.communicate(timeout=30)
    return rest + errors


def contents(index: Path) -> dict[str, Any]:
    """Everything stored, apart from where and when."""
    with LongDocumentIndex(index, HashEmbedder(), create=False) as opened:
        ids = opened.ids()
    store = EdgeStore(index)
    points = store.retrieve(
        [point_id(id) for id in ids],
        payload=("id", "hash", "title", "text", "metadata", "n_tokens", "n_windows", "starts", "ends"),
        vectors=("doc", "passages"),
    )
    assert len(points) == store.count() == len(ids)
    words = {record.id: record.vector["lexical"] for record in store._shard.retrieve(list(points), False, ["lexical"])}
    store.close()
    sparse = {id: SparseVector(np.array(one.indices), np.array(one.values)) for id, one in words.items()}
    return {point.payload["id"]: replace(point, sparse={"lexical": sparse[id]}) for id, point in points.items()}


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for id, point in left.items():
        other = right[id]
        assert (point.id, point.payload) == (other.id, other.payload)
        for name in ("doc", "passages"):
            np.testing.assert_array_equal(point.vectors[name], other.vectors[name])
        words, others = point.sparse["lexical"], other.sparse["lexical"]
        assert dict(zip(words.indices, words.values, strict=True)) == dict(
            zip(others.indices, others.values, strict=True)
        )


def test_killed_at_any_moment_and_run_again_it_is_the_same_index(tmp_path: Path, docs: Path) -> None:
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    with LongDocumentIndex(uninterrupted, HashEmbedder()) as index:
        assert index.add(docs).added == N_DOCUMENTS

    n_before = n_kills = 0
    for attempt, moment in enumerate([None, 2, 8, 15, 24]):
        process = start("add", killed, docs, seconds=0.03)
        if moment is None:
            time.sleep(0.4)  # while it is starting or creating the index; other moments of that: see below
        else:
            done = wait_for(process, moment)
            time.sleep(0.007 * attempt)
        end(process, signal.SIGKILL)
        n_kills += process.returncode == -signal.SIGKILL
        if moment is not None:
            there = contents(killed)
            assert len(there) >= max(n_before, done), "what was counted as done got lost"
            n_before = len(there)

    assert n_kills >= 4  # the last one may come when all is over
    embedder = HashEmbedder()
    with LongDocumentIndex(killed, embedder) as index:
        report = index.add(docs)
    assert report.unchanged == n_before and report.failed == []
    assert len(embedder.embedded) == N_DOCUMENTS - n_before, "something was embedded twice"
    assert_same(contents(killed), contents(uninterrupted))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder of documents in their last form, and what an index holds that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    docs = write(folder / "docs", "last")
    with LongDocumentIndex(folder / "index", HashEmbedder()) as index:
        assert index.add(docs).added == N_DOCUMENTS
    return docs, contents(folder / "index")


def write(folder: Path, form: str) -> Path:
    folder.mkdir()
    for i in range(N_DOCUMENTS):
        text = f"Document {i} in its {form} form is about w{i}. It has {i * i} words of wisdom.\n" * (1 + i % 5)
        (folder / f"{i:02}.txt").write_text(text)
    return folder


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[] if seed < 3 else [pytest.mark.slow]) for seed in range(20)]
)
def test_killed_at_a_random_moment(tmp_path: Path, undisturbed: tuple[Path, dict[str, Any]], seed: int) -> None:
    """While it reads, embeds and writes at once, new documents or new forms of them, with `add` or `sync`."""
    draw = random.Random(seed)
    index, (docs, expected) = tmp_path / "index", undisturbed
    if seed % 2:
        with LongDocumentIndex(index, HashEmbedder()) as opened:
            opened.add(write(tmp_path / "docs", "first"))
            # The same files as far as the index knows: a document that moved is followed.
        (tmp_path / "docs").rename(tmp_path / "gone")
    process = start(draw.choice(["add", "sync"]), index, docs, seconds=draw.choice([0.0, 0.02, 0.05]))
    done = wait_for(process, draw.randrange(N_DOCUMENTS))
    time.sleep(draw.random() * 0.1)
    process.kill()
    process.communicate()
    there = contents(index)
    finished = sum(id in there and there[id].payload["text"] == expected[id].payload["text"] for id in expected)
    assert finished >= done, "what was counted as done got lost"
    embedder = HashEmbedder()
    with LongDocumentIndex(index, embedder) as opened:
        report = opened.sync(docs)
    assert (report.unchanged, len(embedder.embedded)) == (finished, N_DOCUMENTS - finished) and not report.failed
    assert_same(contents(index), expected)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15, 0.3, 0.5])
def test_killed_while_it_is_created(tmp_path: Path, docs: Path, delay: float) -> None:
    index = tmp_path / "index"
    process = start("add", index, docs)
    deadline = time.monotonic() + 30
    while not index.exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.communicate()
    with LongDocumentIndex(index, HashEmbedder()) as opened:
        report = opened.add(docs)
        assert report.added + report.unchanged == len(opened) == N_DOCUMENTS


def test_killed_while_replacing(tmp_path: Path, docs: Path) -> None:
    """A changed document is there in its old or its new form at every moment, never both and never neither."""
    index = tmp_path / "index"
    with LongDocumentIndex(index, HashEmbedder()) as opened:
        opened.add(docs)
    old = contents(index)
    for path in docs.iterdir():
        path.write_text(path.read_text() + "More was written.")
    process = start("add", index, docs, seconds=0.03)
    wait_for(process, 10)
    end(process, signal.SIGKILL)
    between = contents(index)
    assert between.keys() == old.keys()
    n_new = sum("More" in point.payload["text"] for point in between.values())
    assert 10 <= n_new < N_DOCUMENTS
    for id, point in between.items():
        text = point.payload["text"]
        assert text in (old[id].payload["text"], (docs / id).read_text())
        np.testing.assert_allclose(point.vectors["doc"], HashEmbedder().vector(text), atol=1e-6)
    with LongDocumentIndex(index, HashEmbedder()) as opened:
        report = opened.add(docs)
    assert (report.unchanged, report.replaced) == (n_new, N_DOCUMENTS - n_new)


def test_ctrl_c_keeps_what_is_done_and_lets_go_of_the_folder(tmp_path: Path, docs: Path) -> None:
    index = tmp_path / "index"
    process = start("add", index, docs, seconds=0.05)
    wait_for(process, 5)
    output = end(process, signal.SIGINT)
    assert "interrupted" in output and "KeyboardInterrupt" in output
    with LongDocumentIndex(index, HashEmbedder(), create=False) as opened:
        kept = len(opened)
        assert 5 <= kept < N_DOCUMENTS
        assert opened.add(docs).unchanged == kept


def test_an_index_open_in_another_process(tmp_path: Path, docs: Path) -> None:
    index = tmp_path / "index"
    process = start("hold", index, docs)
    try:
        wait_for(process, "open")
        for create in (True, False):
            with pytest.raises(IndexLockedError) as caught:
                LongDocumentIndex(index, HashEmbedder(), create=create)
            assert str(index) in str(caught.value) and f"pid {process.pid}" in str(caught.value)
    finally:
        process.kill()
        process.communicate()
    with LongDocumentIndex(index, HashEmbedder()) as opened:  # the lock died with its holder
        assert len(opened) == 0
