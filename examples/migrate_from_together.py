"""From a hosted model that is gone to one of your own: may the stored vectors stay, or are they made anew?

    python examples/migrate_from_together.py
    python examples/migrate_from_together.py export.jsonl --model path/to/m2-bert-80M-32k-retrieval --to papers.m2rag
    python examples/migrate_from_together.py http://localhost:6333/old --to http://localhost:6333/papers --model ...

Together's hosted M2 models (togethercomputer/m2-bert-80M-{2k,8k,32k}-retrieval) were retired in February 2026: what was
embedded with them can no longer be asked anything, as a question needs a vector by the same model. Without arguments
both ways out are shown, on a small export that is made on the spot with the model that comes with m2rag.

Stored vectors may stay if the new model gives the same ones: same weights, same padding, same pooling. No label tells
that, so some of the texts, from the shortest to the longest, are embedded again and compared with what is stored. If
the old vectors have another length than 1 and the same direction, they are scaled. Any doubt is a reason to embed anew.

The source is a file of {"id", "text", "vector", "title"?, "metadata"?}, one object a line, or a collection of a Qdrant
server (its key: QDRANT_API_KEY). The new model runs here (--model: the published checkpoint as a folder, a file or its
name on the hub; default: the one that comes with m2rag) or behind another endpoint (--model NAME --base-url
https://host/v1). With --to the new index is written beside the old one, checked, and only then put in its place. A
folder that is there is renamed to NAME.old just before the new one gets its name: close what has it open. On a Qdrant
server (pip install 'm2rag[qdrant]') --to is an alias, which changes from one collection to the other at once. Killed at
any moment, the same command goes on. Without --to nothing is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from m2rag import Document, EmbeddingResult, LongDocumentIndex, M2Embedder
from m2rag.demo import load_documents
from m2rag.errors import M2RagError, StoreError

LEAST_COSINE = 0.999
"""Of a text's two vectors, to be taken for the same. With the model that comes with m2rag, half precision and decimals
cut to five places leave 0.9999 and more; a word in front of each text leaves the short ones 0.997, forty characters
that are missing at the end 0.995."""


@dataclass(frozen=True)
class Export:
    """What the old collection holds: documents, and their vectors (N, D) in the same order."""

    documents: list[Document]
    vectors: np.ndarray


class StoredVectors:
    """An embedder for writing an index: it gives each text the vector that it has already."""

    has_passages = False  # those would need the text to be read again

    def __init__(self, export: Export, embedder: M2Embedder) -> None:
        unit = export.vectors / np.linalg.norm(export.vectors, axis=1, keepdims=True)
        self._vectors = {document.text: vector for document, vector in zip(export.documents, unit, strict=True)}
        self._embedder = embedder
        self.dimension = embedder.dimension
        self.fingerprint = embedder.fingerprint
        self.model_source = embedder.model_source

    def embed_documents(
        self,
        texts: Sequence[str],
        *,
        on_too_long: str = "truncate",
        on_error: str = "raise",
        passages: bool = False,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> EmbeddingResult:
        n_tokens = self._embedder.count_tokens(texts)
        n_used = np.minimum(n_tokens, self._embedder.max_tokens)
        vectors = np.stack([self._vectors[text] for text in texts])
        return EmbeddingResult(vectors, n_tokens, n_used, n_windows=np.ones_like(n_tokens))

    def embed_query(self, text: str) -> np.ndarray:
        return self._embedder.embed_query(text)


class FolderTarget:
    """A folder that takes the place of another by its name."""

    def __init__(self, folder: Path, how: str) -> None:
        self.folder = folder
        self.old = folder.with_name(f"{folder.name}.old")
        self.new = str(folder.with_name(f"{folder.name}.{how}"))
        if folder.exists() and self.old.exists():
            raise ValueError(f"{self.old} is there, from an earlier migration: remove it, or name another --to")

    def switch(self) -> str:
        replaced = self.folder.exists()
        if replaced:
            self.folder.rename(self.old)
        Path(self.new).rename(self.folder)
        return f"{self.folder} is the new index" + (f", {self.old} the one before" if replaced else "")


class AliasTarget:
    """A name on a Qdrant server that stands for one collection and then for another."""

    def __init__(self, url: str, how: str, fingerprint: str) -> None:
        self.client, self.place = qdrant_at(url)
        if self.place.collection in {one.name for one in self.client.get_collections().collections}:
            raise ValueError(
                f"{url} is a collection, which cannot change its name at once: give --to a name of its own, and let "
                "your programs use that"
            )
        digest = hashlib.sha256(fingerprint.encode()).hexdigest()[:8]
        self.collection = f"{self.place.collection}-{how}-{digest}"
        self.new = self.place._replace(collection=self.collection).url

    def switch(self) -> str:
        from qdrant_client import models

        alias = self.place.collection
        before = [one.collection_name for one in self.client.get_aliases().aliases if one.alias_name == alias]
        create = models.CreateAlias(collection_name=self.collection, alias_name=alias)
        actions: list[Any] = [models.CreateAliasOperation(create_alias=create)]
        if before:
            actions.insert(0, models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        self.client.update_collection_aliases(change_aliases_operations=actions)
        old = [name for name in before if name != self.collection]
        return f"{alias} stands for {self.collection}" + (f", before for {old[0]}, which is still there" if old else "")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="export.jsonl, or http://HOST:6333/COLLECTION")
    parser.add_argument("--to", help="folder of the new index, or http://HOST:6333/ALIAS")
    parser.add_argument("--model", help="folder, file or hub name of a checkpoint; default: m2rag's own")
    parser.add_argument("--base-url", help="https://HOST/v1 of an endpoint that has --model")
    parser.add_argument("--text-field", default="text", help="where a Qdrant payload has the text; default: text")
    parser.add_argument("--sample", type=int, default=12, help="texts to compare; default 12")
    args = parser.parse_args(arguments)
    if args.sample < 2:
        parser.error("--sample must be at least 2: the shortest and the longest text")
    console = Console(highlight=False)
    embedder = M2Embedder(args.model, base_url=args.base_url)
    if args.source is None:
        demonstrate(embedder, args.sample, console)
    else:
        remote = args.source.startswith(("http://", "https://"))
        export = read_collection(args.source, args.text_field) if remote else read_jsonl(Path(args.source))
        migrate(export, embedder, args.to, args.sample, console)


def demonstrate(embedder: M2Embedder, sample: int, console: Console) -> None:
    """Migrate two exports with the same texts: one with this model's vectors, one whose host cut long texts."""
    documents = [
        Document(document.id, document.text[: 400 * number], document.title)
        for number, document in enumerate(load_documents()[:12], start=1)
    ]
    whole = embedder.embed_documents([document.text for document in documents]).vectors
    beginnings = embedder.embed_documents([document.text[:1_000] for document in documents]).vectors
    with tempfile.TemporaryDirectory(prefix="m2rag-migration-") as folder:
        for name, vectors, title in (
            ("same", whole, "Vectors of the same model"),
            ("cut", beginnings, "Vectors of the same model, of a host that read 1,000 characters"),
        ):
            console.rule(title)
            file = Path(folder) / f"{name}.jsonl"
            write_jsonl(file, Export(documents, vectors.round(5)))
            migrate(read_jsonl(file), embedder, str(Path(folder) / f"{name}.m2rag"), sample, console)
    console.rule()
    console.print("These were in a temporary folder. Yours: migrate_from_together.py export.jsonl --to papers.m2rag")


