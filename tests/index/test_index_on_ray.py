"""Indexing by Ray's workers: the same index, point for point, as by one process; workers that die; other failures."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fake_embedder
import numpy as np
import pytest
from fake_embedder import HashEmbedder
from support.local_ray import local_ray
from support.qdrant_server import QdrantTestServer

from m2rag.errors import DocumentError, IndexMismatchError, InvalidInputError, M2RagError, StoreError
from m2rag.index import AddProgress, Document, Failure, LongDocumentIndex, Outcome, on_ray
from m2rag.index.documents import AddReport, point_id
from m2rag.index.ingest import Monitor
from m2rag.index.on_ray import add_with_ray, bundles, model_files
from m2rag.index.ray_workers import LoadModel, pack, read_groups, unpack
from m2rag.index.sources import FileRef, Item, plan
from m2rag.stores import Point, open_store

KEY = "key-that-no-log-may-hold"
FIELDS = ("id", "title", "text", "metadata", "origin", "hash", "on_too_long", "n_tokens", "n_used", "n_windows")
N_FILES = 24


class Embedder(HashEmbedder):
    """Writes down what it embeds; ends its process over a text with "fatal", the first time or each time."""

    def __init__(self, notes: Path, fatal: str = "once") -> None:
        super().__init__(max_tokens=60)
        self._notes = notes
        self._fatal = fatal

    def embed_documents(self, texts: Any, **options: Any) -> Any:
        result = super().embed_documents(texts, **options)
        with self._notes.open("a") as file:
            file.writelines(f"{text.split()[1]}\n" for text in texts)
        died = self._notes.with_suffix(".died")
        if any("fatal" in text for text in texts) and (self._fatal == "always" or not died.exists()):
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray of two CPUs; what it writes is looked through for the key at the end."""
    with local_ray(fake_embedder, sys.modules[__name__]) as (ray, folder):
        yield ray
        ray.shutdown()
        written = [path for path in folder.rglob("*") if path.is_file()]
        assert written, "nothing was looked through"
        assert not [path for path in written if KEY.encode() in path.read_bytes()], "a key was written down"


@pytest.fixture
def server() -> Iterator[QdrantTestServer]:
    with QdrantTestServer(api_key=KEY) as server:
        yield server


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """Short texts, one that is too long for one window, rows with an id twice, an empty file."""
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    for i in range(N_FILES):
        words = " ".join(f"w{i * j % 41}" for j in range(1, 30))
        (folder / "sub" / f"{i:02}.txt").write_text(f"Document {i} is short. {words}.")
    (folder / "long.txt").write_text("Document long. " + " ".join(f"v{j}" for j in range(300)))
    (folder / "rows.jsonl").write_text(
        '{"id": "a", "text": "Row a.", "kind": "x"}\n{"id": "a", "text": "Row a.", "kind": "x"}\n'
        '{"id": "a", "text": "Row another."}\n{"id": "b"}\n{"text": "Row last.", "title": "Last"}\n'
    )
    (folder / "empty.txt").write_text("")
    return folder


def everything(url: str) -> dict[str, Point]:
    """All points by the ids of their documents."""
    store = open_store(url, api_key=KEY)
    ids = [point_id(str(id)) for id in store.values("id")]
    points = store.retrieve(ids, payload=(*FIELDS, "starts", "ends"), vectors=("doc", "passages"))
    assert len(points) == store.count()
    store.close()
    return {point.payload["id"]: point for point in points.values()}


def assert_same(url: str, other: str) -> None:
    """Two indexes are the same, point for point, and score words alike."""
    left, right = everything(url), everything(other)
    assert left.keys() == right.keys()
    for id, point in left.items():
        assert point.payload == right[id].payload
        assert point.vectors.keys() == right[id].vectors.keys()
        for name, vector in point.vectors.items():
            np.testing.assert_allclose(vector, right[id].vectors[name], atol=2e-6, err_msg=id)
    ranked = []
    for one in (url, other):
        with LongDocumentIndex(one, HashEmbedder(), api_key=KEY) as index:
            ranked.append({hit.id: hit.score for hit in index.search("w8 w16 short", 100, mode="lexical")})
    assert ranked[0] == ranked[1] and ranked[0]


