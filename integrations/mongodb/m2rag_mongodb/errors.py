"""What can go wrong with MongoDB beyond `m2rag.errors`."""

from __future__ import annotations

from m2rag.errors import PointTooLargeError, StoreError


class SearchUnavailableError(StoreError):
    """The server has no search: it is neither Atlas nor set up with its search process."""


class IndexNotReadyError(StoreError):
    """A search index is still being built when the time is up. It goes on being built.

    Attributes:
        status: what the server said of it last ("BUILDING", ...; "MISSING" if it is not there).
        seconds: how long it was waited for.
    """

    def __init__(self, message: str, status: str, seconds: float) -> None:
        super().__init__(message)
        self.status = status
        self.seconds = seconds


class DefinitionMismatchError(StoreError):
    """A search index of this name is there and defined otherwise than asked."""


class UnstorableError(PointTooLargeError):
    """A document that MongoDB cannot hold for other reasons than its size: nothing of it was written."""
