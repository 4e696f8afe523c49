"""Which reader reads which kind of file, known by its suffix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO

from m2rag.index.readers.epub import read_epub
from m2rag.index.readers.html import read_html
from m2rag.index.readers.pdf import read_pdf
from m2rag.index.readers.plain import read_code, read_markdown, read_plain, read_rst
from m2rag.index.readers.rows import Row, read_json_lines, read_table
from m2rag.index.readers.word import read_word

CODE = tuple(
    ".py .pyi .js .mjs .ts .jsx .tsx .vue .svelte .css .java .kt .scala .groovy .go .rs .c .h .cpp .cc .hpp .cu "
    ".cs .swift .m .rb .php .pl .lua .r .jl .hs .ml .ex .erl .clj .dart .zig .sh .bash .ps1 .sql .proto .graphql .tf "
    ".yaml .yml .toml .json .xml .ini .cfg .tex".split()
)
"""Source code and its like: plain text whose title is the file's name."""

READERS: dict[str, Callable[[bytes, str | Path], tuple[str, str | None]]] = {
    ".txt": read_plain,
    ".md": read_markdown,
    ".rst": read_rst,
    ".html": read_html,
    ".htm": read_html,
    ".pdf": read_pdf,
    ".docx": read_word,
    ".epub": read_epub,
    **dict.fromkeys(CODE, read_code),
}
"""Suffix -> reader of a file that is one document: bytes and what messages call it in, text and title (if any) out."""

ROW_READERS: dict[str, Callable[[BinaryIO, str | Path], Iterator[Row]]] = {
    ".jsonl": read_json_lines,
    ".csv": read_table,
    ".tsv": read_table,
}
"""Suffix -> reader of a file of many documents: stream and what messages call it in, rows out."""

PACKED = (".gz", ".zst")
"""Suffixes that any of the others may be followed by: compressed files."""


@dataclass(frozen=True)
class Kind:
    """What a file's name tells.

    Attributes:
        stem: name without suffixes.
        suffix: of its content, in lower case.
        packing: ".gz" or ".zst"; None where it is not compressed.
    """

    stem: str
    suffix: str
    packing: str | None

    @property
    def has_rows(self) -> bool:
        """Whether such a file holds many documents."""
        return self.suffix in ROW_READERS


def kind_of(name: str | Path) -> Kind | None:
    """The kind of a file; None where no reader reads it."""
    path, packing = PurePath(name), None
    if path.suffix.lower() in PACKED:
        packing = path.suffix.lower()
        path = PurePath(path.stem)
    suffix = path.suffix.lower()
    return Kind(path.stem, suffix, packing) if suffix in READERS or suffix in ROW_READERS else None


def supported_suffixes() -> str:
    """The file kinds the index reads, for messages."""
    texts = (suffix for suffix in READERS if suffix not in CODE)
    return f"{', '.join([*texts, *ROW_READERS])}, source code (such as .py), and all of these as {' or '.join(PACKED)}"
