"""The one place that talks to pymongo: both of its clients behind one call, its errors with our types, patience."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, Protocol, TypeAlias

from bson.codec_options import CodecOptions
from pymongo import ReadPreference, WriteConcern
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.database import Database
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    DocumentTooLarge,
    InvalidOperation,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
)

from m2rag.errors import StoreError
from m2rag.index.asynchronous import on_loop
from m2rag.stores.retry import Patience, Transient
from m2rag_mongodb.errors import SearchUnavailableError

Doc: TypeAlias = "dict[str, Any]"

DUPLICATE_KEY = 11000
INDEX_EXISTS = 68

# Whatever the client is set to: documents are dicts, a majority acknowledges writes, and reads see them.
_OURS: dict[str, Any] = {
    "codec_options": CodecOptions(),
    "read_preference": ReadPreference.PRIMARY,
    "write_concern": WriteConcern("majority", wtimeout=60_000),
}

_NO_ACCESS = {13, 18, 8000}
_NO_SEARCH = {59, 115, 31082}
# What the drivers' specification calls retryable, and: over the request's time, too many requests (serverless tiers).
_RETRIED = {6, 7, 50, 64, 89, 91, 134, 189, 262, 9001, 10107, 11600, 11602, 13435, 13436, 16500}


class Refused(StoreError):
    """The server understood and said no.

    Attributes:
        code: its error code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Caller(Protocol):
    """Calls a method of a collection, or of the database where there is no collection, and waits for the answer."""

    @property
    def name(self) -> str:
        """Name of the database."""
        ...

    def __call__(self, collection: str | None, method: str, *args: Any, listed: bool = False, **options: Any) -> Any:
        """The answer; with `listed` the documents of the cursor that the method returns."""
        ...


class Blocking:
    """The methods of a `MongoClient`'s database."""

    def __init__(self, database: Database[Any]) -> None:
        self._database: Database[Doc] = database.with_options(**_OURS)

    @property
    def name(self) -> str:
        """Name of the database."""
        return self._database.name

    def __call__(self, collection: str | None, method: str, *args: Any, listed: bool = False, **options: Any) -> Any:
        """See `Caller`."""
        target: Any = self._database if collection is None else self._database[collection]
        answer = getattr(target, method)(*args, **options)
        return list(answer) if listed else answer


class OnLoop:
    """The methods of an `AsyncMongoClient`'s database, for worker threads of the event loop it lives in."""

    def __init__(self, database: AsyncDatabase[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._database: AsyncDatabase[Doc] = database.with_options(**_OURS)
        self._loop = loop

    @property
    def name(self) -> str:
        """Name of the database."""
        return self._database.name

    def __call__(self, collection: str | None, method: str, *args: Any, listed: bool = False, **options: Any) -> Any:
        """See `Caller`."""
        target: Any = self._database if collection is None else self._database[collection]

        async def request() -> Any:
            answer = getattr(target, method)(*args, **options)
            if inspect.isawaitable(answer):
                answer = await answer
            return await answer.to_list() if listed else answer

        return on_loop(self._loop, request)


class Server:
    """A database with patience.

    Args:
        caller: makes the requests.
        location: how a person would name the collection, without any password.
        patience: how long to wait for a server that does not answer.
    """

    def __init__(self, caller: Caller, location: str, patience: Patience) -> None:
        self._caller = caller
        self.location = location
        self.patience = patience

    def ask(self, collection: str | None, method: str, *args: Any, **options: Any) -> Any:
        """Call a method that does the same however often it is done.

        Raises:
            SearchUnavailableError: the server has no search.
            Refused: the server said no.
            BulkWriteError: some writes of a bulk failed, for reasons that do not pass.
            StoreError: the server cannot be reached, or the request not be made.
        """

        def call() -> Any:
            try:
                return self._caller(collection, method, *args, **options)
            except BulkWriteError as error:
                if _passes(error.details):
                    raise Transient(_Described("some writes were not acknowledged")) from error
                raise
            except PyMongoError as error:
                raise self._translated(error, method) from error

        try:
            return self.patience.run(call, f"the index at {self.location}")
        except Transient as error:
            raise StoreError(
                f"the index at {self.location} cannot be reached or used, after tries for "
                f"{self.patience.seconds:.0f} s: {error}. Nothing of this call counts as done; run it again when the "
                "server is back"
            ) from error.cause

    def fetch(self, collection: str | None, method: str, *args: Any, **options: Any) -> list[Doc]:
        """All documents of the cursor that a method returns; raises as `ask`."""
        found: list[Doc] = self.ask(collection, method, *args, listed=True, **options)
        return found

    def _translated(self, error: PyMongoError, method: str) -> Exception:
        """Our error for one of pymongo's; `Transient` where it may pass."""
        if isinstance(error, (ConnectionFailure, WriteConcernError)):
            return Transient(_Described(_said(error)))
        if isinstance(error, OperationFailure):
            code = error.code or 0
            if code in _RETRIED or error.has_error_label("RetryableWriteError"):
                return Transient(_Described(f"{code} {_said(error)}"))
            if code in _NO_ACCESS:
                return StoreError(
                    f"the server of {self.location} refuses access ({code} {_said(error)}): check user, password and "
                    "the user's rights"
                )
            if code in _NO_SEARCH and "earch" in str(error) + method:
                return SearchUnavailableError(
                    f"the server of {self.location} has no vector search ({code} {_said(error)}): it takes Atlas, a "
                    "local Atlas deployment, or MongoDB 8.2 with mongot"
                )
            return Refused(f"the index at {self.location} refused to {method}: {code} {_said(error)}", code)
        if isinstance(error, InvalidOperation) and "close" in str(error):
            return StoreError(f"the index at {self.location} is closed: its client was closed")
        if isinstance(error, DocumentTooLarge):
            return StoreError(f"a document is too large for the index at {self.location}: {error}")
        return StoreError(f"the index at {self.location} failed to {method}: {_said(error)}")


class _Described(Exception):
    """A driver's error in words fit for a message."""


def _said(error: PyMongoError) -> str:
    """What an error says, without the answer's and the topology's every detail."""
    details = getattr(error, "details", None)
    if isinstance(details, dict) and "errmsg" in details:
        return str(details["errmsg"])[:300]
    text = str(error).partition(", Timeout: ")[0].partition(" (configured timeouts")[0].partition(", full error")[0]
    return text[:300] or type(error).__name__


def _passes(details: Any) -> bool:
    """Whether what went wrong with a bulk write may pass. What is there already is no reason against another try."""
    codes = {one["code"] for one in details.get("writeErrors") or []} - {DUPLICATE_KEY}
    return codes <= _RETRIED and bool(codes or details.get("writeConcernErrors"))
