"""What is kept beside the documents of a collection, because it does not fit into them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from m2rag_mongodb.layout import OURS, Packed, put_together
from m2rag_mongodb.server import Doc, Server

ABANDONED_AFTER = timedelta(days=1)
"""Parts of this age that no document names were left by a process that was killed."""


class Parts:
    """The collection `NAME.parts`.

    Parts are written under a revision of their own before the document that names it, and those of the revision that a
    document named before are removed afterwards. So a document's parts are there as long as it names them, whoever
    writes beside us; what a killed process leaves is named by none, and swept up later.

    Args:
        server: the database.
        collection: name of the collection of the documents.
    """

    def __init__(self, server: Server, collection: str) -> None:
        self._server = server
        self._collection = collection
        self.name = f"{collection}.parts"

    def start(self, generation: str) -> None:
        """Remove what a collection of this name left that was dropped."""
        self._server.ask(self.name, "delete_many", {"generation": {"$ne": generation}})

    def write(self, packed: Sequence[Packed]) -> None:
        """Write the parts of some documents, each in a request of its own."""
        for one in packed:
            for part in one.parts:
                kept = {**part, "written": _now(), "named": False}
                self._server.ask(self.name, "replace_one", {"_id": part["_id"]}, kept, upsert=True)

    def named(self, ids: Collection[str]) -> dict[str, str]:
        """Id of a document -> the revision of its parts that it names; those without parts are absent."""
        wanted = {"_id": {"$in": sorted(ids)}, f"{OURS}.outside": {"$exists": True}}
        found = self._server.fetch(self._collection, "find", wanted, {f"{OURS}.outside.revision": 1})
        return {one["_id"]: one[OURS]["outside"]["revision"] for one in found}

    def confirm(self, revisions: Mapping[str, str]) -> None:
        """Say of parts that the document of this id names their revision."""
        if revisions:
            self._server.ask(self.name, "update_many", _any_of(revisions), {"$set": {"named": True}})

    def release(self, revisions: Mapping[str, str]) -> None:
        """Say of parts that the document of this id is about to name others, or to go."""
        if revisions:
            change = {"$set": {"named": False, "written": _now()}}
            self._server.ask(self.name, "update_many", _any_of(revisions), change)

    def remove(self, revisions: Mapping[str, str]) -> None:
        """Remove the parts of revisions that the document of this id names no more."""
        if revisions:
            self._server.ask(self.name, "delete_many", _any_of(revisions))

    def sweep(self) -> None:
        """Remove parts that were left by processes that were killed."""
        old = {"named": False, "written": {"$lt": _now() - ABANDONED_AFTER}}
        points = self._server.ask(self.name, "distinct", "point", old)
        if not points:
            return
        named = self.named(points)
        self.confirm(named)  # killed between the document and this
        self._server.ask(self.name, "delete_many", {"point": {"$in": points}, **old})

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
            named = {id: str(one["revision"]) for id, one in outside.items()}
            for part in self._server.fetch(self.name, "find", _any_of(named)):
                found[part["point"]].append(part)
        return {id: put_together(found[id], one) for id, one in outside.items()}


def _any_of(revisions: Mapping[str, str]) -> Doc:
    """The parts of some revisions of some documents."""
    return {"$or": [{"point": id, "revision": revision} for id, revision in revisions.items()]}


def _now() -> datetime:
    return datetime.now(timezone.utc)
