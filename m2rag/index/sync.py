"""A folder and what the index holds of it: what to read, and what to delete."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from m2rag.errors import DocumentError
from m2rag.index.documents import AddReport, Document, Failure, point_id
from m2rag.index.readers import document_id, kind_of, list_folder, possible_files, read_documents, supported_suffixes
from m2rag.stores import VectorStore

LOOKED_UP = 1000
"""Documents looked up or deleted in one go."""


@dataclass
class SyncReport(AddReport):
    """What one `sync` did; in a dry run, what it would do.

    Attributes:
        deleted: ids of the documents whose files, or whose rows in their file, are gone.
        dry_run: nothing was done.
        to_add: ids of the documents that would be added; in a dry run only.
        to_replace: ids of those that would be replaced; in a dry run only.
    """

    deleted: list[str] = field(default_factory=list)
    dry_run: bool = False
    to_add: list[str] = field(default_factory=list)
    to_replace: list[str] = field(default_factory=list)


class FolderSync:
    """One pass over a folder: read `documents`, then ask for those that are `gone`.

    A stored document belongs to the folder if the folder is what `add` named it relative to: other documents are left
    alone, also those of files in this folder that were indexed from elsewhere, and those behind a link whose target is
    not there.

    Args:
        folder: the folder.
        allow_empty: a folder that is missing or holds no document is taken for an empty one.
        only: look at these files, and what is in these folders, alone.

    Raises:
        DocumentError: the folder is missing, cannot be listed, or holds no document.
    """

    def __init__(
        self, folder: str | Path, *, allow_empty: bool = False, only: Collection[str | Path] | None = None
    ) -> None:
        self.folder = Path(folder)
        self._root = os.path.abspath(folder)
        self._only = None if only is None else frozenset(os.path.abspath(path) for path in only)
        hint = "if that is right, allow_empty (--allow-empty) deletes what the index holds of it"
        if self.folder.exists() and not self.folder.is_dir():
            raise DocumentError(f"{folder} is a file: sync takes a folder")
        if not self.folder.exists() and not allow_empty:
            raise DocumentError(f"the folder {folder} does not exist: {hint}")
        listing = list_folder(folder) if self.folder.exists() else None
        self._unreadable = listing.unreadable if listing else []
        for place, error in self._unreadable:
            if os.path.abspath(place) == self._root:
                raise error
        if not (listing and listing.files) and not allow_empty:
            raise DocumentError(f"the folder {folder} holds no document ({supported_suffixes()}): {hint}")
        self.files = [path for path in listing.files if self._in_scope(os.path.abspath(path))] if listing else []
        self.skipped = listing.skipped if listing and only is None else []
        self._read: set[str] = set()
        self._broken: set[str] = set()
        self._rows: set[str] = set()
        self._same_root: dict[str, bool] = {}

    @property
    def total(self) -> int | None:
        """How many documents there are to read; None where some files hold many."""
        kinds = [kind_of(path) for path in self.files]
        return None if any(kind and kind.has_rows for kind in kinds) else len(self.files)

    def documents(self) -> Iterator[Document | Failure]:
        """Read the folder, one document at a time. A file that vanishes meanwhile is none of it."""
        for place, error in self._unreadable:
            if self._in_scope(os.path.abspath(place)):
                yield Failure(place, error, os.path.abspath(place))
        for path in self.files:
            name = document_id(path, self.folder)
            for found in read_documents(path, self.folder):
                if isinstance(found, Failure):
                    if not os.path.lexists(path):
                        break
                    self._broken.add(name)
                elif found.id != name:
                    self._rows.add(found.id)
                yield found
            else:
                self._read.add(name)

    def gone(self, store: VectorStore) -> Iterator[list[str]]:
        """Ids of stored documents that are no longer in the folder, some at a time; once `documents` are read."""
        ids = [str(id) for id in store.values("id")]
        for start in range(0, len(ids), LOOKED_UP):
            some = [point_id(id) for id in ids[start : start + LOOKED_UP]]
            stored = [point.payload for point in store.retrieve(some, payload=("id", "origin")).values()]
            yield [payload["id"] for payload in stored if self._is_gone(payload["id"], payload["origin"])]

    def _is_gone(self, id: str, origin: str | None) -> bool:
        name = self._name(id, origin) if origin is not None else None
        if name is None:
            return False
        place = os.path.join(self._root, name)
        if not self._in_scope(place) or any(_within(place, os.path.abspath(path)) for path, _ in self._unreadable):
            return False
        if self._below_broken_link(place):
            return False
        if name in self._read:
            # What could not be read may be the row that is missing here.
            return id != name and id not in self._rows and name not in self._broken
        return True

    def _name(self, id: str, origin: str) -> str | None:
        """Path of a document's file relative to the folder; None if the document is not of this folder."""
        file = PurePath(origin).as_posix()
        for name in possible_files(id):
            if file.endswith(f"/{name}") and self._is_root(file[: -len(name)]):
                return name
        return None

    def _is_root(self, root: str) -> bool:
        if root not in self._same_root:
            try:
                same = os.path.samefile(root, self._root)
            except OSError:  # one of them is missing
                same = os.path.abspath(root) == self._root
            self._same_root[root] = same
        return self._same_root[root]

    def _below_broken_link(self, place: str) -> bool:
        """Whether the file, or a folder it lies in, is a link to what is not there now, as on a disk not mounted."""
        while len(place) > len(self._root):
            if os.path.islink(place) and not os.path.exists(place):
                return True
            place = os.path.dirname(place)
        return False

    def _in_scope(self, place: str) -> bool:
        return self._only is None or any(_within(place, one) for one in self._only)


def _within(path: str, place: str) -> bool:
    """Whether an absolute path is a place or lies below it."""
    return path == place or path.startswith(place.rstrip(os.sep) + os.sep)
