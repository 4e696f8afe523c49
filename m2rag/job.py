"""The pure core of embedding: check -> tokenise -> plan batches -> (somebody runs them) -> reassemble in order.

Nothing here waits, computes vectors or knows a backend's kind, so that synchronous and asynchronous callers share it:

    job = EmbeddingJob(...)
    while batch := job.next_batch():
        job.settle(batch, backend.run(batch))     # or await backend.arun(batch); several at once if the backend likes
    result = job.result(backend.dimension)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from m2rag.backends import BatchTooLargeError, PieceOutput
from m2rag.batching import Piece, Plan, plan_windows
from m2rag.errors import (
    InputTooLongError,
    InvalidInputError,
    InvalidInputTypeError,
    M2RagError,
    NonFiniteError,
    OutOfMemoryError,
    RemoteError,
)
from m2rag.passages import best_cut, passage_offsets, plan_passages
from m2rag.results import EmbeddingResult, PassageVectors
from m2rag.tokenizer import TextTokenizer, TokenIds, Tokenizer, Tokens

logger = logging.getLogger(__name__)

TOO_LONG = ("error", "truncate", "window")
ON_ERROR = ("raise", "skip")

# Neighbouring windows share an eighth of their length, so that no sentence is seen only at an edge; and at least as
# many tokens as one character can become, so that there is a place between characters to divide them at.
_OVERLAP_SHARE, _OVERLAP_MIN = 8, 4


@dataclass(frozen=True)
class JobSettings:
    """How the inputs of one call are treated; see `M2Embedder` for the words."""

    tokenizer: Tokenizer
    max_tokens: int
    batch_tokens: int
    batch_rule: Plan
    finish: Callable[[np.ndarray], np.ndarray]
    sends_text: bool = False
    prompt: str = ""
    on_too_long: str = "error"
    on_error: str = "raise"
    passage_tokens: int | None = None

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("on_too_long", self.on_too_long, TOO_LONG),
            ("on_error", self.on_error, ON_ERROR),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}, must be one of {', '.join(map(repr, allowed))}")
        if self.passage_tokens is not None and self.passage_tokens < 1:
            raise ValueError(f"passage_tokens is {self.passage_tokens}, must be at least 1")


class EmbeddingJob:
    """One call's inputs on their way to vectors.

    Args:
        texts: the inputs, checked here.
        settings: how to treat them.

    Raises:
        InvalidInputTypeError, InvalidInputError, InputTooLongError: the first bad input, unless
            `on_error="skip"`, where they are found in `result().errors`.
    """

    def __init__(self, texts: Sequence[object], settings: JobSettings) -> None:
        self._settings = settings
        n = len(texts)
        self.errors: dict[int, M2RagError] = {}
        self.n_tokens = np.zeros(n, dtype=np.int64)
        self._n_used = np.zeros(n, dtype=np.int64)
        self._n_windows = np.zeros(n, dtype=np.int64)
        self._failure: RemoteError | None = None
        # (N, D) float32, once the first vector says what D is.
        self._sums: np.ndarray | None = None
        self._weights = np.zeros(n, dtype=np.float64)
        self._pieces_left = np.zeros(n, dtype=np.int64)
        self._offsets: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._span_vectors: dict[int, dict[int, np.ndarray]] = {}
        self._passages: list[PassageVectors | None] | None = None if settings.passage_tokens is None else [None] * n
        tokenizer = settings.tokenizer
        self._prefix = np.array([*tokenizer.prefix, *tokenizer.encode(settings.prompt).ids], dtype=np.int32)
        self._suffix = np.array(tokenizer.suffix, dtype=np.int32)
        self._capacity = settings.max_tokens - len(self._prefix) - len(self._suffix)
        if self._capacity < 1:
            raise ValueError(
                f"the prompt and the special tokens take {len(self._prefix) + len(self._suffix)} tokens, "
                f"the limit is {settings.max_tokens}: nothing is left for the text"
            )

        valid, given = self._checked(texts)
        pieces: list[Piece] = []
        for index, tokens in zip(valid, tokenizer.encode_many(list(valid.values())), strict=True):
            pieces.extend(self._pieces(index, valid[index], tokens))
        for index, tokens in given.items():
            pieces.extend(self._pieces(index, "", tokens))
        self.total_docs = int((self._pieces_left > 0).sum())
        self.total_tokens = sum(len(piece) for piece in pieces)
        plan = settings.batch_rule.plan(pieces, settings.batch_tokens)
        # A stack: the parts of a batch that was too large go next.
        self._todo = [[pieces[i] for i in positions] for positions in reversed(plan)]
        self._log_too_long()

    def next_batch(self) -> list[Piece] | None:
        """What to run next, None when there is nothing left, or nothing to be had after a failure."""
        while self._todo and self._failure is None:
            batch = [piece for piece in self._todo.pop() if piece.document not in self.errors]
            if batch:
                return batch
        return None

    def settle(
        self, batch: Sequence[Piece], outcome: Sequence[PieceOutput] | BatchTooLargeError | RemoteError
    ) -> tuple[int, int]:
        """Enter what became of a batch; returns (documents finished, tokens done).

        A remote model that fails ends the job: no further batch is handed out, those under way are still entered, and
        `result` raises. One that refuses a single input does so only under `on_error="raise"`.

        Raises:
            NonFiniteError, OutOfMemoryError: see `take` and `too_large`.
        """
        if isinstance(outcome, BatchTooLargeError):
            self.too_large(batch, str(outcome))
        elif isinstance(outcome, RemoteError):
            if outcome.refused and self._settings.on_error == "skip":
                for piece in batch:
                    self._fail(piece.document, outcome)
            else:
                self._failure = self._failure or outcome
        else:
            return self.take(batch, outcome)
        return 0, 0

    @property
    def failed(self) -> bool:
        """Whether a remote model failed: `result` will raise."""
        return self._failure is not None

    @property
    def has_vectors(self) -> bool:
        """Whether any vector was entered, so that D is known."""
        return self._sums is not None

    def take(self, batch: Sequence[Piece], outputs: Sequence[PieceOutput]) -> tuple[int, int]:
        """Enter what a batch gave; returns (documents finished, tokens done).

        Raises:
            NonFiniteError: NaN or infinity in a vector; names the inputs (unless `on_error="skip"`).
        """
        bad = sorted(
            {
                piece.document
                for piece, output in zip(batch, outputs, strict=True)
                if not np.isfinite(output.vector).all()
                or (output.spans is not None and not np.isfinite(output.spans).all())
            }
        )
        if bad:
            named = f"input {bad[0]}" if len(bad) == 1 else f"inputs {', '.join(map(str, bad))}"
            error = NonFiniteError(f"the model returned NaN or infinity for {named}: the vector is not used")
            for index in bad:
                self._fail(index, error)
        finished = 0
        for piece, output in zip(batch, outputs, strict=True):
            index = piece.document
            if index in self.errors:
                continue
            if self._sums is None:
                self._sums = np.zeros((len(self.n_tokens), len(output.vector)), dtype=np.float32)
            self._sums[index] += np.float32(piece.weight) * output.vector
            self._weights[index] += piece.weight
            if output.spans is not None:
                self._span_vectors.setdefault(index, {})[piece.window] = output.spans
            self._pieces_left[index] -= 1
            if not self._pieces_left[index]:
                finished += 1
                self._complete(index)
        return finished, sum(len(piece) for piece in batch)

    def too_large(self, batch: Sequence[Piece], reason: str) -> None:
        """The batch did not fit into memory, or was refused as a whole: plan it again with half its cost.

        Raises:
            OutOfMemoryError: it holds one input only; names it (unless `on_error="skip"`).
        """
        rule = self._settings.batch_rule
        if len(batch) == 1:
            index = batch[0].document
            what = f"input {index} ({len(batch[0]):,} tokens at once) does not fit into the device's memory"
            self._fail(
                index, OutOfMemoryError(f"{what}: use a smaller max_tokens with on_too_long='window', or more memory")
            )
            return
        cost = rule.total(batch)
        logger.warning("halving a batch of %d inputs (%d tokens): %s", len(batch), cost, reason.split("\n")[0][:200])
        plan = rule.plan(batch, max(cost // 2, 1))
        self._todo.extend([batch[i] for i in positions] for positions in reversed(plan))

    def result(self, dimension: int | None) -> EmbeddingResult:
        """Vectors in input order, and what happened to each input.

        Args:
            dimension: D, for a job that has no vector.

        Raises:
            RemoteError: a remote model failed; the error carries the result without the inputs it lacks.
        """
        done = (self._weights > 0) & (self._pieces_left == 0)
        sums = np.zeros((len(done), dimension or 0), dtype=np.float32) if self._sums is None else self._sums
        vectors = self._settings.finish(sums / np.where(done, self._weights, 1)[:, None].astype(np.float32))
        vectors[~done] = 0
        missing = [int(index) for index in np.flatnonzero(~done)]
        if self._failure is not None:
            self.errors.update((index, self._failure) for index in missing if index not in self.errors)
        result = EmbeddingResult(
            vectors=vectors,
            n_tokens=self.n_tokens,
            n_used=np.where(done, self._n_used, 0),
            n_windows=np.where(done, self._n_windows, 0),
            errors=dict(sorted(self.errors.items())),
            passages=self._passages,
        )
        if self._failure is not None:
            raise self._failure.with_result(result, missing)
        return result

    def _checked(self, texts: Sequence[object]) -> tuple[dict[int, str], dict[int, Tokens]]:
        """The texts that can be embedded, and those that came as tokens."""
        valid: dict[int, str] = {}
        given: dict[int, Tokens] = {}
        for index, text in enumerate(texts):
            if isinstance(text, TokenIds):
                try:
                    given[index] = self._accepted(text)
                except InvalidInputError as error:
                    self._fail(index, InvalidInputError(f"input {index}: {error}"))
            elif not isinstance(text, str):
                self._fail(index, InvalidInputTypeError(f"input {index} is a {type(text).__name__}, must be a str"))
            elif not text or text.isspace():
                what = "holds only white space" if text else "is empty"
                self._fail(index, InvalidInputError(f"input {index} {what}: there is nothing to embed"))
            else:
                valid[index] = text
        return valid, given

    def _accepted(self, given: TokenIds) -> Tokens:
        tokenizer = self._settings.tokenizer
        if self._settings.sends_text or not isinstance(tokenizer, TextTokenizer):
            raise InvalidInputError("token ids are for a model in this process: give the text")
        if self._settings.passage_tokens is not None:
            raise InvalidInputError("token ids have no passages: give the text")
        return tokenizer.accept(given)

    def _fail(self, index: int, error: M2RagError) -> None:
        if self._settings.on_error == "raise":
            raise error
        self.errors[index] = error
        self._span_vectors.pop(index, None)
        self._weights[index] = 0

    def _pieces(self, index: int, text: str, tokens: Tokens) -> list[Piece]:
        """The windows of one input (one, unless it is too long and the policy is to take all of it)."""
        settings = self._settings
        n_special = len(self._prefix) + len(self._suffix)
        self.n_tokens[index] = len(tokens) + n_special
        if not len(tokens):
            message = f"input {index} holds only characters that make no token (control characters and the like)"
            self._fail(index, InvalidInputError(message))
            return []
        windows = [(0, len(tokens))]
        if len(tokens) > self._capacity:
            if settings.on_too_long == "error":
                self._fail(index, InputTooLongError(index, int(self.n_tokens[index]), settings.max_tokens))
                return []
            windows = self._windows(text, tokens)
            if not windows:
                message = f"input {index}: no part of it fits into {settings.max_tokens} tokens"
                self._fail(index, InvalidInputError(message))
                return []
        used = windows[-1][1]
        self._n_used[index] = used + n_special
        self._n_windows[index] = self._pieces_left[index] = len(windows)
        spans = self._plan_spans(index, text, tokens, windows)
        pieces = []
        for number, (begin, end) in enumerate(windows):
            whole = (begin, end) == (0, len(tokens))
            pieces.append(
                Piece(
                    document=index,
                    window=number,
                    ids=np.concatenate([self._prefix, tokens.ids[begin:end], self._suffix]),
                    text=settings.prompt + (text if whole else text[tokens.starts[begin] : tokens.ends[end - 1]]),
                    # One window's vector is taken as it is, without rounding by a weight.
                    weight=float(end - begin) if len(windows) > 1 else 1.0,
                    spans=None if spans is None else spans[number] - begin + len(self._prefix),
                )
            )
        return pieces

    def _windows(self, text: str, tokens: Tokens) -> list[tuple[int, int]]:
        """The windows of an input that is too long: one under "truncate"; none if there are none that fit."""
        settings = self._settings
        size = self._capacity
        while size > 0:
            if settings.on_too_long == "truncate":
                windows = [(0, size)]
            else:
                overlap = max(size // _OVERLAP_SHARE, min(_OVERLAP_MIN, size // 2))
                windows = plan_windows(len(tokens), size, overlap)
            if not settings.sends_text:
                return windows
            # The text is tokenised again where it arrives, and half a word can make more tokens than it had as a part.
            texts = [settings.prompt + text[tokens.starts[begin] : tokens.ends[end - 1]] for begin, end in windows]
            excess = int(settings.tokenizer.count(texts).max()) - settings.max_tokens
            if excess <= 0:
                return windows
            size -= excess
        return []

    def _plan_spans(
        self, index: int, text: str, tokens: Tokens, windows: list[tuple[int, int]]
    ) -> list[np.ndarray] | None:
        """Per window the token spans (S, 2) of the passages it owns; their characters are kept in `_offsets`."""
        settings = self._settings
        if settings.passage_tokens is None:
            return None
        continuation = settings.tokenizer.is_continuation
        # Each window owns its part up to the best cut in the overlap with the next one: no gap, nothing twice.
        cuts = [windows[0][0]]
        for (_, end), (start, _) in pairwise(windows):
            quarter = (end - start) // 4
            cut = best_cut(text, tokens, start + quarter, end - quarter, continuation)
            if cut is None:
                cut = best_cut(text, tokens, start, end, continuation)
            cuts.append((start + end) // 2 if cut is None else cut)
        cuts.append(windows[-1][1])
        firsts: list[int] = []
        spans = []
        for begin, end in pairwise(cuts):
            own = plan_passages(text, tokens, begin, end, settings.passage_tokens, continuation)
            spans.append(np.array([own, [*own[1:], end]], dtype=np.int64).T)
            firsts.extend(own)
        self._offsets[index] = passage_offsets(text, tokens, firsts, windows[-1][1])
        return spans

    def _complete(self, index: int) -> None:
        if self._passages is None:
            return
        by_window = self._span_vectors.pop(index)
        vectors = np.concatenate([by_window[window] for window in sorted(by_window)])
        self._passages[index] = PassageVectors(self._settings.finish(vectors), *self._offsets.pop(index))

    def _log_too_long(self) -> None:
        """Once per call, with the counts; the result says the same per input."""
        taken = self._n_windows > 0
        cut = taken & (self._n_used < self.n_tokens)
        if cut.any():
            lost = int((self.n_tokens - self._n_used)[cut].sum())
            logger.warning(
                "%d of %d inputs were cut to %d tokens: %d of their %d tokens are not in the vectors",
                cut.sum(), len(cut), self._settings.max_tokens, lost, self.n_tokens[cut].sum(),
            )  # fmt: skip
        windowed = self._n_windows > 1
        if windowed.any():
            logger.info(
                "%d of %d inputs exceed %d tokens and are embedded in %d windows",
                windowed.sum(), len(windowed), self._settings.max_tokens, self._n_windows[windowed].sum(),
            )  # fmt: skip
