"""Counting and cutting text for models that are elsewhere, so that limits are kept before a byte is sent."""

from __future__ import annotations

import importlib
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m2rag.tokenizer import TextTokenizer, Tokenizer, Tokens

logger = logging.getLogger(__name__)

BERT = "bert-base-uncased"

# Names of the vocabulary files in tiktoken's cache. Asking tiktoken itself would fetch a missing one from the network.
_CACHED = {
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
}
_SURROGATE = re.compile("[\ud800-\udfff]")
# [CLS] and [SEP], or their like.
_SPECIAL_TOKENS = 2
# tiktoken's regular expressions overflow on very long texts; in front of a single space its words always end.
_PIECE_CHARS = 65_536
_BREAK = re.compile(r"(?<=\S) (?=\S)")


class ByteTokenizer:
    """One token per byte of UTF-8, plus two: more than any byte-level or word-piece tokenizer makes of a text.

    English has three to five bytes per token, so this bound is safe and loose. Lengths it gives are upper bounds.
    """

    def __init__(self) -> None:
        self.prefix: tuple[int, ...] = (0,)
        self.suffix: tuple[int, ...] = (0,) * (_SPECIAL_TOKENS - 1)
        self.is_continuation = np.zeros(256, dtype=bool)
        self.identity = "bytes"

    def encode(self, text: str) -> Tokens:
        data = np.frombuffer(_encodable(text).encode("utf-8"), dtype=np.uint8)
        characters = _character_of_byte(data)
        return Tokens(data.astype(np.int32), characters, characters + 1)

    def encode_many(self, texts: Sequence[str]) -> Iterator[Tokens]:
        return map(self.encode, texts)

    def count(self, texts: Iterable[str]) -> np.ndarray:
        return np.array([len(_encodable(text).encode("utf-8")) + _SPECIAL_TOKENS for text in texts], dtype=np.int64)


class TiktokenTokenizer:
    """An encoding of OpenAI's, exact.

    Args:
        encoding: a `tiktoken.Encoding`.
    """

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding
        self.prefix: tuple[int, ...] = ()
        self.suffix: tuple[int, ...] = ()
        self.is_continuation = np.zeros(encoding.n_vocab, dtype=bool)
        self.identity = str(encoding.name)

    def encode(self, text: str) -> Tokens:
        text = _encodable(text)
        ids = self._ids(text)
        ends = np.cumsum([len(part) for part in self._encoding.decode_tokens_bytes(ids)], dtype=np.int64)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        characters = _character_of_byte(np.frombuffer(text.encode("utf-8"), dtype=np.uint8))
        if not ids:
            return Tokens(np.empty(0, np.int32), starts[:0], ends)
        return Tokens(np.array(ids, dtype=np.int32), characters[starts], characters[ends - 1] + 1)

    def encode_many(self, texts: Sequence[str]) -> Iterator[Tokens]:
        return map(self.encode, texts)

    def count(self, texts: Iterable[str]) -> np.ndarray:
        return np.array([len(self._ids(_encodable(text))) for text in texts], dtype=np.int64)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = []
        start = 0
        while start < len(text):
            found = _BREAK.search(text, start + _PIECE_CHARS) if len(text) - start > 2 * _PIECE_CHARS else None
            end = found.start() if found else len(text)
            ids.extend(self._encoding.encode_ordinary(text[start:end]))
            start = end
        return ids


def tokenizer_named(name: str | None) -> Tokenizer:
    """The tokenizer of this name where it is at hand, else the bound by bytes. Never uses the network."""
    if name == BERT:
        return TextTokenizer.bundled()
    if name in _CACHED:
        encoding = _cached_encoding(name)
        if encoding is not None:
            return TiktokenTokenizer(encoding)
    return ByteTokenizer()


def _cached_encoding(name: str) -> Any | None:
    """The `tiktoken.Encoding` whose vocabulary file is already in tiktoken's cache."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder is None:
        folder = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    # An empty name switches the cache off.
    if not folder or not (Path(folder) / _CACHED[name]).is_file():
        return None
    try:
        return importlib.import_module("tiktoken").get_encoding(name)
    except (ImportError, OSError, ValueError) as error:
        logger.info("tiktoken cannot load %s (%s): tokens are bounded by bytes", name, error)
        return None


def _encodable(text: str) -> str:
    """Half of a surrogate pair has no UTF-8: its replacement, which is sent too, has the same length."""
    return _SURROGATE.sub("\ufffd", text)


def _character_of_byte(data: np.ndarray) -> np.ndarray:
    """(n,) int64: for each byte of UTF-8 the position of its character."""
    return np.cumsum((data & 0xC0) != 0x80, dtype=np.int64) - 1
