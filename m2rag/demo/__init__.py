"""Forty Python Enhancement Proposals, whole, and questions that one of them answers: something real to search.

The documents are in the public domain; `SOURCE.md` beside this file says where they come from.
"""

from __future__ import annotations

import gzip
import json
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m2rag.index import Document

# Written from the texts before any system was asked. None takes its words from the title of the document that answers,
# and most answers stand in the middle or towards the end of theirs.
QUESTIONS: list[tuple[str, str]] = [
    ("On the night the clocks go back, half past one happens twice. How can a program tell which one is meant?",
     "pep-0495"),
    ("How can a site send a large file to the browser without reading all of it into memory?",
     "pep-3333"),
    ("Before leaving Subversion, how did the developers find Bazaar, Mercurial and git to compare in speed and on "
     "Windows?", "pep-0374"),
    ("When a volunteer puts the manual into French or Japanese, under what licence is the text given?", "pep-0545"),
    ("Someone has broken in and stolen the keys that vouch for packages. What has to be revoked, and what comes next?",
     "pep-0458"),
    ("How can several threads count the references to one object without an expensive atomic operation every time?",
     "pep-0703"),
    ("I gave a field an empty list as its default and now all my objects share that list. What guards against this?",
     "pep-0557"),
]  # fmt: skip


def load_documents() -> list[Document]:
    """The documents, in ascending order of id ("pep-0008"), with their title and `{"pep": number}` as metadata."""
    from m2rag.index import Document  # here, so that the questions can be had without the store behind the index

    packed = files(__name__).joinpath("peps.jsonl.gz").read_bytes()
    rows = (json.loads(line) for line in gzip.decompress(packed).decode("utf-8").split("\n") if line)
    return [
        Document(id=row["id"], text=row["text"], title=row["title"], metadata={"pep": int(row["id"][4:])})
        for row in rows
    ]
