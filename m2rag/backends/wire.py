"""The OpenAI-style embedding API as bytes: requests packed and written, answers read and checked."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m2rag.batching import Piece

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_MESSAGE_CHARS = 300

# What is not input in a body: the model's name and the other fields.
_FIELDS_BYTES = 1_024

_MODEL_CODES = frozenset({"model_not_found", "model_not_available", "invalid_model", "model_deprecated"})
_MODEL_GONE = re.compile(
    r"\bmodel\b(?!'s).{0,150}?\b(not found|not exist|not available|no longer|deprecated|retired|removed)\b"
    r"|\b(no such|unknown|invalid|not a valid|unsupported|unrecognized|unable to access)( [\w-]+)? model\b",
    re.IGNORECASE,
)


class AnswerError(ValueError):
    """An answer that is not what the request asked for; says in what."""


@dataclass(frozen=True)
class RequestRule:
    """Packs inputs into requests in their order: nothing is padded, so tokens simply add up.

    Attributes:
        items: inputs per request.
        bytes: body of a request.
    """

    items: int
    bytes: int

    def total(self, pieces: Sequence[Piece]) -> int:
        return sum(map(len, pieces))

    def plan(self, pieces: Sequence[Piece], budget: int) -> list[list[int]]:
        requests: list[list[int]] = []
        tokens = size = 0
        for position, piece in enumerate(pieces):
            piece_size = len(_json_string(piece.text)) + 1
            full = (
                not requests
                or len(requests[-1]) == self.items
                or tokens + len(piece) > budget
                or size + piece_size > self.bytes
            )
            if full:
                requests.append([])
                tokens, size = 0, _FIELDS_BYTES
            requests[-1].append(position)
            tokens, size = tokens + len(piece), size + piece_size
        return requests


def request_body(model: str, texts: Sequence[str], *, dimensions: int | None, base64: bool) -> bytes:
    """JSON of one request."""
    options: dict[str, Any] = {"model": model}
    if dimensions is not None:
        options["dimensions"] = dimensions
    if base64:
        options["encoding_format"] = "base64"
    head = json.dumps(options, ensure_ascii=False).encode("utf-8", "replace")
    return head[:-1] + b', "input": [' + b",".join(map(_json_string, texts)) + b"]}"


def answer_limit(n: int) -> int:
    """More bytes than an honest answer with `n` vectors has."""
    return 1_000_000 + n * 1_000_000


def read_vectors(answer: Any, n: int) -> np.ndarray:
    """(n, D) float32 of an answer's JSON, ordered by `index`; numbers may be base64 or floats, finite or not.

    Raises:
        AnswerError: not a vector for each of the `n` inputs, or vectors of different lengths.
    """
    items = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise AnswerError("the answer holds no list of embeddings (`data`)")
    if len(items) != n:
        raise AnswerError(f"{len(items)} vectors came for {n} inputs")
    given = [item.get("index") for item in items]
    # A few servers number nothing: then the order is all there is.
    indices = list(range(n)) if all(index is None for index in given) else given
    if not all(type(index) is int for index in indices) or sorted(indices) != list(range(n)):
        raise AnswerError(f"the vectors are not numbered 0 to {n - 1}, each once: {str(given[:20])[:200]}")
    vectors: list[np.ndarray] = [np.empty(0)] * n
    for index, item in zip(indices, items, strict=True):
        vectors[index] = _vector(item.get("embedding"))
    lengths = sorted({len(vector) for vector in vectors})
    if len(lengths) != 1 or not lengths[0]:
        raise AnswerError(f"the vectors of one answer have {', '.join(map(str, lengths))} dimensions")
    return np.stack(vectors)


def _vector(embedding: Any) -> np.ndarray:
    if isinstance(embedding, str):
        try:
            raw = base64.b64decode(embedding, validate=True)
        except (binascii.Error, ValueError) as error:
            raise AnswerError(f"a vector is not base64: {error}") from error
        if len(raw) % 4:
            raise AnswerError(f"a vector in base64 has {len(raw)} bytes, not a multiple of 4")
        return np.frombuffer(raw, dtype="<f4").astype(np.float32)
    try:
        vector = np.asarray(embedding, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise AnswerError(f"a vector is neither base64 nor a list of numbers: {error}") from error
    if vector.ndim != 1:
        raise AnswerError(f"a vector is neither base64 nor a list of numbers, it has the shape {vector.shape}")
    with np.errstate(over="ignore"):  # becomes infinity, which is refused like any other
        return vector.astype(np.float32)


@dataclass(frozen=True)
class Complaint:
    """What a server says is wrong.

    Attributes:
        message: its words, on one line and not too many.
        code: its code, "" if it gives none.
        about_model: it does not serve the model asked for.
        about_encoding: it does not know `encoding_format` or base64.
    """

    message: str
    code: str
    about_model: bool
    about_encoding: bool


def read_complaint(status: int, body: bytes) -> Complaint:
    """What an answer with an error status says, in whatever form."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    error = said.get("error", said) if isinstance(said, dict) else said
    fields = error if isinstance(error, dict) else {"message": error}
    message = next((fields[key] for key in ("message", "detail", "error") if fields.get(key)), None)
    if message is None:
        text = body[:2_000].decode("utf-8", "replace")
        message = "" if text.lstrip().startswith("<") else text
    elif not isinstance(message, str):
        message = json.dumps(message)
    message = _CONTROL.sub(" ", message).strip()[:_MESSAGE_CHARS]
    code = str(fields.get("code") or fields.get("type") or "")[:80]
    refused = status in (400, 403, 404, 422)
    head = body[:2_000].decode("latin-1")
    return Complaint(
        message=message,
        code=code,
        about_model=refused
        and (code in _MODEL_CODES or fields.get("param") == "model" or bool(_MODEL_GONE.search(message))),
        about_encoding=status in (400, 422) and ("encoding_format" in head or "base64" in head),
    )


def _json_string(text: str) -> bytes:
    # Half of a surrogate pair has no UTF-8.
    return json.dumps(_SURROGATE.sub("\ufffd", text), ensure_ascii=False).encode("utf-8")
