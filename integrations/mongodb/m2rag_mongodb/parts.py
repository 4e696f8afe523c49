"""What is kept beside the documents of a collection, because it does not fit into them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from m2rag_mongodb.layout import OURS, Packed, put_together
from m2rag_mongodb.server import Doc, Server

ABANDONED_AFTER = timedelta(days=1)
"""Parts of this age that no document names were left by a process that was killed, and are removed."""


class Parts:
    """The collection `NAME.parts`.

    Parts are written before the document that names their revision, and those of the revision that a document named
    before are removed afterwards. Others' parts are left alone: another writer may be about to name them.

    Args:
        server: the database.
        collection: name of the collection of the documents.
        now: the time, in UTC.
    """

    def __init__(
        self,
        server: Server,
        collection: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        self._server = server
        self._collection = collection
        self._now = now
        self.name = f"{collection}.parts"

    def start(self, generation: str) -> None:
        """Remove what a collection of this name left that was dropped."""
        self._server.ask(self.name, "delete_many", {"generation": {"$ne": generation}})

    def write(self, packed: Sequence[Packed]) -> None:
        """Write the parts of some documents, each in a request of its own."""
        for one in packed:
            for part in one.parts:
                kept = {**part, "written": self._now()}
                self._server.ask(self.name, "replace_one", {"_id": part["_id"]}, kept, upsert=True)

    def named(self, ids: Collection[str]) -> dict[str, str]:
        """Id of a document -> the revision of its parts that it names; those without parts are absent."""
        wanted = {"_id": {"$in": sorted(ids)}, f"{OURS}.outside": {"$exists": True}}
        found = self._server.fetch(self._collection, "find", wanted, {f"{OURS}.outside.revision": 1})
        return {one["_id"]: one[OURS]["outside"]["revision"] for one in found}

    def remove(self, ids: Collection[str], before: Mapping[str, str], keep: Mapping[str, str]) -> None:
        """Remove the parts of revisions that are no longer named, and abandoned ones of these documents.

        Args:
            ids: of the documents.
            before: the revisions they named.
            keep: the revisions they name now.
        """
        left = [{"point": id, "revision": revision} for id, revision in before.items() if keep.get(id) != revision]
        abandoned = {
            "point": {"$in": sorted(ids)},
            "revision": {"$nin": sorted(keep.values())},
            "written": {"$lt": self._now() - ABANDONED_AFTER},
        }
        self._server.ask(self.name, "delete_many", {"$or": [*left, abandoned]})

    def of(self, documents: Sequence[Doc], wanted: Collection[str]) -> dict[str, dict[str, Any] | None]:
        """Id of a document -> the fields that are kept beside it; None where parts are missing.

        Documents that keep none of the wanted fields beside them are absent.
        """
        outside = {
            one["_id"]: one[OURS]["outside"]
            for one in documents
            if set(wanted) & set(one.get(OURS, {}).get("outside", {}).get("fields", ()))
        }
        found: dict[str, list[Doc]] = {id: [] for id in outside}
        if outside:
            named = [{"point": id, "revision": one["revision"]} for id, one in outside.items()]
            for part in self._server.fetch(self.name, "find", {"$or": named}):
                found[part["point"]].append(part)
        return {id: put_together(found[id], one) for id, one in outside.items()}
