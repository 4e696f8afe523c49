"""Bytes into text: which encoding, and whether it is text at all."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from charset_normalizer import from_bytes

from m2rag.errors import DocumentError
from m2rag.index.readers.packed import Borrowed

MAX_LINE_BYTES = 64 * 2**20
"""A longer line of a file that is read line by line is not taken into memory."""

BOMS = (  # the longer ones first: a UTF-32 mark begins with a UTF-16 one
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CP1252_LANGUAGES = frozenset(
    "Unknown English German French Dutch Spanish Italian Portuguese Swedish Norwegian Danish Finnish".split()
)
_SAMPLE_BYTES = 64 * 1024
_MAX_CONTROL_SHARE = 0.1
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def decode_text(data: bytes, shown: str | Path) -> str:
    """Bytes of a text file into text, with line ends as "\\n".

    A byte order mark decides; then UTF-8; then UTF-16 without a mark, seen by its pattern of zero bytes; then what
    charset-normalizer finds.

    Args:
        data: all of it.
        shown: what messages call it.

    Raises:
        DocumentError: the bytes are not text.
    """
    text = _decode(data, shown)
    _check_text(text[:_SAMPLE_BYTES], shown)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def text_lines(stream: BinaryIO, shown: str | Path) -> Iterator[str | DocumentError]:
    """The lines of a text file, each with its end, one in memory at a time; a `DocumentError` for one that is no text.

    Encodings are found as `decode_text` does, but line by line after the first 8 KiB: what is not UTF-8 is taken for
    what the first such line seems to be.

    Raises:
        DocumentError: the file is binary, or not what its byte order mark says.
    """
    buffered = io.BufferedReader(Borrowed(stream))
    sample = buffered.peek(8192)[:8192]
    mark = next((name for mark, name in BOMS if sample.startswith(mark)), None)
    wide = mark if mark != "utf-8-sig" else None
    if wide or mark is None and (wide := _wide_encoding(sample)):
        yield from _wide_lines(buffered, wide, shown)
        return
    if b"\0" in sample:
        raise binary(shown)
    _check_text(sample.decode("latin-1"), shown)
    if mark is not None:
        buffered.read(len(codecs.BOM_UTF8))
    fallback = None
    number = 0
    while raw := buffered.readline(MAX_LINE_BYTES):
        number += 1
        if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while (rest := buffered.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield DocumentError(f"line {number} of {shown} is longer than {MAX_LINE_BYTES / 2**20:,.0f} MiB")
            continue
        try:
            yield raw.decode("utf-8")
            continue
        except UnicodeDecodeError:
            fallback = fallback or _guess_encoding(raw)
        try:
            yield raw.decode(fallback)
        except (UnicodeDecodeError, LookupError):
            yield raw.decode("latin-1")


def _wide_lines(stream: io.BufferedReader[Any], encoding: str, shown: str | Path) -> Iterator[str]:
    text = io.TextIOWrapper(stream, encoding, newline="\n")
    try:
        while line := text.readline(MAX_LINE_BYTES):
            yield line
    except UnicodeDecodeError as error:
        raise DocumentError(f"{shown} begins like {encoding} and is not: {error.reason}") from error


def _decode(data: bytes, shown: str | Path) -> str:
    for mark, encoding in BOMS:
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                raise DocumentError(f"{shown} begins like {encoding} and is not: {error.reason}") from error
    sample = data[:_SAMPLE_BYTES]
    if b"\0" in data:
        wide = _wide_encoding(sample)
        if wide is None:
            raise binary(shown)
        try:
            return data.decode(wide)
        except UnicodeDecodeError as error:
            raise binary(shown) from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    for encoding in (_guess_encoding(sample), "cp1252", "latin-1"):
        try:
            return data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    raise binary(shown)


def _wide_encoding(sample: bytes) -> str | None:
    """UTF-16 without a mark, by its pattern of zero bytes."""
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    for encoding, zeros, letters in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if zeros > 0.3 * len(sample) / 2 and letters < 0.02 * len(sample) / 2:
            return encoding
    return None


def _guess_encoding(sample: bytes) -> str:
    """What charset-normalizer finds; cp1252 where it finds that as fitting as its many relatives.

    A few accents in a Western text fit a dozen code pages equally well, and the first of them turns "naïve" into
    "na've" when only one of them is the usual one.
    """
    matches = from_bytes(sample)
    best = matches.best()
    if best is None:
        return "cp1252"
    western = any("cp1252" in (match.encoding, *match.could_be_from_charset) for match in matches)
    return "cp1252" if western and best.language in _CP1252_LANGUAGES else best.encoding


def _check_text(sample: str, shown: str | Path) -> None:
    if len(_CONTROL.findall(sample)) > _MAX_CONTROL_SHARE * len(sample):
        raise binary(shown)


def binary(shown: str | Path) -> DocumentError:
    """The error for bytes that are no text."""
    return DocumentError(f"{shown} is binary, not text: convert it to text, HTML or PDF, or leave it out")
