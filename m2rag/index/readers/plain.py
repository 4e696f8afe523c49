"""Plain text, Markdown, reStructuredText and source code."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from m2rag.index.readers.decoding import decode_text

_MARKUP = re.compile(r"[*_`]+")
_UNDERLINE = re.compile(r"([=\-~^\"'`#*+.:])\1{2,}\s*")


def read_plain(data: bytes, shown: str | Path) -> tuple[str, str | None]:
    text = decode_text(data, shown)
    return text, _header_title(text)


def read_markdown(data: bytes, shown: str | Path) -> tuple[str, str | None]:
    text = decode_text(data, shown)
    return text, _header_title(text) or _markdown_title(text)


def read_rst(data: bytes, shown: str | Path) -> tuple[str, str | None]:
    text = decode_text(data, shown)
    return text, _header_title(text) or _underlined_title(text)


def read_code(data: bytes, shown: str | Path) -> tuple[str, str | None]:
    return decode_text(data, shown), PurePath(shown).name


def _header_title(text: str) -> str | None:
    """The `Title:` field of a header block (as of an e-mail, a PEP, or between `---` lines) that begins the text."""
    lines = text.lstrip().split("\n", 40)[:40]
    if lines[0].strip() == "---":
        lines = lines[1:]
    for line in lines:
        match = re.match(r"([A-Za-z][A-Za-z0-9_-]*):(?:\s+(.*))?$", line)
        if match is None:
            if line[:1] in (" ", "\t", "-") and line.strip("- \t"):  # a value that goes on, a list item
                continue
            return None
        if match[1].lower() == "title" and match[2]:
            return match[2].strip().strip("\"'")
    return None


def _markdown_title(text: str) -> str | None:
    fenced = False
    front_matter = re.match(r"\s*---\n.*?\n---\n", text, re.DOTALL)
    lines = text[front_matter.end() if front_matter else 0 :].split("\n", 200)[:200]
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif not fenced:
            match = re.match(r" {0,3}#{1,6}\s+(.+?)\s*#*\s*$", line)
            if match is not None:
                return _MARKUP.sub("", match[1])
            if line.strip() and re.fullmatch(r" {0,3}(=+|-{3,})\s*", following):
                return _MARKUP.sub("", line.strip())
    return None


def _underlined_title(text: str) -> str | None:
    lines = text.split("\n", 200)[:200]
    for line, following in zip(lines, lines[1:], strict=False):
        heading = line.strip()
        if (
            heading
            and not _UNDERLINE.fullmatch(line)
            and _UNDERLINE.fullmatch(following)
            and len(following.rstrip()) >= len(heading)
        ):
            return _MARKUP.sub("", heading)
    return None