def migrate(export: Export, embedder: M2Embedder, to: str | None, sample: int, console: Console) -> None:
    """Compare, decide, and with `to` write the new index and put it in its place."""
    lengths = np.linalg.norm(export.vectors, axis=1)
    n, dimension = export.vectors.shape
    old = f"{n} vectors of {dimension} numbers, of length {lengths.min():.3f} to {lengths.max():.3f}"
    console.print(f"old: {old}; what made them is not stored with them")
    console.print(f"new fingerprint: {embedder.fingerprint}", markup=False)
    reason = reason_to_embed(export, embedder, sample, console)
    if reason is None:
        console.print("The stored vectors may stay.", style="bold green")
        console.print("Those of passages are not among them: hits will show the passages that hold a question's words.")
    else:
        console.print(Text(f"All texts must be embedded anew: {reason}.", style="bold yellow"))
    if to is None:
        console.print("Nothing was written: give --to for that.", style="dim")
        return
    how = "kept" if reason is None else "embedded"
    on_server = to.startswith(("http://", "https://"))
    target = AliasTarget(to, how, embedder.fingerprint) if on_server else FolderTarget(Path(to), how)
    write(export, embedder, target.new, keep=reason is None, console=console)
    console.print(Text(target.switch(), style="bold"))


def reason_to_embed(export: Export, embedder: M2Embedder, sample: int, console: Console) -> str | None:
    """Why the stored vectors are not the new model's; None if they are."""
    if export.vectors.shape[1] != embedder.dimension:
        return f"the old vectors have {export.vectors.shape[1]} numbers, the new model's {embedder.dimension}"
    if not np.isfinite(export.vectors).all() or not export.vectors.any(axis=1).all():
        return "some of the old vectors are zero or not finite"
    # By length, because what differs between two hosts often shows in short texts only (pads, prompts) or in long ones
    # (cuts).
    by_length = sorted(range(len(export.documents)), key=lambda i: len(export.documents[i].text))
    picked = sorted({round(place) for place in np.linspace(0, len(by_length) - 1, sample)})
    rows = [by_length[place] for place in picked]
    with console.status(f"Embedding {len(rows)} texts"):
        texts = [export.documents[row].text for row in rows]
        new = embedder.embed_documents(texts, on_too_long="truncate").vectors
    old = export.vectors[rows]
    cosines = (old * new).sum(axis=1) / np.linalg.norm(old, axis=1) / np.linalg.norm(new, axis=1)
    table = Table("document", "characters", "cosine of old and new", box=None)
    for row, cosine in zip(rows, cosines, strict=True):
        mark = "green" if cosine >= LEAST_COSINE else "yellow"
        document = export.documents[row]
        table.add_row(Text(document.id), f"{len(document.text):,}", Text(f"{cosine:.5f}", style=mark))
    console.print(table)
    return explained([len(text) for text in texts], cosines)


