"""Files into documents: .txt, .md, .rst, .html, .pdf, and folders of them.

Ids. A file found in a folder is named by its path relative to that folder, with forward slashes on every system:
indexing the folder again, from wherever, finds the same documents. A file given by itself is named by the path as
given. Either way `Document.origin` holds the absolute path, so that two different files that come out with the same
id are noticed and not silently put in each other's place.
"""

from __future__ import annotations

import codecs
import os
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from charset_normalizer import from_bytes

from m2rag.errors import DocumentError
from m2rag.index.documents import Document
from m2rag.stores.folder import MANIFEST_FILE

_BOMS = (  # the longer ones first: a UTF-32 mark begins with a UTF-16 one
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
_MARKUP = re.compile(r"[*_`]+")
_UNDERLINE = re.compile(r"([=\-~^\"'`#*+.:])\1{2,}\s*")
_HTML_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([A-Za-z0-9_\-]+)", re.IGNORECASE)
_HTML_DROPPED = ["script", "style", "noscript", "template", "svg", "head"]
_HTML_BLOCKS = (
    "address article aside blockquote br dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 "
    "h6 header hr li main nav ol p pre section summary table td th tr ul"
).replace(" ", ",")


@dataclass
class FolderListing:
    """What a folder holds.

    Attributes:
        files: files of a supported kind, sorted.
        skipped: paths of the others.
        unreadable: subfolders that could not be listed, with the reason.
    """

    files: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, DocumentError]] = field(default_factory=list)


def list_folder(root: str | Path) -> FolderListing:
    """List the documents under a folder, recursively and sorted.

    Hidden files and folders and index folders of this library are passed over. Linked folders are followed, each
    real folder once, so that a loop of links ends.
    """
    listing = FolderListing()
    folders, linked = [Path(root)], list[Path]()
    seen: set[str] = set()
    while folders or linked:
        folder = folders.pop() if folders else linked.pop(0)  # real ones first: their paths make the better ids
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            reason = DocumentError(f"the folder {folder} cannot be read: {error.strerror}")
            listing.unreadable.append((folder.as_posix(), reason))
            continue
        if any(entry.name == MANIFEST_FILE for entry in entries):
            continue
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                (linked if entry.is_symlink() else folders).append(path)
            elif path.suffix.lower() in READERS:
                listing.files.append(path)
            else:
                listing.skipped.append(path.as_posix())
    listing.files.sort(key=Path.as_posix)
    listing.skipped.sort()
    return listing


def document_id(path: str | Path, root: str | Path | None = None) -> str:
    """The id of a file: relative to `root` where it was found in a folder, else the path as given."""
    return (Path(path).relative_to(root) if root is not None else Path(path)).as_posix()


