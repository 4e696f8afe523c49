"""`m2rag delete`, `m2rag snapshot`, `m2rag restore`: an index without its model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from m2rag.cli.common import API_KEY, AS_JSON, INDEX, SOME_FAILED, VERBOSE, note, plural, say, say_json

_LISTED = 20  # ids shown; --json has all


def delete(
    ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Ids of documents, as search shows them.", show_default=False)
    ],
    index: INDEX,
    api_key: API_KEY = None,
    as_json: AS_JSON = False,
    verbose: VERBOSE = False,
) -> None:
    """Remove documents from an index by their ids; no model is loaded. Their files stay.

    Exit code 3: some ids are not there; the others are removed.

    JSON: {index, deleted: [id], missing: [id], documents}.
    """
    from m2rag.index import delete_documents, read_info

    wanted = list(dict.fromkeys(ids))
    deleted = delete_documents(index, wanted, api_key=api_key)
    missing = [id for id in wanted if id not in set(deleted)]
    facts = read_info(index, api_key=api_key)
    if as_json:
        place, documents = facts["path"], facts["documents"]
        say_json({"index": place, "deleted": deleted, "missing": missing, "documents": documents})
    else:
        say(f"{facts['path']}: {plural(len(deleted), 'document')} deleted, {facts['documents']:,} left")
        for id in missing[:_LISTED]:
            note(f"Not there: {id}", style="red")
        if len(missing) > _LISTED:
            note(f"... and {len(missing) - _LISTED:,} more; --json lists all", style="red")
    if missing:
        raise typer.Exit(SOME_FAILED)


def snapshot(
    index: INDEX,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file; there must be none yet.", show_default=False)],
    as_json: AS_JSON = False,
    verbose: VERBOSE = False,
) -> None:
    """Write an index folder into one file, a gzipped tar, all of it or none.

    JSON: {index, file, documents, size_bytes}.
    """
    from m2rag.index import snapshot_index

    documents = snapshot_index(index, out)
    size = out.stat().st_size
    if as_json:
        say_json({"index": index, "file": str(out), "documents": documents, "size_bytes": size})
    else:
        say(f"{out}: {plural(documents, 'document')} of {index}, {size / 1e6:,.1f} MB")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What snapshot wrote.", show_default=False)],
    index: INDEX,
    as_json: AS_JSON = False,
    verbose: VERBOSE = False,
) -> None:
    """Make an index folder of a snapshot; the folder must be new or empty. Stopped at any moment, it leaves no index.

    JSON: {index, documents, fingerprint, model}.
    """
    from m2rag.index import restore_index

    restored = restore_index(file, index)
    if as_json:
        say_json(restored)
    else:
        say(f"{index}: {plural(restored['documents'], 'document')} restored from {file}")