def seen(report: AddReport) -> tuple[Any, ...]:
    """What two runs over the same must have in common; workers name files by their whole path."""
    told = [(failure.id, type(failure.cause).__name__, str(failure.cause), failure.path) for failure in report.failed]
    failed = sorted((id, kind, said.replace(f"{Path.cwd()}/", ""), path) for id, kind, said, path in told)
    return report.added, report.replaced, report.unchanged, failed, report.skipped, report.n_tokens


def test_the_same_index_as_by_one_process(
    ray: Any, server: QdrantTestServer, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed in the middle of the first run; the second embeds what has changed and nothing else."""
    url, one_process = f"{server.url}/ray", f"{server.url}/one"
    monkeypatch.chdir(tmp_path)  # ids of relative paths, which mean other files to the workers
    (docs / "sub" / "11.txt").write_text("Document 11 is fatal to the worker that meets it first.")
    (docs / "other.bin").write_bytes(b"\0")
    sources = [Path("docs"), Path("docs/sub/07.txt"), Document("given", "Document given by hand.", "By hand")]
    steps: list[AddProgress] = []
    options: Any = {"batch_tokens": 120, "actors": 2, "cpus_per_actor": 0.5, "api_key": KEY}
    notes = tmp_path / "notes"
    done = add_with_ray(url, sources, embedder=partial(Embedder, notes), progress=steps.append, **options)
    with LongDocumentIndex(one_process, HashEmbedder(max_tokens=60), api_key=KEY) as index:
        expected = index.add(sources, batch_tokens=120)
    assert (tmp_path / "notes.died").exists()
    assert seen(done) == seen(expected)
    assert [failure.id for failure in done.failed if isinstance(failure.cause, DocumentError)]
    assert_same(url, one_process)
    assert steps[-1].done == done.done == N_FILES + 9 and steps[-1].tokens == done.n_tokens > 0
    assert sum(len(step.finished) for step in steps) == done.done
    assert len(steps) > 5 and steps[0].done < done.done / 2, "progress came at the end only"

    (docs / "sub" / "03.txt").write_text("Document 3 has changed.")
    (docs / "sub" / "05.txt").write_text("")
    notes.unlink()
    again = add_with_ray(url, sources, embedder=partial(Embedder, notes), **options)
    assert notes.read_text().split() == ["3"]
    assert (again.added, again.replaced, again.n_tokens) == (0, 1, 4)
    with LongDocumentIndex(one_process, HashEmbedder(max_tokens=60), api_key=KEY) as index:
        assert seen(again) == seen(index.add(sources, batch_tokens=120))
    assert_same(url, one_process)


@pytest.mark.slow
def test_a_document_that_ends_every_worker(ray: Any, server: QdrantTestServer, docs: Path, tmp_path: Path) -> None:
    """It is reported, by itself; all others are indexed."""
    (docs / "sub" / "11.txt").write_text("Document 11 is fatal.")
    url = f"{server.url}/ray"
    make = partial(Embedder, tmp_path / "notes", "always")
    report = add_with_ray(url, docs, embedder=make, actors=1, cpus_per_actor=0.5, api_key=KEY)
    causes = {failure.id: str(failure.cause) for failure in report.failed}
    assert "has ended its worker again and again" in causes.pop("sub/11.txt")
    assert causes.keys() == {"empty.txt", "rows.jsonl#a", "rows.jsonl#b"}
    assert len(everything(url)) == N_FILES - 1 + 3


@pytest.mark.slow
def test_what_ends_a_run(
    ray: Any, server: QdrantTestServer, docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors of workers reach the caller as what they are, and their machines are free again."""
    url = f"{server.url}/ray"
    options: Any = {"actors": 2, "cpus_per_actor": 0.5}
    make = partial(Embedder, tmp_path / "notes")
    with pytest.raises(StoreError, match="QDRANT_API_KEY"):
        add_with_ray(url, docs, embedder=make, **options)
    monkeypatch.setenv("QDRANT_API_KEY", KEY)  # Ray was started before: its workers have it from the caller
    assert add_with_ray(url, docs, embedder=make, **options).added == N_FILES + 3
    with pytest.raises(IndexMismatchError, match="other:64"):
        add_with_ray(url, docs, embedder=partial(HashEmbedder, fingerprint="other:64"), **options)
    (docs / "new.txt").write_text("Document new.")
    server.fail(1000, "PUT .*/points", status=400, said="no more room")
    with pytest.raises(StoreError, match="no more room"):
        add_with_ray(url, docs, embedder=make, **options)
    server.faults.clear()
    assert add_with_ray(url, docs, embedder=make, **options).added == 1


@pytest.mark.parametrize("lazily", [False, True])
def test_documents_that_may_share_an_id_are_read_by_one_task(tmp_path: Path, lazily: bool) -> None:
    for name in ("a/x.txt", "b/x.txt", "a/r.jsonl", "b/r.jsonl", "a/y.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"id": "1", "text": "One"}\n{"text": "Two"}\n')
    more = [Document(f"d{i}", "text") for i in range(20)]
    sources = [
        *(tmp_path / "a", *more[:10], Document("r.jsonl#1", "Another one"), Document("r.jsonl:2", "Another two")),
        *(tmp_path / "b", *more[10:], Document("x.txt", "text"), Document("d3", "other"), Document("x#1", "text")),
    ]
    items, _ = plan(iter(sources) if lazily else sources, [])
    parts = bundles(list(items), 16)
    assert len(parts) >= 12
    told: list[Outcome] = []
    kept: list[str] = []
    for part in parts:
        for row in read_groups(pack(part), batch_tokens=1000):
            group, said = unpack(row)
            kept += [pending.document.id for pending in group]
            told += said.outcomes
    assert len(kept) == len(set(kept))
    states = sorted((outcome.id, outcome.state) for outcome in told)
    assert states == [
        *(("d3", "failed"), ("r.jsonl#1", "failed"), ("r.jsonl#1", "unchanged"), ("r.jsonl:2", "failed")),
        *(("r.jsonl:2", "unchanged"), ("x.txt", "failed"), ("x.txt", "unchanged")),
    ]


def test_parts_are_many_and_small() -> None:
    items: list[Item] = [Document(str(i), "text") for i in range(1000)]
    assert [len(part) for part in bundles(items, 8)] == [125] * 8
    assert max(len(part) for part in bundles(items * 10, 2)) > 256, "ten times the same document in one part"
    assert [len(part) for part in bundles([Document(str(i), "x") for i in range(1000)], 2)] == [256, 256, 256, 232]
    assert bundles([], 8) == []


def test_groups_come_while_a_file_is_read(tmp_path: Path) -> None:
    """A file of any number of rows is never in memory as a whole."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "{"word " * 100}{i}"}}\n' for i in range(100)))
    path.open("ab").write(b"\xff" * 10)
    groups = read_groups(pack([FileRef(path, tmp_path)]), batch_tokens=500)
    first, _ = unpack(next(groups))
    assert 1 <= len(first) < 10
    told = [unpack(row) for row in groups]
    assert len(first) + sum(len(group) for group, _ in told) == 100
    assert [outcome.id for _, said in told for outcome in said.outcomes] == ["rows.jsonl:101"]


def test_counts_of_other_processes() -> None:
    steps: list[AddProgress] = []
    monitor = Monitor(report := AddReport(), 9, steps.append)
    cause = DocumentError("broken")
    outcomes = [Outcome("a", "added"), Outcome("b", "replaced"), Outcome("c", "unchanged"), Outcome("d", "added")]
    monitor.elsewhere([*outcomes, Outcome("e", "failed", cause, "/e")], 70)
    monitor.elsewhere([], 0)
    assert (report.added, report.replaced, report.unchanged, report.n_tokens) == (2, 1, 1, 70)
    assert report.failed == [Failure("e", cause, "/e")]
    assert [(step.done, step.total, step.tokens, step.current) for step in steps] == [(5, 9, 70, "e")] * 2
    assert len(steps[0].finished) == 5 and steps[1].finished == ()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"place": "folder"}, "folder: only one process"),
        ({"on_too_long": "cut"}, "on_too_long"),
        ({"batch_tokens": 0}, "batch_tokens"),
        ({"actors": 0}, "actors"),
        ({"cpus_per_actor": 1.5}, "fraction of 1 or a whole number"),
        ({"gpus_per_actor": -1}, "gpus_per_actor"),
    ],
)
def test_bad_arguments_are_told_before_anything_starts(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        add_with_ray(**{"place": "http://127.0.0.1:1/x", "sources": [], **options})


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "127.0.0.1:no"])
def test_no_cluster_is_told_at_once(collection_url: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself would try for minutes."""
    stand_in = types.SimpleNamespace(is_initialized=lambda: False)
    monkeypatch.setattr(on_ray, "require", lambda module, extra: stand_in)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(M2RagError, match="there is no Ray cluster at"):
        add_with_ray(collection_url, Document("a", "text"), embedder=HashEmbedder, address=address.format(port))


class Cluster:
    """What is asked of `ray` about machines."""

    def __init__(self, *machines: tuple[float, float, float]) -> None:
        self._machines = [{"CPU": cpus, "GPU": gpus, "memory": memory} for cpus, gpus, memory in machines]

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": one} for one in self._machines] + [{"Alive": False, "Resources": {}}]

    def cluster_resources(self) -> dict[str, float]:
        return {name: sum(one[name] for one in self._machines) for name in ("CPU", "GPU", "memory")}


def test_how_machines_are_shared_out() -> None:
    pool = partial(on_ray._pool, actors=None, cpus=None, gpus=None, device=None, is_ours=False)
    cpu, gpu = (8, 0, 64e9), (16, 2, 64e9)
    assert pool(Cluster(cpu, cpu)) == (16, 1, 0, 8)
    assert pool(Cluster(cpu), cpus=3.0) == (2, 3, 0, 1)
    assert pool(Cluster((8, 0, 9e9))) == (4, 1, 0, 2), "as many as have room in memory"
    assert pool(Cluster(cpu), actors=3, cpus=0.5) == (3, 0.5, 0, 2)
    assert pool(Cluster(cpu, gpu)) == (2, 0, 1, 24), "readers must keep up with the GPUs"
    assert pool(Cluster(gpu), gpus=0.5) == (4, 0, 0.5, 16)
    assert pool(Cluster(cpu, gpu), device="cpu") == (24, 1, 0, 12)
    assert pool(Cluster((1, 0, 1e9))) == (1, 1, 0, 1)
    with pytest.raises(InvalidInputError, match="no machine has the 9 CPUs.* they have 8 and 0"):
        pool(Cluster(cpu), cpus=9.0, is_ours=True)


def test_a_machine_without_the_model_gets_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    """It makes the same vectors, and leaves no files behind."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'm2rag[ray]'")
    files = model_files(tiny_folder)
    assert "config.json" in files.content and files.weights in files.content
    assert model_files(tiny_folder / files.weights) == files
    here = LoadModel(str(tiny_folder), "cpu", "float32", files)()
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    there = LoadModel("/nowhere/model", "cpu", "float32", files)()
    assert there.fingerprint == here.fingerprint
    np.testing.assert_array_equal(there.embed_query("some words"), here.embed_query("some words"))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_models import saved

    return saved(tmp_path_factory.mktemp("models") / "tiny")