def explained(lengths: Sequence[int], cosines: np.ndarray) -> str | None:
    """What cosines (S,) say of old vectors of texts of so many characters, ascending; None if they are the same."""
    same = cosines >= LEAST_COSINE
    n = int(same.sum())
    if same.all():
        return None
    if n and same[:n].all():
        return (
            f"texts of up to {lengths[n - 1]:,} characters agree and longer ones do not, as where a host read only so "
            "much of each"
        )
    if n and same[-n:].all():
        return (
            f"texts of {lengths[-n]:,} characters and more agree and shorter ones do not, as where a host put a prompt "
            "or pads around them"
        )
    return "they differ, by their model, padding or pooling"


def write(export: Export, embedder: M2Embedder, place: str, *, keep: bool, console: Console) -> None:
    """Write the new index and look whether it has every document.

    Raises:
        M2RagError: it has not; what was there before stays as it is.
    """
    writer: Any = StoredVectors(export, embedder) if keep else embedder
    with LongDocumentIndex(place, writer) as index, console.status("Writing") as status:
        report = index.add(
            export.documents,
            on_too_long="truncate" if keep else "window",
            progress=lambda now: status.update(f"Writing: {now.done:,} of {len(export.documents):,} documents"),
        )
    with LongDocumentIndex(place, embedder, create=False) as index:
        missing = {document.id for document in export.documents} - set(index.ids())
    if report.failed or missing:
        n = max(len(report.failed), len(missing))
        first = f"{report.failed[0].id}: {report.failed[0].cause}" if report.failed else min(missing)
        raise M2RagError(f"{n} documents are not in {place}, so it did not take the old one's place ({first})")
    how = "none of them embedded" if keep else f"{report.n_tokens:,} tokens embedded"
    console.print(f"{len(export.documents)} documents written and found again, {how}", style="dim")


