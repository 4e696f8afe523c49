"""Search indexes: what they should be, made, waited for, and checked to be that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pymongo.asynchronous.collection import AsyncCollection
from pymongo.collection import Collection
from pymongo.operations import SearchIndexModel

from m2rag.errors import InvalidInputError, StoreError
from m2rag.index.asynchronous import in_thread
from m2rag.stores.retry import Patience
from m2rag_mongodb.errors import DefinitionMismatchError, IndexNotReadyError
from m2rag_mongodb.server import INDEX_EXISTS, Blocking, Doc, OnLoop, Refused, Server

logger = logging.getLogger(__name__)

Similarity = Literal["cosine", "dotProduct", "euclidean"]

TIMEOUT = 600.0
"""Seconds. Atlas takes some seconds for an empty collection, and minutes where there are many documents."""

FIRST_POLL, LONGEST_POLL = 0.5, 5.0  # seconds between two looks
MISSING = "MISSING"


class SearchIndex(Protocol):
    """A search index as it should be."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def type(self) -> str:
        """`vectorSearch` or `search`."""
        ...

    def definition(self) -> Doc:
        """What the server is asked for."""
        ...

    def differences(self, found: Mapping[str, Any]) -> list[str]:
        """What a definition on the server has otherwise; defaults that the server adds are none."""
        ...


@dataclass(frozen=True)
class VectorIndex:
    """An index for `$vectorSearch`.

    Attributes:
        dimension: D of the vectors.
        path: field that holds them.
        name: of the index.
        similarity: cosine, dotProduct or euclidean; packed_bit vectors take euclidean only.
        quantization: the server keeps 8 bits ("scalar") or 1 bit ("binary") a number in memory; float vectors only.
        filters: fields that queries may filter by.
    """

    dimension: int
    path: str = "embedding"
    name: str = "vector_index"
    similarity: Similarity = "cosine"
    quantization: Literal["scalar", "binary"] | None = None
    filters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise InvalidInputError(f"a vector index needs at least 1 dimension, not {self.dimension}")
        if isinstance(self.filters, str):
            raise InvalidInputError(f"filters must be a tuple of fields, not {self.filters!r}")

    @property
    def type(self) -> str:
        """vectorSearch."""
        return "vectorSearch"

    def definition(self) -> Doc:
        """What the server is asked for."""
        vector = {
            "type": "vector",
            "path": self.path,
            "numDimensions": self.dimension,
            "similarity": self.similarity,
            **({"quantization": self.quantization} if self.quantization else {}),
        }
        return {"fields": [vector, *({"type": "filter", "path": path} for path in self.filters)]}

    def differences(self, found: Mapping[str, Any]) -> list[str]:
        """What a definition on the server has otherwise; more filter fields than asked for are none."""
        there = {(one.get("type"), one.get("path")): one for one in found.get("fields", [])}
        vector = there.get(("vector", self.path))
        if vector is None:
            return [f"it has no vector field {self.path!r}"]
        wanted = {
            "numDimensions": self.dimension,
            "similarity": self.similarity,
            "quantization": self.quantization or "none",
        }
        told = {"quantization": "none", **vector}
        differing = [
            f"{key} is {told.get(key)}, not {value}" for key, value in wanted.items() if told.get(key) != value
        ]
        missing = [path for path in self.filters if ("filter", path) not in there]
        return differing + ([f"it has no filter fields {', '.join(missing)}"] if missing else [])


@dataclass(frozen=True)
class TextIndex:
    """An index for `$search` by words.

    Attributes:
        paths: text fields.
        name: of the index.
        analyzer: cuts texts into words, "lucene.english" with stemming.
    """

    paths: tuple[str, ...]
    name: str = "text_index"
    analyzer: str = "lucene.english"

    @property
    def type(self) -> str:
        """search."""
        return "search"

    def definition(self) -> Doc:
        """What the server is asked for."""
        fields = {path: {"type": "string", "analyzer": self.analyzer} for path in self.paths}
        return {"mappings": {"dynamic": False, "fields": fields}}

    def differences(self, found: Mapping[str, Any]) -> list[str]:
        """What a definition on the server has otherwise; more fields than asked for are none."""
        there = found.get("mappings", {}).get("fields", {})
        return [
            f"its field {path!r} is {there.get(path)}, not {wanted}"
            for path, wanted in self.definition()["mappings"]["fields"].items()
            if not wanted.items() <= _first(there.get(path)).items()
        ]


@dataclass(frozen=True)
class IndexProgress:
    """Where the wait for a search index stands.

    Attributes:
        name: of the index.
        status: as the server says: PENDING, BUILDING, READY, FAILED, ...; "MISSING" where it is not there yet.
        queryable: it answers queries, if only by an older definition.
        seconds: waited so far.
        timeout: in seconds.
    """

    name: str
    status: str
    queryable: bool
    seconds: float
    timeout: float


