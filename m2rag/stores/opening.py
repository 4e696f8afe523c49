"""From the name of a place to the store there: a folder, a Qdrant server, or what an installed package knows."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from m2rag._optional import require
from m2rag.errors import InvalidInputError
from m2rag.stores.base import Manifest, Schema, VectorStore
from m2rag.stores.qdrant_edge import EdgeStore

ENTRY_POINTS = "m2rag.stores"
"""Group of entry points: name = URL scheme, object = a `StoreOpener`. The schemes known here cannot be replaced."""

New: TypeAlias = "tuple[Manifest, Schema]"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two letters at least: C:// is a drive


class StoreOpener(Protocol):
    """Opens the collection a URL names, and creates it where it is missing and `create` says what."""

    def __call__(self, url: str, *, create: New | None = None, api_key: str | None = None) -> VectorStore:
        """Open `url`.

        Args:
            url: what the caller gave, its scheme in any case.
            create: manifest and schema of a new collection; None to only open.
            api_key: as given by the caller; None means what the store's own environment variable holds.

        Raises:
            IndexNotFoundError: there is none and `create` is None.
            StoreError: it cannot be reached or used. Messages show no key and no password.
        """
        ...


def open_store(where: str | Path, *, create: New | None = None, api_key: str | None = None) -> VectorStore:
    """Open the store at a place; create it there if it is missing and `create` says what.

    Args:
        where: a folder, `http[s]://HOST[:PORT]/COLLECTION` of a Qdrant server, or a URL of another scheme that an
            installed package opens (entry points of the group `m2rag.stores`).
        create: manifest and schema of a new collection; None to only open.
        api_key: for a server. Default: the environment variable it is known by, QDRANT_API_KEY for Qdrant.

    Raises:
        InvalidInputError: `where` is empty, or a URL that nothing installed opens.
        MissingDependencyError: a Qdrant server, and qdrant-client is not installed.
        IndexNotFoundError, IndexLockedError, StoreError: see `EdgeStore` and `QdrantServerStore`.
    """
    if isinstance(where, str) and is_url(where):
        return _opener(where)(where, create=create, api_key=api_key)
    if not str(where).strip():
        raise InvalidInputError("an index needs a folder or a URL, the one given is empty")
    return EdgeStore(where, create=create)


def is_url(where: str) -> bool:
    """Whether this names a place by URL, not a folder."""
    return _SCHEME.match(where) is not None


def without_secrets(url: str) -> str:
    """A URL fit to be shown: without user, password and query, which may hold keys."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return url.partition("://")[0] + "://..."
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _opener(url: str) -> StoreOpener:
    scheme = url.partition("://")[0].lower()
    if scheme in ("http", "https"):
        require("qdrant_client", extra="qdrant")
        from m2rag.stores.qdrant_server import open_url

        return open_url
    found = {point.value: point for point in entry_points(group=ENTRY_POINTS) if point.name == scheme}
    if len(found) > 1:
        raise InvalidInputError(f"several installed packages open {scheme}:// ({', '.join(sorted(found))}): keep one")
    if not found:
        others = sorted({f"{point.name}://" for point in entry_points(group=ENTRY_POINTS)})
        raise InvalidInputError(
            f"nothing installed opens {without_secrets(url)}: an index is a folder, http[s]://HOST:PORT/COLLECTION of "
            f"a Qdrant server, or a URL that an installed package opens ({', '.join(others) or 'there is none'})"
        )
    opener: Callable[..., VectorStore] = next(iter(found.values())).load()
    return opener
