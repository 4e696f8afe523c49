"""Electronic books (.epub): a zip of XHTML pages and a list of the order they are read in."""

from __future__ import annotations

import io
import posixpath
import re
import zlib
from pathlib import Path
from urllib.parse import unquote
from zipfile import BadZipFile, ZipFile

from m2rag.errors import DocumentError
from m2rag.index.readers.decoding import decode_text
from m2rag.index.readers.html import page_text
from m2rag.index.readers.packed import check_zip

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")
_SELF_CLOSED = re.compile(r"<([A-Za-z][\w:.-]*)(?![\w:.-])((?:[^<>\"'/]|\"[^\"<]*\"|'[^'<]*'|/(?!>))*)/>")
_VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())


def read_epub(data: bytes, shown: str | Path) -> tuple[str, str | None]:
    try:
        check_zip(data, shown)
        with ZipFile(io.BytesIO(data)) as book:
            return _read_book(book, shown)
    except (BadZipFile, EOFError, KeyError, NotImplementedError, OSError, RuntimeError, zlib.error) as error:
        raise DocumentError(f"{shown} is damaged or no .epub ({type(error).__name__}: {error})") from error


def _read_book(book: ZipFile, shown: str | Path) -> tuple[str, str | None]:
    from selectolax.lexbor import LexborHTMLParser

    # HTML's parser serves for these small files: it fetches nothing and expands no entities of the file's own.
    container = LexborHTMLParser(_page(book, _CONTAINER, shown))
    root = container.css_first("rootfile[full-path]")
    if root is None:
        raise DocumentError(f"{shown} is damaged or no .epub: {_CONTAINER} names no book")
    opf = str(root.attributes["full-path"])
    package = LexborHTMLParser(_page(book, opf, shown))
    items = {node.attributes.get("id"): node.attributes for node in package.css("manifest item[href]")}
    order = [items.get(node.attributes.get("idref")) for node in package.css("spine itemref[idref]")]
    locked = _page(book, _ENCRYPTION, shown) if _ENCRYPTION in book.namelist() else ""
    texts = []
    for item in order:
        if item is None or item.get("media-type") not in _PAGES:
            continue
        name = posixpath.normpath(posixpath.join(posixpath.dirname(opf), unquote(str(item["href"]))))
        if name in unquote(locked):
            raise DocumentError(f"{shown} is protected against copying (DRM)")
        texts.append(page_text(_page(book, name, shown))[0])
    title = package.css_first(r"metadata dc\:title")
    return "\n\n".join(text for text in texts if text), title.text() if title is not None else None


def _page(book: ZipFile, name: str, shown: str | Path) -> str:
    """A file of the book, with `<a/>` written as HTML wants it."""
    source = decode_text(book.read(name), f"{name} in {shown}")
    return _SELF_CLOSED.sub(
        lambda match: match[0] if match[1].lower() in _VOID else f"<{match[1]}{match[2]}></{match[1]}>", source
    )