def ensure_index(
    collection: Collection[Any],
    index: SearchIndex,
    *,
    update: bool = False,
    timeout: float = TIMEOUT,
    progress: Callable[[IndexProgress], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Make a collection and its search index where they are missing, and wait until the index answers as asked.

    What is there already is left alone, so call it as often as you like. An index that answers need not know the
    documents written a moment ago.

    Args:
        collection: of a `MongoClient`.
        index: a `VectorIndex` or `TextIndex`.
        update: change an index that is defined otherwise; by default that is an error.
        timeout: seconds to wait; 0 does not wait.
        progress: called at every look.
        clock, sleep: the time in seconds, a pause.

    Raises:
        DefinitionMismatchError: an index of this name is there and defined otherwise.
        IndexNotReadyError: the time is up.
        SearchUnavailableError: the server has no search.
        StoreError: the index failed, or the server cannot be reached or refuses.
    """
    server = Server(Blocking(collection.database), collection.full_name, Patience())
    make_index(server, collection.name, index, update=update)
    if timeout > 0:
        wait_for_index(server, collection.name, index, timeout, progress=progress, clock=clock, sleep=sleep)


async def aensure_index(
    collection: AsyncCollection[Any],
    index: SearchIndex,
    *,
    update: bool = False,
    timeout: float = TIMEOUT,
    progress: Callable[[IndexProgress], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """`ensure_index` for a collection of an `AsyncMongoClient`; `progress`, `clock` and `sleep` run in a thread."""
    caller = OnLoop(collection.database, asyncio.get_running_loop())
    server = Server(caller, collection.full_name, Patience())
    await in_thread(make_index, server, collection.name, index, update=update)
    if timeout > 0:
        more: dict[str, Any] = {"progress": progress, "clock": clock, "sleep": sleep}
        await in_thread(wait_for_index, server, collection.name, index, timeout, **more)


def make_index(server: Server, collection: str, index: SearchIndex, *, update: bool = False) -> None:
    """Make a collection and its search index where they are missing, without waiting; see `ensure_index`."""
    found = look_at(server, collection, index.name)
    if found is None:
        if not server.fetch(None, "list_collections", filter={"name": collection}):
            _unless_there(server, None, "create_collection", collection)
        model = SearchIndexModel(index.definition(), index.name, index.type)
        if _unless_there(server, collection, "create_search_index", model):
            return
        found = look_at(server, collection, index.name)  # made by another process a moment ago
        if found is None:
            raise StoreError(f"the search index {index.name!r} of {server.location} is being deleted: try again later")
    differing = _differences(index, found)
    if differing and update and found.get("type", index.type) == index.type:
        server.ask(collection, "update_search_index", index.name, index.definition())
    elif differing:
        raise DefinitionMismatchError(
            f"the search index {index.name!r} of {server.location} is there and is another: {'; '.join(differing)}. "
            "Choose another name, have it changed (update=True), or drop it"
        )


def wait_for_index(
    server: Server,
    collection: str,
    index: SearchIndex,
    timeout: float,
    *,
    progress: Callable[[IndexProgress], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait until a search index answers by the definition asked for; see `ensure_index`."""
    started, pause = clock(), FIRST_POLL
    while True:
        found = look_at(server, collection, index.name)
        status, queryable = _status(found)
        seconds = clock() - started
        if progress is not None:
            progress(IndexProgress(index.name, status, queryable, seconds, timeout))
        if status == "FAILED":
            said = (found or {}).get("message") or "it does not say why"
            raise StoreError(f"the search index {index.name!r} of {server.location} failed to build: {said}")
        if status == "READY" and queryable and not _differences(index, found or {}):
            return
        if seconds + pause > timeout:
            raise IndexNotReadyError(
                f"the search index {index.name!r} of {server.location} is not ready after {seconds:.0f} s (it is "
                f"{status}). It goes on being built: try again later, or wait longer",
                status,
                seconds,
            )
        logger.debug("search index %s of %s: %s after %.0f s", index.name, server.location, status, seconds)
        sleep(pause)
        pause = min(pause * 1.5, LONGEST_POLL)


def look_at(server: Server, collection: str, name: str) -> Doc | None:
    """What the server says of a search index; None if it is not there, or on its way out."""
    for found in server.fetch(collection, "list_search_indexes", name):
        if found.get("name") == name and found.get("status") not in ("DELETING", "DOES_NOT_EXIST"):
            return found
    return None


def _status(found: Doc | None) -> tuple[str, bool]:
    return (MISSING, False) if found is None else (str(found.get("status")), found.get("queryable") is True)


def _differences(index: SearchIndex, found: Doc) -> list[str]:
    if found.get("type", index.type) != index.type:
        return [f"it is of type {found['type']}, not {index.type}"]
    return index.differences(found.get("latestDefinition") or {})


def _unless_there(server: Server, collection: str | None, method: str, *args: Any) -> bool:
    """Make something; False if it was there."""
    try:
        server.ask(collection, method, *args)
    except Refused as error:
        if error.code in (INDEX_EXISTS, 48) or "uplicate" in str(error) or "already" in str(error):
            return False
        raise
    except StoreError as error:
        if "already exists" in str(error):  # the driver looks before it creates a collection
            return False
        raise
    return True


def _first(field: Any) -> dict[str, Any]:
    """A field of a text index: the server may list several mappings for it."""
    return dict((field[0] if field else {}) if isinstance(field, list) else field or {})
