"""Word (.docx)."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, LargeZipFile

from m2rag.errors import DocumentError
from m2rag.index.readers.packed import check_zip

# What python-docx raises on damaged files besides its own errors: it follows the file's own tables.
_DAMAGED = (
    AssertionError,
    AttributeError,
    BadZipFile,
    EOFError,
    LargeZipFile,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    SyntaxError,  # lxml's
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
_OLE = b"\xd0\xcf\x11\xe0"  # what an encrypted .docx is wrapped in, and what a .doc is


def read_word(data: bytes, shown: str | Path) -> tuple[str, str | None]:
    from docx import Document
    from docx.opc.exceptions import OpcError
    from docx.oxml import parse_xml

    if data.startswith(_OLE):
        raise DocumentError(f"{shown} is protected by a password or in Word's old format: save it as plain .docx")
    try:
        check_zip(data, shown)
        document = Document(io.BytesIO(data))
        body = document.element.body
        blocks = list(_blocks(body))
        for relation in document.part.rels.values():
            if relation.reltype.endswith(("/footnotes", "/endnotes")) and not relation.is_external:
                blocks += _blocks(parse_xml(relation.target_part.blob))
        title = document.core_properties.title or _heading(document)
    except (OpcError, *_DAMAGED) as error:
        raise DocumentError(f"{shown} is damaged or no .docx ({type(error).__name__}: {error})") from error
    return "\n\n".join(block for block in blocks if block.strip()), title


def _blocks(element: Any) -> Iterator[str]:
    """Paragraphs and tables in order, whatever they are wrapped in: content controls, changes that were tracked."""
    for child in element:
        name = _name(child)
        if name == "p":
            yield _paragraph(child)
        elif name == "tbl":
            rows = (row for row in child.iter() if _name(row) == "tr")
            yield "\n".join("\t".join(_cell(cell) for cell in row if _name(cell) == "tc") for row in rows)
        elif name not in ("Fallback", "del", "moveFrom"):
            yield from _blocks(child)


def _cell(cell: Any) -> str:
    return " ".join(" ".join(block.split()) for block in _blocks(cell))


def _paragraph(element: Any) -> str:
    """Its text, and that of its text boxes; deleted text is not."""
    parts = []
    for child in element:
        name = _name(child)
        if name == "t":
            parts.append(child.text or "")
        elif name in ("tab", "br", "cr"):
            parts.append("\t" if name == "tab" else "\n")
        elif name == "noBreakHyphen":
            parts.append("-")
        elif name == "txbxContent":
            parts.append("\n" + "\n".join(_blocks(child)) + "\n")
        elif name not in ("Fallback", "del", "moveFrom", "pPr", "rPr"):
            parts.append(_paragraph(child))
    return "".join(parts)


def _heading(document: Any) -> str | None:
    for paragraph in document.paragraphs[:200]:
        if paragraph.style is not None and paragraph.style.name in ("Title", "Heading 1") and paragraph.text.strip():
            return paragraph.text
    return None


def _name(element: Any) -> str:
    """Tag without its namespace; empty for comments and processing instructions."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
