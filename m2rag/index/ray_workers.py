"""What runs in Ray's processes when documents are indexed by many: `read_groups` in tasks, `Writer` in actors.

Rows between them hold one value in a wrapper: bare documents Ray would turn into tables, their metadata into columns.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m2rag.errors import InvalidInputError, M2RagError
from m2rag.index.documents import AddProgress, AddReport, Outcome
from m2rag.index.embedding import Embedder
from m2rag.index.ingest import Ingest, Monitor, Pending, check_embedder, checked, grouped
from m2rag.index.sources import Item, read
from m2rag.stores import VectorStore, open_store

Row = dict[str, "Held"]


class Held:
    """A value that Ray takes as it is."""

    def __init__(self, value: Any) -> None:
        self.value = value


@dataclass
class Told:
    """What a worker has to tell: becomes part of the report of the whole.

    Attributes:
        outcomes: documents that are dealt with.
        tokens: tokens of those that were stored.
        fatal: what ends the whole run.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    tokens: int = 0
    fatal: M2RagError | None = None

    def listen(self, progress: AddProgress) -> None:
        """The callback of a `Monitor`."""
        self.outcomes += progress.finished


class LoadModel:
    """Makes an `M2Embedder` in a worker.

    Args:
        model: as `M2Embedder` takes it; a path is absolute.
        device, dtype: as `M2Embedder` takes them.
        files: reference to the files of a model that not every machine has, by name.
    """

    def __init__(self, model: str | None, device: str | None, dtype: str, files: Any = None) -> None:
        self._model = model
        self._options: dict[str, Any] = {"device": device, "dtype": dtype}
        self._files = files

    def __call__(self) -> Embedder:
        """Load it."""
        from m2rag.embedder import M2Embedder

        if self._model is None or self._files is None or Path(self._model).exists():
            return M2Embedder(self._model, **self._options)
        import ray

        with tempfile.TemporaryDirectory(prefix="m2rag-model-") as folder:
            files: ModelFiles = ray.get(self._files)
            for name, data in files.content.items():
                Path(folder, name).write_bytes(data)
            return M2Embedder(Path(folder, files.weights), **self._options)


@dataclass(frozen=True)
class ModelFiles:
    """A checkpoint: `weights` is the name of its weights file, `content` holds all files by name."""

    weights: str
    content: dict[str, bytes]


class Task:
    """What a `Writer` needs to know. Not a dataclass: Ray writes the fields of one into its logs, and these hold keys.

    Args:
        place: of the index, which exists.
        api_key: of its server.
        embedder: makes the embedder, in the worker.
        policy: `on_too_long`.
        batch_tokens: how much to embed and store in one go.
        attempts: handle of the actor `Attempts`.
    """

    def __init__(
        self,
        place: str,
        api_key: str | None,
        embedder: Callable[[], Embedder],
        policy: str,
        batch_tokens: int,
        attempts: Any,
    ) -> None:
        self.place = place
        self.api_key = api_key
        self.embedder = embedder
        self.policy = policy
        self.batch_tokens = batch_tokens
        self.attempts = attempts

    def __repr__(self) -> str:
        return type(self).__name__


def pack(value: Any) -> Row:
    """A value as a row."""
    return {"value": Held(value)}


def unpack(row: Row) -> Any:
    """The value of a row that `pack` made."""
    return row["value"].value


def read_groups(row: Row, batch_tokens: int) -> Iterator[Row]:
    """Read the files of a row of items; groups of checked documents come as they are read."""
    items: list[Item] = unpack(row)
    told = Told()
    monitor = Monitor(AddReport(), None, told.listen)
    for group in grouped(checked(read(items), monitor), batch_tokens):
        yield pack((group, Told(told.outcomes)))
        told.outcomes = []
    if told.outcomes:
        yield pack(([], told))


class Attempts:
    """An actor that outlives the workers: counts how often they began with something in their second life."""

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, key: str) -> int:
        """How often this was begun, this time included."""
        self._begun[key] += 1
        return self._begun[key]


class Writer:
    """One embedder and one open store, and the steps of an ordinary `add` for each group of documents that comes.

    If a worker dies, Ray starts it again and gives it the same group again. What was stored is found to be unchanged
    then. If it dies over the group a second time, the documents are taken one by one, and one that has ended two more
    workers is reported.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._broken: M2RagError | None = None
        # Raised here, an error would reach the caller as the text of a traceback.
        try:
            self._embedder = task.embedder()
            self._store: VectorStore = open_store(task.place, api_key=task.api_key)
            check_embedder(self._store, self._embedder)  # also where nothing has changed
        except M2RagError as error:
            self._broken = error
        except ValueError as error:
            self._broken = InvalidInputError(str(error))

    def __call__(self, row: Row) -> list[Row]:
        group: list[Pending]
        told: Told
        group, told = unpack(row)
        if self._broken is not None:
            told.fatal = self._broken
            return [pack(told)]
        report = AddReport()
        monitor = Monitor(report, None, told.listen)
        ingest = Ingest(self._store, self._embedder, self._task.policy, monitor)
        try:
            for part in self._parts(group, monitor):
                ingest.store(part, self._task.batch_tokens)
        except M2RagError as error:
            told.fatal = error
        told.tokens = report.n_tokens
        return [pack(told)]

    def _parts(self, group: list[Pending], monitor: Monitor) -> Iterator[list[Pending]]:
        """The group, or if it has ended workers one document after the other, without those that do it alone too."""
        import ray

        if not group or not ray.get_runtime_context().was_current_actor_reconstructed:
            yield group
            return
        if self._begin(f"group {group[0].document.id}") < 2:
            yield group
            return
        for pending in group:
            document = pending.document
            if self._begin(document.id) > 2:
                cause = M2RagError(
                    f"document {document.id!r} has ended its worker again and again: its length may need more memory "
                    "than an actor has, so give fewer actors more, or index it alone and without Ray to see why"
                )
                monitor.fail(document.id, cause, document.origin)
            else:
                yield [pending]

    def _begin(self, key: str) -> int:
        import ray

        return ray.get(self._task.attempts.begin.remote(key))
