"""Compressed files, and how much may come out of them."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipFile

from m2rag.errors import DocumentError

MAX_BYTES = 512 * 2**20
"""A larger document is not taken into memory, nor is what a compressed one expands to."""

MAX_RATIO = 200
"""A compressed file of many documents may expand to more than `MAX_BYTES`, but not by more than this factor."""

_CHUNK = 64 * 1024
_ZSTD_CHUNK = 1024  # a block of four bytes can stand for 128 KiB, so this much for 32 MiB


def unpack(stream: BinaryIO, packing: str, shown: str | Path) -> BinaryIO:
    """What is in a compressed file, as a stream.

    Args:
        stream: the file.
        packing: ".gz" or ".zst".
        shown: what messages call it.

    Reading raises:
        DocumentError: the file is damaged, cut off, or expands beyond all measure.
    """
    chunks = {".gz": _gzip_chunks, ".zst": _zstd_chunks}[packing](stream, shown)
    return io.BufferedReader(_Chunks(chunks, shown), _CHUNK)


def read_whole(stream: BinaryIO, shown: str | Path) -> bytes:
    """All of a stream.

    Raises:
        DocumentError: it is longer than `MAX_BYTES`.
    """
    data = stream.read(MAX_BYTES + 1)
    check_size(len(data), shown)
    return data


def check_size(size: int, shown: str | Path) -> None:
    """Raise `DocumentError` if one document of `size` bytes is too large."""
    if size > MAX_BYTES:
        raise DocumentError(
            f"{shown} holds more than {MAX_BYTES / 2**20:,.0f} MiB, too much for one document: split it"
        )


def check_zip(data: bytes, shown: str | Path) -> None:
    """Raise `DocumentError` if a zip file expands to more than `MAX_BYTES`, all its files together."""
    with ZipFile(io.BytesIO(data)) as archive:
        # A file that expands to more than it declares here is not read further than that.
        check_size(sum(file.file_size for file in archive.infolist()), shown)


class _Chunks(io.RawIOBase):
    """A stream of chunks that are made as they are read; counts what came out against what went in."""

    def __init__(self, chunks: Iterator[tuple[bytes, int]], shown: str | Path) -> None:
        self._chunks = chunks
        self._shown = shown
        self._rest = memoryview(b"")
        self._unpacked = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            chunk, consumed = next(self._chunks, (b"", -1))
            if consumed < 0:
                return 0
            self._unpacked += len(chunk)
            if self._unpacked > MAX_BYTES and self._unpacked > MAX_RATIO * consumed:
                raise DocumentError(
                    f"{self._shown} expands to more than {MAX_RATIO} times its size and {MAX_BYTES / 2**20:,.0f} MiB: "
                    "unpack it yourself if that is right"
                )
            self._rest = memoryview(chunk)
        n = min(len(buffer), len(self._rest))
        buffer[:n] = self._rest[:n]
        self._rest = self._rest[n:]
        return n


class Borrowed(io.RawIOBase):
    """A stream that somebody else closes; knows how much was read of it."""

    def __init__(self, stream: BinaryIO) -> None:
        # A buffered stream gives what is there; `read` would wait for a pipe until there is more.
        self._read = getattr(stream, "read1", stream.read)
        self.consumed = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._read(len(buffer))
        buffer[: len(data)] = data
        self.consumed += len(data)
        return len(data)


def _gzip_chunks(stream: BinaryIO, shown: str | Path) -> Iterator[tuple[bytes, int]]:
    """Chunks, and how many bytes were read so far to make them."""
    counted = Borrowed(stream)
    with gzip.GzipFile(fileobj=io.BufferedReader(counted)) as file:
        while True:
            try:
                chunk = file.read(_CHUNK)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise _damaged(shown, "gzip", error) from error
            if not chunk:
                return
            yield chunk, counted.consumed


def _zstd_chunks(stream: BinaryIO, shown: str | Path) -> Iterator[tuple[bytes, int]]:
    import zstandard

    consumed = 0
    data = b""
    frame = None
    # An object per frame instead of a stream reader: the reader takes a file that was cut off for a whole one.
    while data or (data := stream.read(_ZSTD_CHUNK)):
        if frame is None:
            consumed_before = consumed
            frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            chunk = frame.decompress(data)
        except zstandard.ZstdError as error:
            raise _damaged(shown, "zstd", error) from error
        rest = frame.unused_data if frame.eof else b""
        consumed += len(data) - len(rest)
        yield chunk, consumed
        data = rest
        if frame.eof:
            frame = None
    if frame is not None:
        raise _damaged(shown, "zstd", f"cut off in the frame that begins at byte {consumed_before:,}")


def _damaged(shown: str | Path, packing: str, cause: Exception | str) -> DocumentError:
    return DocumentError(f"{shown} is damaged or no {packing} file ({cause})")