def read_document(path: str | Path, root: str | Path | None = None) -> Document:
    """Read one file as a document.

    Args:
        path: the file.
        root: the folder it was found in; the id is then relative to it.

    Returns:
        The document: text, title (from the content, else the file's stem), metadata `path` (the id), `suffix` and
        `size` (bytes). The time of change is left out: touching a file does not change its document.

    Raises:
        DocumentError: no such file, of no supported kind, unreadable, binary, damaged, encrypted or without text.
    """
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise _unsupported(path)
    if not path.exists():
        raise DocumentError(f"{path} does not exist")
    if not path.is_file():
        raise DocumentError(f"{path} is not a file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DocumentError(f"{path} cannot be read: {error.strerror}. Check its permissions") from error
    document = _parse(data, document_id(path, root), path)
    return replace(document, origin=os.path.abspath(path))


def parse_document(data: bytes, name: str) -> Document:
    """A document from the bytes of a file; nothing on disk is looked at.

    Args:
        data: all of the file.
        name: its name: the id, and with it suffix and, where the content has none, title.

    Returns:
        The document as `read_document` would make it, without `origin`.

    Raises:
        DocumentError: of no supported kind, binary, damaged, encrypted or without text.
    """
    return _parse(data, name, name)


def _parse(data: bytes, name: str, shown: str | Path) -> Document:
    """A document with the id `name`; messages call it `shown`."""
    file = PurePath(name)
    suffix = file.suffix.lower()
    if suffix not in READERS:
        raise _unsupported(shown)
    if not data.strip():
        raise DocumentError(f"{shown} is empty")
    text, title = READERS[suffix](data, shown)
    if not text.strip():
        raise DocumentError(f"{shown} holds no text")
    return Document(
        id=name,
        text=text,
        title=" ".join((title or "").split()) or file.stem,
        metadata={"path": name, "suffix": suffix, "size": len(data)},
    )


def _unsupported(shown: str | Path) -> DocumentError:
    return DocumentError(f"{shown} is of no supported kind: the index reads {supported_suffixes()}")


def supported_suffixes() -> str:
    """The file kinds the index reads, for messages."""
    return ", ".join(READERS)


def decode_text(data: bytes, shown: str | Path) -> str:
    """Bytes of a text file into text, with line ends as "\\n".

    A byte order mark decides; then UTF-8; then UTF-16 without a mark, seen by its pattern of zero bytes; then what
    charset-normalizer finds.

    Raises:
        DocumentError: the bytes are not text.
    """
    text = _decode(data, shown)
    sample = text[:_SAMPLE_BYTES]
    if len(_CONTROL.findall(sample)) > _MAX_CONTROL_SHARE * len(sample):
        raise _binary(shown)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decode(data: bytes, shown: str | Path) -> str:
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError as error:
                raise DocumentError(f"{shown} begins like {encoding} and is not: {error.reason}") from error
    sample = data[:_SAMPLE_BYTES]
    if b"\0" in data:
        even, odd = sample[0::2].count(0), sample[1::2].count(0)
        for encoding, zeros, letters in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
            if zeros > 0.3 * len(sample) / 2 and letters < 0.02 * len(sample) / 2:
                try:
                    return data.decode(encoding)
                except UnicodeDecodeError:
                    break
        raise _binary(shown)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    for encoding in (_guess_encoding(sample), "cp1252", "latin-1"):
        try:
            return data.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    raise _binary(shown)


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


def _binary(shown: str | Path) -> DocumentError:
    return DocumentError(f"{shown} is binary, not text: convert it to text, HTML or PDF, or leave it out")


def _read_plain(data: bytes, shown: str | Path) -> tuple[str, str | None]:
    text = decode_text(data, shown)
    return text, _header_title(text)


def _read_markdown(data: bytes, shown: str | Path) -> tuple[str, str | None]:
    text = decode_text(data, shown)
    return text, _header_title(text) or _markdown_title(text)


def _read_rst(data: bytes, shown: str | Path) -> tuple[str, str | None]:
    text = decode_text(data, shown)
    return text, _header_title(text) or _underlined_title(text)


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


def _read_html(data: bytes, shown: str | Path) -> tuple[str, str | None]:
    from selectolax.lexbor import LexborHTMLParser

    declared = _HTML_CHARSET.search(data[:2048])
    source = None
    if declared is not None and not data.startswith(tuple(mark for mark, _ in _BOMS)):
        try:
            source = data.decode(declared[1].decode("ascii"))
        except (UnicodeDecodeError, LookupError):  # pages that lie about their encoding are common
            source = None
    tree = LexborHTMLParser(source if source is not None and "\0" not in source else decode_text(data, shown))
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


# What pypdf raises on damaged files besides its own errors: it follows the file's own tables.
_DAMAGED_PDF = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def _read_pdf(data: bytes, shown: str | Path) -> tuple[str, str | None]:
    import io

    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DocumentError(f"{shown} is protected by a password: save it without one")
        text = "\n\n".join(page.extract_text() for page in reader.pages)
        title = reader.metadata.title if reader.metadata is not None else None
    except DependencyError as error:
        raise DocumentError(f"{shown} is encrypted: pip install 'pypdf[crypto]' to read it ({error})") from error
    except (PyPdfError, *_DAMAGED_PDF) as error:
        raise DocumentError(f"{shown} is damaged or no PDF ({type(error).__name__}: {error})") from error
    text = text.encode("utf-8", "replace").decode("utf-8")  # broken fonts yield lone surrogates
    if not text.strip():
        raise DocumentError(f"{shown} holds no text, it may be scanned: run it through OCR first")
    return text, str(title) if title else None


READERS: dict[str, Callable[[bytes, str | Path], tuple[str, str | None]]] = {
    ".txt": _read_plain,
    ".md": _read_markdown,
    ".rst": _read_rst,
    ".html": _read_html,
    ".htm": _read_html,
    ".pdf": _read_pdf,
}
"""File suffix -> reader: bytes and what messages call the file in, text and title (if the content has one) out."""
