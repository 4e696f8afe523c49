"""Files into documents: text, web pages, books, office files, source code, rows of tables, and folders of them.

Ids. A file found in a folder is named by its path relative to that folder, with forward slashes on every system:
indexing the folder again, from wherever, finds the same documents. A file given by itself is named by the path as
given. A row of a file is named by the file and its own id. Either way `Document.origin` holds the absolute path, so
that two different files that come out with the same id are noticed and not silently put in each other's place.
"""

from __future__ import annotations

from m2rag.index.readers.decoding import decode_text
from m2rag.index.readers.files import (
    document_id,
    parse_document,
    parse_documents,
    possible_files,
    read_document,
    read_documents,
)
from m2rag.index.readers.kinds import CODE, PACKED, READERS, ROW_READERS, kind_of, supported_suffixes
from m2rag.index.readers.listing import FolderListing, list_folder

__all__ = [
    "CODE",
    "PACKED",
    "READERS",
    "ROW_READERS",
    "FolderListing",
    "decode_text",
    "document_id",
    "kind_of",
    "list_folder",
    "parse_document",
    "parse_documents",
    "possible_files",
    "read_document",
    "read_documents",
    "supported_suffixes",
]
