"""PDF."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from m2rag.errors import DocumentError

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


def read_pdf(data: bytes, shown: str | Path) -> tuple[str, str | None]:
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
