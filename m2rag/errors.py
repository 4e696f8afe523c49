"""Every error m2rag raises on purpose. Each message names the item, the numbers on both sides and what to do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from m2rag.results import EmbeddingResult


class M2RagError(Exception):
    """Base of all errors raised on purpose by this library. They survive pickling, as other processes send them."""

    def __reduce__(self) -> tuple[Any, ...]:
        if not isinstance(type(self).__init__, FunctionType):
            return super().__reduce__()  # type: ignore[return-value]
        # That would give the message to a constructor of our own, which takes other things.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[M2RagError], args: tuple[Any, ...], attributes: dict[str, Any]) -> M2RagError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class InvalidInputError(M2RagError, ValueError):
    """An input has the right type and a value that cannot be embedded: empty, only white space, binary."""


class InvalidInputTypeError(M2RagError, TypeError):
    """An input is not a `str`."""


class InputTooLongError(InvalidInputError):
    """An input has more tokens than the model takes, and the policy is `on_too_long="error"`.

    Attributes:
        index: position of the input in the batch.
        n_tokens: its length in tokens, special tokens included.
        max_tokens: the limit.
    """

    def __init__(self, index: int, n_tokens: int, max_tokens: int) -> None:
        super().__init__(
            f"input {index} has {n_tokens:,} tokens, the limit is {max_tokens:,}: "
            "pass on_too_long='window' (all of the text, in overlapping windows) or 'truncate' (its beginning)"
        )
        self.index = index
        self.n_tokens = n_tokens
        self.max_tokens = max_tokens


class OutOfMemoryError(M2RagError, MemoryError):
    """One input alone does not fit into the device's memory."""


class CheckpointError(M2RagError):
    """A checkpoint is missing, damaged, unsafe, or does not hold the tensors of the model it claims to be."""


class NonFiniteError(M2RagError, ValueError):
    """NaN or infinity in weights, in a model's output or in an answer: never stored, never returned."""


class RemoteError(M2RagError):
    """A remote model refused, failed, or did not answer in time.

    Attributes:
        status: HTTP status of its last answer; None if there was none.
        retry_after: seconds it asked to wait; None if it did not.
        refused: it refused this one input, and takes others.
        missing: positions of the inputs that have no vector.
        result: what was obtained before: rows of zeros for the missing, which are in `result.errors` too; None where
            no inputs were at stake.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retry_after: float | None = None, refused: bool = False
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.refused = refused
        self.missing: tuple[int, ...] = ()
        self.result: EmbeddingResult | None = None

    def with_result(self, result: EmbeddingResult, missing: Sequence[int]) -> RemoteError:
        """This error as the caller sees it, with what was obtained in spite of it."""
        some = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        whole = type(self)(
            f"{self}\n{len(missing):,} of {len(result):,} inputs have no vector: {some} "
            "(all in error.missing; the vectors of the others are in error.result)",
            status=self.status,
            retry_after=self.retry_after,
            refused=self.refused,
        )
        whole.missing, whole.result = tuple(missing), result
        return whole


class ContextTooLongError(RemoteError):
    """A chat model was sent more tokens than it takes; nothing was answered."""


class MissingDependencyError(M2RagError, ImportError):
    """An optional package is not installed; the message holds the exact `pip install`."""


class DocumentError(M2RagError):
    """A file cannot be read as a document (binary, unreadable, empty, damaged)."""


class StoreError(M2RagError):
    """The vector store failed or cannot be reached."""


class IndexNotFoundError(StoreError):
    """There is no index at this place."""


class IndexLockedError(StoreError):
    """The index folder is open in another process."""


class PointTooLargeError(StoreError):
    """A document is larger than the store takes in one piece; nothing of it was written.

    Attributes:
        ids: of the points that are too large.
    """

    def __init__(self, message: str, ids: Collection[UUID]) -> None:
        super().__init__(message)
        self.ids = frozenset(ids)


class IndexMismatchError(M2RagError):
    """The index was built with another embedder: vectors of the two cannot be compared."""

    def __init__(self, where: str, stored: str, given: str) -> None:
        super().__init__(
            f"the index at {where} was built with\n  {stored}\nand this embedder is\n  {given}\n"
            "Open it with the embedder it was built with, or build a new index."
        )
        self.stored = stored
        self.given = given


class TaskError(M2RagError):
    """An evaluation task folder lacks a file or holds a broken line."""
