"""Web pages."""

from __future__ import annotations

import re
from pathlib import Path

from m2rag.index.readers.decoding import BOMS, decode_text

_HTML_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([A-Za-z0-9_\-]+)", re.IGNORECASE)
# A declaration that could be read is not in these, whatever it says; nor is a page in Python's own encodings.
_NO_CHARSET = re.compile(r"utf[-_]?(16|32)|unicode|raw|idna|punycode|undefined", re.IGNORECASE)
_HTML_DROPPED = ["script", "style", "noscript", "template", "svg", "head"]
_HTML_BLOCKS = (
    "address article aside blockquote br dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 "
    "h6 header hr li main nav ol p pre section summary table td th tr ul"
).replace(" ", ",")


def read_html(data: bytes, shown: str | Path) -> tuple[str, str | None]:
    declared = _HTML_CHARSET.search(data[:2048])
    charset = declared[1].decode("ascii") if declared is not None else None
    source = None
    if charset and not _NO_CHARSET.match(charset) and not data.startswith(tuple(mark for mark, _ in BOMS)):
        try:
            source = data.decode(charset)
        except (UnicodeError, LookupError):  # pages that lie about their encoding are common
            source = None
    return page_text(source if source is not None and "\0" not in source else decode_text(data, shown))


def page_text(source: str) -> tuple[str, str | None]:
    """Text and title of a page, without scripts and styles; what browsers show as a block begins a line."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(source)
    title_node = tree.css_first("title") or tree.css_first("h1")
    title = title_node.text(deep=True) if title_node is not None else None
    tree.strip_tags(_HTML_DROPPED)
    body = tree.body
    if body is None:
        return "", title
    for node in body.css(_HTML_BLOCKS):
        node.insert_before("\n")
        node.insert_after("\n")
    text = body.text(deep=True).replace("\r\n", "\n").replace("\r", "\n").replace("\xa0", " ")
    text = re.sub(r"[ \t]*\n[ \t]*\n\s*", "\n\n", re.sub(r"[ \t]+", " ", text))
    return text.strip(), title
