"""Searches that know whether their index is ready: the server itself answers "nothing" where it is not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from m2rag.errors import StoreError
from m2rag_mongodb.errors import IndexNotReadyError
from m2rag_mongodb.indexes import IndexProgress, SearchIndex, look_at, wait_for_index
from m2rag_mongodb.server import Doc, Refused, Server

logger = logging.getLogger(__name__)

READY_SECONDS = 120.0
"""How long a query, and the end of an upload, wait for a search index."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds, until documents just written are looked for again


class Searches:
    """Searches in one collection.

    Args:
        server: the database.
        collection: name of the collection.
        indexes: its search indexes.
        ready_seconds: how long to wait for one that is being built.
    """

    def __init__(self, server: Server, collection: str, indexes: Sequence[SearchIndex], ready_seconds: float) -> None:
        self._server = server
        self._collection = collection
        self._indexes = {index.name: index for index in indexes}
        self._ready_seconds = ready_seconds
        self._ready: set[str] = set()

    def run(self, index: str, pipeline: list[Doc]) -> list[Doc]:
        """What a pipeline finds by way of an index; nothing counts as an answer only where the index is ready.

        Raises:
            IndexNotReadyError: the index is still being built when the time is up.
            StoreError: it is gone, or the server cannot be reached or refuses.
        """
        self.be_ready(index)
        for last in (False, True):
            try:
                found = self._server.fetch(self._collection, "aggregate", pipeline)
                if found or last or self._is_queryable(index):
                    return found
            except Refused:
                if last or self._is_queryable(index):
                    raise
            self._ready.discard(index)
            self.be_ready(index)
        raise AssertionError("unreachable")

    def be_ready(self, name: str) -> None:
        """Wait until an index answers; once is enough. Raises as `run`."""
        if name in self._ready:
            return
        if not self._is_queryable(name):
            logger.info("%s: waiting for the search index %s", self._server.location, name)
            self.wait(self._indexes[name], self._ready_seconds)
        self._ready.add(name)

    def wait(self, index: SearchIndex, timeout: float, progress: Callable[[IndexProgress], None] | None = None) -> None:
        """Wait until an index answers by the definition it should have; see `wait_for_index`."""
        clock, sleep = self._server.patience.clock, self._server.patience.sleep
        wait_for_index(self._server, self._collection, index, timeout, progress=progress, clock=clock, sleep=sleep)

    def catch_up(self, index: str, pipeline: list[Doc]) -> str | None:
        """Wait until a pipeline finds something; why it does not, when the time is up."""
        patience = self._server.patience
        started, pause = patience.clock(), FIRST_PAUSE
        try:
            self.be_ready(index)
        except IndexNotReadyError as error:
            return str(error)
        while patience.clock() - started < self._ready_seconds:
            if self._server.fetch(self._collection, "aggregate", pipeline):
                return None
            patience.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        return "the search index is behind"

    def _is_queryable(self, name: str) -> bool:
        found = look_at(self._server, self._collection, name)
        if found is None:
            raise StoreError(
                f"the search index {name!r} of {self._server.location} is gone: open the index again, which makes it "
                "anew"
            )
        return found.get("queryable") is True
