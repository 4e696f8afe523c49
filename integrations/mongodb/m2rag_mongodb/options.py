"""What a collection for whole documents looks like, derived from the embedder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from m2rag.errors import InvalidInputError
from m2rag.index import Embedder
from m2rag.index.index import index_schema, new_manifest
from m2rag.index.ingest import DOC
from m2rag.stores import Manifest, Schema
from m2rag_mongodb.record import StoreOptions
from m2rag_mongodb.vectors import VectorKind, check_kind


@dataclass(frozen=True)
class CollectionOptions:
    """Choices for a new collection; an existing one keeps what it was made with.

    Attributes:
        lexical: language of the text index ("english", "german", ...: Lucene's analyzers), which hybrid search needs;
            None makes none.
        vectors: what the search index holds of a number: "float32", "int8" (1 byte) or "packed_bit" (its sign). With
            the last two the documents have a copy in 16 bits too, which puts what the index finds in order.
        quantization: "scalar" or "binary": float32 vectors, of which the server keeps 8 or 1 bits in memory and scores
            with the vectors.
        filter_fields: metadata fields that filters may ask for ranges of, and queries filter by in MongoDB's own
            language (`where`). Filters by equality and by lists need none.
    """

    lexical: str | None = "english"
    vectors: VectorKind = "float32"
    quantization: Literal["scalar", "binary"] | None = None
    filter_fields: tuple[str, ...] = ()


def new_collection(embedder: Embedder, options: CollectionOptions) -> tuple[Manifest, Schema, StoreOptions]:
    """Manifest, schema and options of a collection for an embedder.

    Raises:
        InvalidInputError: an option is wrong.
    """
    check_kind(options.vectors, embedder.dimension)
    if options.quantization not in (None, "scalar", "binary"):
        raise InvalidInputError(f"quantization must be scalar, binary or None, not {options.quantization!r}")
    if isinstance(options.filter_fields, str):
        raise InvalidInputError(f"filter_fields must be a tuple of names, not {options.filter_fields!r}")
    schema = index_schema(embedder.dimension)
    vectors = tuple(
        replace(spec, quantization=options.quantization) if spec.name == DOC else spec for spec in schema.vectors
    )
    kept = StoreOptions(options.vectors, options.lexical, tuple(f"metadata.{name}" for name in options.filter_fields))
    return new_manifest(embedder, quantization=options.quantization), replace(schema, vectors=vectors), kept
