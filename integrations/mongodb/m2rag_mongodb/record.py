"""The document of a collection that says what it was built with."""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass, replace

from m2rag.errors import InvalidInputError, StoreError
from m2rag.stores import Manifest, Schema
from m2rag.stores.manifest import manifest_from_json, manifest_to_json
from m2rag_mongodb.layout import MANIFEST_ID, field_name
from m2rag_mongodb.parts import Parts
from m2rag_mongodb.server import DUPLICATE_KEY, Doc, Refused, Server
from m2rag_mongodb.vectors import VectorKind, check_kind

_FIELDS = {"generation", "vectors", "listed_fields", "options"}


@dataclass(frozen=True)
class StoreOptions:
    """How a new collection keeps and searches its documents; an existing one keeps what it was made with.

    Attributes:
        vectors: what the search index holds of a number: float32, int8 (1 byte) or packed_bit (its sign). With the
            last two the documents have a copy in 16 bits too, which orders what the index finds.
        lexical: language of Lucene's analyzer for a text index, which hybrid search needs; None makes none.
        filter_fields: fields that filters may ask for ranges of, and queries filter by in MongoDB's own language, as
            "metadata.year". Equality and lists need none. Those of the schema are added.
    """

    vectors: VectorKind = "float32"
    lexical: str | None = None
    filter_fields: tuple[str, ...] = ()


def find_record(server: Server, collection: str) -> Doc | None:
    """The record of a collection; None if there is no collection, or it is empty.

    Raises:
        StoreError: it holds documents of others.
    """
    is_empty = not server.fetch(collection, "find", {}, {"_id": 1}, limit=1)  # first: the record is written first
    found = server.fetch(collection, "find", {"_id": MANIFEST_ID})
    if found:
        return found[0]
    if not is_empty:
        raise StoreError(
            f"the collection {server.location} is there and was not made by m2rag: choose another name for the index"
        )
    return None


def read_manifest(record: Doc, location: str) -> Manifest:
    """The manifest in a record.

    Raises:
        StoreError: the record is damaged, or was written by a newer version.
    """
    kept_in = f"the document {MANIFEST_ID!r} of {location}"
    manifest = manifest_from_json(record.get("manifest"), index=location, kept_in=kept_in)
    if not record.keys() >= _FIELDS:
        raise StoreError(f"{kept_in} is damaged: restore it or build the index anew")
    return manifest


def create_record(
    server: Server, collection: str, parts: Parts, manifest: Manifest, schema: Schema, options: StoreOptions
) -> Doc:
    """Make a collection by its first document; indexes that are missing are made whenever it is opened.

    MongoDB has no sparse vectors: those of the schema are left out, and the manifest's `lexical` with them.

    Raises:
        InvalidInputError: MongoDB cannot keep vectors like this.
        SearchUnavailableError: the server has no search; nothing is made.
        StoreError: the server cannot be reached or refuses.
    """
    for spec in schema.vectors:
        if spec.searched and spec.multi:
            raise InvalidInputError(f"MongoDB searches one vector a document, not the many of {spec.name!r}")
        if spec.searched:
            check_kind(options.vectors, spec.size)
        if spec.quantization and options.vectors != "float32":
            raise InvalidInputError(f"quantization is for float32 vectors, not {options.vectors}")
    ranged = [field_name(path) for path in schema.filterable]
    server.fetch(collection, "list_search_indexes")
    generation = secrets.token_hex(8)
    record = {
        "_id": MANIFEST_ID,
        "generation": generation,
        "manifest": manifest_to_json(replace(manifest, lexical=None)),
        "vectors": [asdict(spec) for spec in schema.vectors],
        "listed_fields": dict(schema.listed_fields),
        "options": {**asdict(options), "filter_fields": list(dict.fromkeys([*options.filter_fields, *ranged]))},
    }
    try:
        server.ask(collection, "insert_one", record)
    except Refused as error:
        if error.code != DUPLICATE_KEY:  # made by another process a moment ago, or by a try whose answer was lost
            raise
    else:
        parts.start(generation)
    return server.fetch(collection, "find", {"_id": MANIFEST_ID})[0]
