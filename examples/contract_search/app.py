"""Search in a folder of long contracts: filters by kind, party, year and law, and the passages that answer, marked.

    pip install 'm2rag[serve]'
    python examples/contract_search/app.py              # twelve made-up contracts, written into ./contracts at first
    python examples/contract_search/app.py MY_CONTRACTS # a folder of your own PDFs

Each contract becomes one vector, whole. The page is the one of `m2rag serve`, under a name of its own; README.md beside
this file says where the filters come from.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from make_contracts import write_contracts
from pypdf import PdfReader
from rich.progress import Progress

from m2rag import Document, LongDocumentIndex, M2Embedder
from m2rag.backends.local import LocalBackend
from m2rag.errors import DocumentError
from m2rag.index import AddProgress, read_document
from m2rag.server.app import Server
from m2rag.server.presentation import Presentation

METADATA = "metadata.csv"
PAGE = Presentation(
    title="Contract search",
    placeholder="What do you want to know?",
    facets={"kind": "Kind", "parties": "Party", "year": "Year", "law": "Governing law"},
    questions=(
        "May the tenant keep animals?",
        "The crop was destroyed by hail. Must the loan still be repaid on time?",
        "The delivery comes days late. May the buyer get the parts elsewhere?",
        "May our data be used to train a model?",
    ),
)


def pdfs(folder: Path) -> list[Path]:
    """The PDFs of a folder and of the folders in it."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".pdf")


def contracts(folder: Path) -> Iterator[Document]:
    """The PDFs of a folder, with what `metadata.csv` says of each, or else the PDF itself.

    Raises:
        SystemExit: the table has no column "file".
    """
    table = folder / METADATA
    rows = list(csv.DictReader(table.open(newline="", encoding="utf-8-sig"))) if table.is_file() else []
    if rows and "file" not in rows[0]:
        raise SystemExit(f"{table}: no column 'file'; the columns are {', '.join(rows[0])}")
    known = {row.pop("file"): row for row in rows}
    for path in pdfs(folder):
        try:
            document = read_document(path, folder)
        except DocumentError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        row = known.get(document.id)
        about = {name: value_of(text) for name, text in row.items() if text} if row else own_metadata(path)
        yield replace(document, metadata={**(document.metadata or {}), **about})


def value_of(text: str) -> Any:
    """A cell: several values are parted by semicolons, and whole numbers are numbers."""
    if ";" in text:
        return [value_of(part.strip()) for part in text.split(";") if part.strip()]
    return int(text) if text.isascii() and text.isdigit() else text


def own_metadata(path: Path) -> dict[str, Any]:
    """Author and year of a PDF, where it tells them."""
    told = PdfReader(path).metadata
    if told is None:
        return {}
    raw = str(told.get("/CreationDate", "")).removeprefix("D:")[:4]
    year = {"year": int(raw)} if raw.isdigit() else {}
    return {**year, **({"parties": str(told.author)} if told.author else {})}


def add_contracts(index: LongDocumentIndex, folder: Path) -> None:
    """Bring the folder into the index; what is there and has not changed costs nothing."""
    with Progress(transient=True) as bar:
        task = bar.add_task("Indexing", total=len(pdfs(folder)))

        def follow(at: AddProgress) -> None:
            bar.update(task, completed=at.done, description=f"Indexing {at.current}")

        report = index.add(contracts(folder), progress=follow)
    new = f"{report.added + report.replaced} contracts embedded, {report.n_tokens:,} tokens in {report.seconds:,.0f} s"
    print(f"{new}; {report.unchanged} were there")
    for failure in report.failed:
        print(f"left out: {failure.cause}", file=sys.stderr)


def build(folder: Path, place: Path, backend: LocalBackend) -> Server:
    """The server of a folder of contracts, which are in the index when it returns."""
    fields: Any = {"kind": "keyword", "parties": "keyword", "year": "integer", "law": "keyword"}
    with LongDocumentIndex(place, M2Embedder(backend=backend), filterable=fields) as index:
        add_contracts(index, folder)
    return Server(backend, index=place, presentation=PAGE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="of PDFs; default: contracts, written if it is missing")
    parser.add_argument("--index", type=Path, help="where to keep the index; default: FOLDER.m2rag")
    parser.add_argument("--model", help="checkpoint; default: the bundled one")
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    folder = args.folder or Path("contracts")
    if args.folder is None and not folder.exists():
        write_contracts(folder)
    if not folder.is_dir():
        parser.error(f"{folder} is no folder")
    place = args.index or folder.resolve().with_name(f"{folder.resolve().name}.m2rag")
    server = build(folder, place, LocalBackend.load(args.model))
    print(f"Contract search: http://127.0.0.1:{args.port}/   (Ctrl-C ends it)")
    uvicorn.run(server.app, host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
