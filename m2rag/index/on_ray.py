"""`add` on many machines: the same steps as a Ray Data job, for corpora that one machine would take too long for.

The caller's process lists the files; tasks read them; actors, each with an embedder and the store open, look up what is
unchanged, embed the rest and write it. The index is on a server, so that all of them can.

What holds here as it does for `add`: unchanged documents are not embedded again, changed ones are replaced; every
document counts once in the report; of documents with one id the first handed in wins and the others are reported;
writes are acknowledged before a document counts as done. A worker that dies is replaced and its group of documents
done again: those it had stored then count as unchanged. A document over which workers die again and again is
reported like every other that cannot be embedded.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from m2rag._optional import require
from m2rag.errors import IndexNotFoundError, InvalidInputError, M2RagError
from m2rag.index.documents import AddProgress, AddReport, point_id
from m2rag.index.embedding import Embedder
from m2rag.index.index import BATCH_TOKENS, POLICIES, new_index
from m2rag.index.ingest import MAX_GROUP, Monitor
from m2rag.index.ray_workers import Attempts, LoadModel, ModelFiles, Row, Task, Told, Writer, pack, read_groups, unpack
from m2rag.index.readers import document_id, possible_files
from m2rag.index.sources import FileRef, Item, Source, plan
from m2rag.stores import FieldKind, Manifest, Quantization, Schema, VectorStore, open_store
from m2rag.stores.opening import is_url

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 512_000_000
"""Shared memory of a Ray that is started here: what passes through it are texts, about `BATCH_TOKENS` at a time."""

ACTOR_BYTES = 2_000_000_000
"""Memory reckoned for an actor when their number is chosen: a model and one document of full length, with room."""

_KEY_VARIABLE = "QDRANT_API_KEY"


class Pool(NamedTuple):
    """How many actors there are, what each of them asks Ray for, and how many tasks read at the same time."""

    actors: int
    cpus: float
    gpus: float
    readers: int


def add_with_ray(
    place: str,
    sources: Source | Iterable[Source],
    *,
    model: str | Path | None = None,
    device: str | None = None,
    dtype: str = "float32",
    embedder: Callable[[], Embedder] | None = None,
    lexical: str | None = "english",
    quantization: Quantization | None = None,
    filterable: Mapping[str, FieldKind] | None = None,
    on_too_long: str = "window",
    batch_tokens: int = BATCH_TOKENS,
    address: str | None = None,
    actors: int | None = None,
    cpus_per_actor: float | None = None,
    gpus_per_actor: float | None = None,
    api_key: str | None = None,
    progress: Callable[[AddProgress], None] | None = None,
) -> AddReport:
    """Index documents with Ray: `LongDocumentIndex.add` by many workers, on one machine or on many.

    A file must be found under the same path by all machines, as on a shared disk. `Document`s and lazy iterables are
    collected before work begins; give paths where there is much. Ctrl-C ends the workers; what was stored stays
    stored, and the same call again goes on from there.

    Args:
        place: the index, `https://HOST:6333/COLLECTION` of a Qdrant server or another URL (see `LongDocumentIndex`);
            made if it is missing. A folder will not do: only one process can have it open.
        sources: a `Document`, a file, a folder, or an iterable of these.
        model: as `M2Embedder` takes it; default: the one the index was built with, else the bundled one. A model in a
            folder of this machine is sent to those that do not have it.
        device, dtype: as `M2Embedder` takes them, in the workers.
        embedder: makes the embedder, instead of `model`, `device` and `dtype`; called once in every actor.
        lexical, quantization, filterable: of a new index, as `LongDocumentIndex` takes them.
        on_too_long, batch_tokens: as its `add` takes them. `batch_tokens` is also what is done again if a worker dies.
        address: of the Ray cluster: "auto" for the one this machine belongs to, or its head, "HOST:6379".
            Default: the environment variable RAY_ADDRESS, else a Ray on this machine for the time of the call. If
            `ray.init` was called before, that one is used.
        actors: how many embed and write. Default: as many as the cluster has room for.
        cpus_per_actor: CPUs for each, 0.5 or 4, which is also its number of threads. Default: 1, with a GPU 0.
        gpus_per_actor: GPUs for each: 1, or 0.5 for two actors on each. Default: 1 if the cluster has any, else 0.
        api_key: of the server; default: the environment variable QDRANT_API_KEY. It goes to the workers by Ray's own
            connections and into none of its logs. For other stores workers look into their own environment.
        progress: called as groups of documents are done.

    Returns:
        What was done.

    Raises:
        MissingDependencyError: Ray is not installed.
        InvalidInputError: `place` is a folder, a number is out of range, or no machine has what an actor asks for.
        M2RagError: there is no cluster at `address`.
        DocumentError, IndexMismatchError, RemoteError, StoreError: as `LongDocumentIndex.add` raises them.
    """
    _check(place, on_too_long, batch_tokens, actors, cpus_per_actor, gpus_per_actor)
    ray = require("ray", extra="ray")
    require("ray.data", extra="ray")
    report = AddReport()
    items, total = plan(sources, report.skipped)
    items = [_absolute(item) for item in items]
    monitor = Monitor(report, total, progress)
    api_key = api_key or (os.environ.get(_KEY_VARIABLE) if place.lower().startswith("http") else None)
    store, model = _open(
        place, api_key, model, embedder, lambda made: new_index(made, lexical, quantization, filterable)
    )
    try:
        with _connected(ray, address) as is_ours:
            pool = _pool(ray, actors, cpus_per_actor, gpus_per_actor, device, is_ours=is_ours)
            make = embedder or LoadModel(model, device, dtype, _files_for_others(ray, model))
            attempts = ray.remote(Attempts).options(num_cpus=0).remote()
            task = Task(place, api_key, make, on_too_long, batch_tokens, attempts)
            with closing(_work(ray, bundles(items, 4 * pool.actors), task, pool)) as work:
                for told in work:
                    monitor.elsewhere(told.outcomes, told.tokens)
                    if told.fatal is not None:
                        raise told.fatal
        store.flush()
        if report.added or report.replaced:
            store.optimize()
    finally:
        store.close()
    report.seconds = monitor.seconds
    return report


def bundles(items: Sequence[Item], n: int) -> list[list[Item]]:
    """The items in about `n` parts or more, those that may hold documents of the same id in one part, in their order.

    That is how the first of them wins without anyone knowing all ids: a part is read by one task. What it takes is a
    number for each item here, and for each document of one part there.
    """
    size = min(MAX_GROUP, max(1, -(-len(items) // n)))
    row_files = {_name(item) for item in items if isinstance(item, FileRef) and item.has_rows}
    parts: list[list[Item]] = []
    part_of: dict[bytes, int] = {}
    for item in items:
        key = point_id(_file_of(_name(item), row_files)).bytes
        if key not in part_of:
            if not parts or len(parts[-1]) >= size:
                parts.append([])
            part_of[key] = len(parts) - 1
        parts[part_of[key]].append(item)
    return parts


def _name(item: Item) -> str:
    """The id of a document, or of a file whose rows have it in theirs."""
    return document_id(item.path, item.root) if isinstance(item, FileRef) else str(item.id)


def _file_of(name: str, row_files: set[str]) -> str:
    """The file of rows that may hold a document of this name; the name itself if there is none."""
    if not row_files or name in row_files:
        return name
    return next((file for file in possible_files(name) if file in row_files), name)


def _absolute(item: Item) -> Item:
    """The item with a path that means the same in another process; the ids of its documents stay the same."""
    if not isinstance(item, FileRef) or item.path.is_absolute():
        return item
    here = Path.cwd()
    return replace(item, path=here / item.path, root=here / (item.root or ""))


def _check(
    place: str,
    on_too_long: str,
    batch_tokens: int,
    actors: int | None,
    cpus_per_actor: float | None,
    gpus_per_actor: float | None,
) -> None:
    if not is_url(str(place)):
        raise InvalidInputError(
            f"{place} is a folder: only one process can have it open, and Ray's workers are many. Give the URL of a "
            "Qdrant server or of Atlas, or index without Ray"
        )
    if on_too_long not in POLICIES:
        raise InvalidInputError(f"on_too_long must be one of {', '.join(POLICIES)}, not {on_too_long!r}")
    for name, number, least in (("batch_tokens", batch_tokens, 1), ("actors", actors, 1)):
        if number is not None and number < least:
            raise InvalidInputError(f"{name} must be at least {least}, not {number}")
    for name, share in (("cpus_per_actor", cpus_per_actor), ("gpus_per_actor", gpus_per_actor)):
        if share is not None and not (0 <= share < 1 or share >= 1 and share == int(share)):
            raise InvalidInputError(f"{name} must be a fraction of 1 or a whole number, not {share}")


def _open(
    place: str,
    api_key: str | None,
    model: str | Path | None,
    embedder: Callable[[], Embedder] | None,
    new: Callable[[Embedder], tuple[Manifest, Schema]],
) -> tuple[VectorStore, str | None]:
    """The store, made if it is missing, and the model as workers can load it."""
    if model is not None and Path(model).expanduser().exists():
        model = Path(model).expanduser().resolve()
    try:
        store = open_store(place, api_key=api_key)
    except IndexNotFoundError:
        name = None if model is None else str(model)
        made = embedder() if embedder is not None else LoadModel(name, "cpu", "float32")()
        store = open_store(place, create=new(made), api_key=api_key)
    return store, str(model) if model is not None else store.manifest.model


def _files_for_others(ray: Any, model: str | None) -> Any:
    """Reference to the files of a model that lies on this machine, where the cluster has others; else None."""
    if model is None or not Path(model).exists() or sum(node["Alive"] for node in ray.nodes()) < 2:
        return None
    return ray.put(model_files(Path(model)))


def model_files(model: Path) -> ModelFiles:
    """What a model needs to be loaded elsewhere: its weights, the configuration and the tokenizer beside them.

    Args:
        model: folder or weights file.
    """
    # Imported here: it brings torch.
    from m2rag.models.checkpoints import TOKENIZER_FILES, WEIGHT_FILES

    folder, names = (model, WEIGHT_FILES) if model.is_dir() else (model.parent, (model.name,))
    weights = [name for name in names if (folder / name).is_file()][:1]
    needed = [*weights, "config.json", *TOKENIZER_FILES]
    content = {name: (folder / name).read_bytes() for name in needed if (folder / name).is_file()}
    return ModelFiles("".join(weights), content)


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[bool]:
    """A Ray to work with; whether it was started for this, on this machine. It is let go of at the end, if so."""
    if ray.is_initialized():
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS")
    verbose = logger.isEnabledFor(logging.DEBUG)
    options: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if address is None or address == "local":
        address = "local"
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers over the network
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    else:
        _check_listening(address)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise M2RagError(f"Ray cannot be used at address {address!r}: {error}") from error
    try:
        yield address == "local"
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Ray itself tries for minutes, and is not heard while it does."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        if parts.hostname and parts.port:
            socket.create_connection((parts.hostname, parts.port), timeout=10).close()
    except (OSError, ValueError) as error:
        raise M2RagError(f"there is no Ray cluster at {address!r}: {error}") from error


def _pool(
    ray: Any, actors: int | None, cpus: float | None, gpus: float | None, device: str | None, *, is_ours: bool
) -> Pool:
    """How the cluster's machines are shared out.

    Readers ask for no CPU: with one they would wait for ever where actors have them all.
    """
    there = ray.cluster_resources()
    if gpus is None:
        gpus = 1.0 if there.get("GPU", 0) >= 1 and (device is None or device.startswith("cuda")) else 0.0
    if cpus is None:
        cpus = 0.0 if gpus else 1.0
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in machines):
        most = ", ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in machines[:5])
        text = f"no machine has the {cpus:g} CPUs and {gpus:g} GPUs an actor asks for; they have {most}"
        if is_ours:
            raise InvalidInputError(text)
        logger.warning("%s: waiting until the cluster grows", text)
    room = [sum(_fit(node, cpus, gpus) for node in machines)]
    if not gpus:
        room.append(int(there.get("memory", 0) // ACTOR_BYTES))
    actors = actors or max(1, min(room))
    readers = int(there.get("CPU", 1)) if gpus else -(-actors // 2)
    return Pool(actors, cpus, gpus, max(1, readers))


def _fit(node: dict[str, float], cpus: float, gpus: float) -> int:
    """How many actors find room on a machine."""
    shares = [(node.get("CPU", 0), cpus), (node.get("GPU", 0), gpus)]
    return min((int(there / share) for there, share in shares if share), default=1)


def _work(ray: Any, parts: list[list[Item]], task: Task, pool: Pool) -> Generator[Told, None, None]:
    """Read, embed and write the parts; what the workers tell, as it comes."""
    if not parts:
        return
    data, verbose = ray.data, logger.isEnabledFor(logging.DEBUG)
    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(level if verbose else logging.CRITICAL)  # what goes wrong is raised, too
    work = data.from_items([pack(part) for part in parts], override_num_blocks=len(parts))
    work.context.target_max_block_size = 1  # every row is a block: shared out, done again and told one by one
    work.context.enable_progress_bars = verbose
    work = work.flat_map(
        read_groups,
        fn_kwargs={"batch_tokens": task.batch_tokens},
        compute=data.TaskPoolStrategy(size=pool.readers),
        num_cpus=0,
    ).flat_map(
        Writer,
        fn_constructor_args=(task,),
        compute=data.ActorPoolStrategy(size=pool.actors, max_tasks_in_flight_per_actor=2),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    try:
        with closing(_rows(work)) as rows:
            for row in rows:
                yield unpack(row)
    finally:
        log.setLevel(level)


def _rows(work: Any) -> Generator[Row, None, None]:
    for batch in work.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        for value in batch["value"]:
            yield {"value": value}
