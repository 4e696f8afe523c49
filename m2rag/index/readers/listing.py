"""What a folder holds."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from m2rag.errors import DocumentError
from m2rag.index.readers.kinds import kind_of
from m2rag.stores.folder import MANIFEST_FILE


@dataclass
class FolderListing:
    """What a folder holds.

    Attributes:
        files: files of a supported kind, sorted.
        skipped: paths of the others.
        unreadable: subfolders that could not be listed, with the reason.
    """

    files: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, DocumentError]] = field(default_factory=list)


def list_folder(root: str | Path) -> FolderListing:
    """List the documents under a folder, recursively and sorted.

    Hidden files and folders and index folders of this library are passed over. Linked folders are followed, each
    real folder once, so that a loop of links ends.
    """
    listing = FolderListing()
    folders, linked = [Path(root)], list[Path]()
    seen: set[str] = set()
    while folders or linked:
        folder = folders.pop() if folders else linked.pop(0)  # real ones first: their paths make the better ids
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            reason = DocumentError(f"the folder {folder} cannot be read: {error.strerror}")
            listing.unreadable.append((folder.as_posix(), reason))
            continue
        if any(entry.name == MANIFEST_FILE for entry in entries):
            continue
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                (linked if entry.is_symlink() else folders).append(path)
            elif kind_of(path) is not None:
                listing.files.append(path)
            else:
                listing.skipped.append(path.as_posix())
    listing.files.sort(key=Path.as_posix)
    listing.skipped.sort()
    return listing