def read_jsonl(path: Path) -> Export:
    """An export, all of it in memory.

    Raises:
        ValueError: a line is not as it must be; names it.
    """
    documents, vectors = [], []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                documents.append(Document(str(row["id"]), row["text"], row.get("title"), row.get("metadata")))
                vectors.append(np.asarray(row["vector"], dtype=np.float32))
                if vectors[-1].shape != vectors[0].shape or vectors[-1].ndim != 1:
                    raise ValueError(f"a vector of shape {vectors[-1].shape} after those of {vectors[0].shape}")
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f'{path}:{number} is not {{"id", "text", "vector"}}: {error!r}') from error
    return checked(documents, vectors, str(path))


def write_jsonl(path: Path, export: Export) -> None:
    rows = (
        {"id": document.id, "text": document.text, "title": document.title, "vector": vector.tolist()}
        for document, vector in zip(export.documents, export.vectors, strict=True)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_collection(url: str, text_field: str) -> Export:
    """All points of a collection with one vector each, all of it in memory.

    Raises:
        ValueError: there is no such collection, or a point has no text or several vectors.
    """
    client, place = qdrant_at(url)
    if not client.collection_exists(place.collection):
        raise ValueError(f"there is no collection at {url}")
    documents, vectors, after = [], [], None
    while True:
        points, after = client.scroll(place.collection, limit=256, offset=after, with_payload=True, with_vectors=True)
        for point in points:
            payload = dict(point.payload or {})
            text = payload.pop(text_field, None)
            if not isinstance(text, str):
                fields = ", ".join(payload) or "nothing"
                raise ValueError(f"point {point.id} has no text in {text_field!r} (it has {fields}): give --text-field")
            named = point.vector if isinstance(point.vector, dict) else {"": point.vector}
            vector = np.asarray(next(iter(named.values()), ()), dtype=np.float32)
            if len(named) != 1 or vector.ndim != 1:
                names = ", ".join(named) or "none"
                raise ValueError(f"point {point.id} has not one vector but {names}: export the right one as JSON lines")
            documents.append(Document(str(point.id), text, None, payload))
            vectors.append(vector)
        if after is None:
            return checked(documents, vectors, url)


def checked(documents: list[Document], vectors: list[np.ndarray], where: str) -> Export:
    if not documents:
        raise ValueError(f"{where} is empty")
    for document in documents:
        if not document.text.strip():
            raise ValueError(f"{where}: the text of {document.id} is empty: leave it out")
    return Export(documents, np.stack(vectors))


def qdrant_at(url: str) -> tuple[Any, Any]:
    """A client of the server, and where on it the URL points.

    Raises:
        StoreError: it does not answer.
    """
    from qdrant_client import QdrantClient
    from qdrant_client.http.exceptions import ApiException

    from m2rag.stores.qdrant_server import parse_url

    place = parse_url(url)
    key = os.environ.get("QDRANT_API_KEY")
    client = QdrantClient(place.server, prefix=place.prefix or None, api_key=key, check_compatibility=False)
    try:
        client.get_collections()
    except ApiException as error:
        raise StoreError(f"{place.server} does not answer as a Qdrant server does: {error}") from error
    return client, place


if __name__ == "__main__":
    try:
        main()
    except (M2RagError, ImportError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
