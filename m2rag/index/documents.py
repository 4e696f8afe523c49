"""What goes into an index and what comes out of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

from m2rag.errors import InvalidInputError, InvalidInputTypeError, M2RagError

_NAMESPACE = UUID("6a0c1c8e-6d0f-5f0b-9a6e-0d3f6c0b7a52")
_NOT_CONTENT = frozenset({"mtime"})


@dataclass(frozen=True)
class Document:
    """One whole document.

    Attributes:
        id: the caller's name for it, unique in the index: adding another document under the same id replaces it.
        text: all of it.
        title: shown with hits, and found by its words; not part of what is embedded.
        metadata: JSON values; `search(filter=...)` compares its top-level fields. `mtime`, the time of a file's last
            change, is not content: a document that differs in nothing else is unchanged, and keeps the one it has.
        origin: absolute path of the file it was read from. Not content: moving a file does not change its document.
    """

    id: str
    text: str
    title: str | None = None
    metadata: Mapping[str, Any] | None = None
    origin: str | None = None


@dataclass(frozen=True)
class Passage:
    """A part of a document.

    Attributes:
        text: `document.text[start:end]`.
        start, end: its characters.
        score: its cosine to the query. In hybrid and lexical mode passages are chosen by their words too, so that the
            first need not have the highest.
        own_score: False where the model gives passages no vectors: the passage was chosen by its words alone, in every
            mode, and `score` is its document's.
    """

    text: str
    start: int
    end: int
    score: float
    own_score: bool = True


@dataclass(frozen=True)
class Hit:
    """A document found.

    Attributes:
        id: its id.
        score: what hits are ordered by; which number that is depends on the mode of the search.
        document_score: cosine of query and whole document.
        title: its title, if it has one.
        passages: its best passages that do not overlap, those first that fit the query best; empty if they were not
            asked for, or the model gives passages no vectors and no word of the query is in the text.
        metadata: as given when it was added.
        n_tokens: its length in tokens.
        n_windows: windows it was embedded in (1 unless it was longer than the model takes).
        truncated: some of its tokens are not in its vector.
    """

    id: str
    score: float
    document_score: float
    title: str | None
    passages: list[Passage]
    metadata: dict[str, Any]
    n_tokens: int
    n_windows: int
    truncated: bool


@dataclass(frozen=True)
class Failure:
    """A document that was not indexed, and why. An earlier version of it stays in the index.

    Attributes:
        id: the document's, or what else names it.
        cause: why.
        path: absolute path of the file, where it came from one.
    """

    id: str
    cause: M2RagError
    path: str | None = None


@dataclass(frozen=True)
class Stored:
    """What an index knows of a document besides its text.

    Attributes:
        id, title, metadata: as given when it was added.
        n_tokens: its length in tokens.
        n_characters: its length in characters.
        n_windows: windows it was embedded in (1 unless it was longer than the model takes).
        truncated: some of its tokens are not in its vector.
    """

    id: str
    title: str | None
    metadata: dict[str, Any]
    n_tokens: int
    n_characters: int
    n_windows: int
    truncated: bool


@dataclass
class AddReport:
    """What one `add` did. Every document handed in is counted in exactly one of the first four.

    Attributes:
        added: documents that are new in the index.
        replaced: documents whose content (or length policy) had changed.
        unchanged: documents already there, not embedded again.
        failed: documents that could not be read or embedded.
        skipped: files met in folders that are of no supported kind.
        n_tokens: tokens embedded.
        seconds: wall time.
    """

    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    failed: list[Failure] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    n_tokens: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Documents dealt with so far."""
        return self.added + self.replaced + self.unchanged + len(self.failed)


@dataclass(frozen=True)
class Outcome:
    """What became of one document; where it failed, why, and the absolute path of its file, if it has one."""

    id: str
    state: Literal["added", "replaced", "unchanged", "failed"]
    cause: M2RagError | None = None
    path: str | None = None


@dataclass(frozen=True)
class AddProgress:
    """Where an `add` stands: enough to draw documents/s, tokens/s and the time left.

    Attributes:
        done: documents dealt with (stored, unchanged or failed).
        total: documents in all; None while that is not known.
        tokens: tokens embedded so far; those of documents not yet stored count, and overlaps of windows count again.
        current: id of the document at hand.
        seconds: since the start.
        finished: the documents dealt with since the last call.
    """

    done: int
    total: int | None
    tokens: int
    current: str
    seconds: float
    finished: tuple[Outcome, ...] = ()


def point_id(document_id: str) -> UUID:
    """The id of a document's point: the same for the same document id, in every index."""
    # uuid5, also for ids that are no valid Unicode: no document has such a one, and it may be asked for.
    digest = hashlib.sha1(_NAMESPACE.bytes + document_id.encode("utf-8", "surrogatepass")).digest()
    return UUID(bytes=digest[:16], version=5)


def is_unicode(text: str) -> bool:
    """Whether a text can be stored and looked for: it has no surrogates that stand alone."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_document(document: Document) -> dict[str, Any]:
    """Check that a document can be stored and return its metadata as JSON gives it back.

    Raises:
        InvalidInputTypeError: id, text or title is not a `str`, or metadata is not a mapping.
        InvalidInputError: id or text is empty, a string is not valid Unicode, or metadata is not JSON.
    """
    for name, value in (("id", document.id), ("text", document.text), ("title", document.title)):
        if not isinstance(value, str) and not (name == "title" and value is None):
            raise InvalidInputTypeError(
                f"the {name} of document {document.id!r} is {type(value).__name__}, it must be str"
            )
    if not document.id.strip():
        raise InvalidInputError("a document has an empty id")
    if not document.text.strip():
        raise InvalidInputError(f"document {document.id!r} is empty: there is no text to embed")
    if document.metadata is not None and not isinstance(document.metadata, Mapping):
        raise InvalidInputTypeError(
            f"the metadata of document {document.id!r} is {type(document.metadata).__name__}, it must be a mapping"
        )
    try:
        for text in (document.id, document.title or "", document.text):
            text.encode("utf-8")
        return json.loads(_canonical(document.metadata or {}), parse_int=_int64)
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"document {document.id!r} holds a lone surrogate at character {error.start}: it is not valid Unicode, "
            "decode its source with the right encoding"
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"the metadata of document {document.id!r} is not JSON: {error}") from error


def content_hash(document: Document) -> str:
    """sha256 of text, title and metadata without `mtime`, in hex; a checked document only."""
    metadata = {name: value for name, value in (document.metadata or {}).items() if name not in _NOT_CONTENT}
    digest = hashlib.sha256(_canonical({"title": document.title, "metadata": metadata}).encode("utf-8"))
    digest.update(b"\0")
    digest.update(document.text.encode("utf-8"))
    return digest.hexdigest()


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), sort_keys=True, ensure_ascii=False, allow_nan=False)


def _int64(digits: str) -> int:
    number = int(digits)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"the integer {digits} does not fit into 64 bits")
    return number
