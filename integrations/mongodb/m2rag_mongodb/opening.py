"""From a URL to a collection: what `m2rag index --index mongodb://...` opens."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple
from urllib.parse import quote_plus

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from m2rag.errors import InvalidInputError, StoreError
from m2rag.stores import Manifest, Schema
from m2rag_mongodb.server import Blocking, Doc
from m2rag_mongodb.store import MongoStore

PASSWORD_VARIABLE = "MONGODB_PASSWORD"
DEFAULT_DATABASE = DEFAULT_COLLECTION = "m2rag"
SELECTION_MS = 5_000
"""How long the driver looks for a server before it says there is none; then the store's own patience begins."""

_SCHEMES = ("mongodb", "mongodb+srv")
_FORM = "mongodb[+srv]://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE/COLLECTION[?OPTIONS]"


class Place(NamedTuple):
    """Where a collection is.

    Attributes:
        uri: what the driver connects to; holds the password.
        database, collection: their names.
        shown: the URL without user, password and options.
    """

    uri: str
    database: str
    collection: str
    shown: str

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shown!r})"


def parse_url(url: str, password: str | None = None) -> Place:
    """`mongodb[+srv]://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE/COLLECTION[?OPTIONS]`, options as drivers have them.

    Atlas's own connection strings will do: database and collection are "m2rag" where they are left out. Keep the
    password out of the URL: others can see command lines.

    Args:
        url: of the collection.
        password: of the user in the URL, where the URL has none.

    Raises:
        InvalidInputError: it is not of this form. The message shows no part of the URL that may hold a password.
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    credentials, at, host = authority.rpartition("@")
    path, _, query = rest[len(authority) :].partition("?")
    pieces = [piece for piece in path.split("/") if piece]
    if scheme not in _SCHEMES or not host or len(pieces) > 2 or "@" in path or "#" in rest:
        raise _malformed()
    user, colon, _ = credentials.partition(":")
    if password and not user:
        raise InvalidInputError(f"a password needs a user: {scheme}://USER@{host}/...")
    if user and not colon and password:
        credentials = f"{user}:{quote_plus(password)}"
    elif user and not colon and "authmechanism" not in query.lower():
        raise InvalidInputError(
            f"there is no password for the user of {scheme}://{host}: give it in the environment variable "
            f"{PASSWORD_VARIABLE}"
        )
    database = pieces[0] if pieces else DEFAULT_DATABASE
    collection = pieces[1] if len(pieces) > 1 else DEFAULT_COLLECTION
    if set(database) & set('.$"\\ ') or "$" in collection or collection.startswith("system."):
        raise InvalidInputError(f"{database!r} and {collection!r} are no names of a database and a collection")
    if len(pieces) == 2 and collection.endswith(".parts"):
        raise InvalidInputError(f"{collection!r} is no name for an index: .parts holds parts of other collections")
    # Without a database in the URL users are looked up in "admin", as they are in Atlas; with one they would be there.
    uri = f"{scheme}://{credentials}{at}{host}/" + (f"?{query}" if query else "")
    return Place(uri, database, collection, f"{scheme}://{host}/{database}/{collection}")


def open_url(url: str, *, create: tuple[Manifest, Schema] | None = None, api_key: str | None = None) -> MongoStore:
    """Open the collection a URL names; see `parse_url` and `MongoStore`.

    Args:
        url: of the collection.
        create: what to create where there is no collection of this name.
        api_key: the password of the user in the URL; default: the environment variable MONGODB_PASSWORD. One in the
            URL goes before both.
    """
    has_user = "@" in url.partition("?")[0]
    place = parse_url(url, api_key or (os.environ.get(PASSWORD_VARIABLE) if has_user else None))
    options: dict[str, Any] = {}
    if "serverselectiontimeoutms" not in place.uri.lower():
        options["serverSelectionTimeoutMS"] = SELECTION_MS
    try:
        client: MongoClient[Doc] = MongoClient(place.uri, appname="m2rag", **options)
    except (PyMongoError, ValueError, TypeError) as error:
        # The driver's words may hold parts of a password with unescaped characters: only their kind is told.
        kind = type(error).__name__
        if kind == "ConfigurationError" and place.shown.startswith("mongodb+srv"):
            raise StoreError(
                f"the servers of {place.shown} cannot be looked up: wrong host name, or no network (DNS)"
            ) from None
        raise InvalidInputError(
            f"{place.shown} cannot be opened ({kind}): special characters in user and password must be "
            "percent-encoded, and options be those of MongoDB's drivers"
        ) from None
    try:
        return MongoStore(
            Blocking(client[place.database]),
            place.collection,
            create=create,
            location=place.shown,
            on_close=client.close,
        )
    except BaseException:
        client.close()
        raise


def _malformed() -> InvalidInputError:
    return InvalidInputError(
        f"this is not the URL of a MongoDB collection, {_FORM}: special characters in user and password must be "
        "percent-encoded"
    )
