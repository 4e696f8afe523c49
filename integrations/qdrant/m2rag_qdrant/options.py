"""What a collection for whole documents looks like, derived from the embedder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from m2rag.index import Embedder
from m2rag.index.index import new_index
from m2rag.stores import FieldKind, Manifest, Schema
from m2rag.stores import qdrant_server as server


@dataclass(frozen=True)
class CollectionOptions:
    """Choices for a new collection; an existing one keeps what it was made with.

    Attributes:
        lexical: language of stemmer and stop words for BM25 vectors, which hybrid search needs; None makes none.
        quantization: also keep the documents' vectors in 8 bits ("scalar") or 1 bit ("binary") a number; searches go
            through these and score what they find with the vectors themselves.
        filterable: metadata fields that filters are to be fast on, and the kind of their values, as
            `DocumentCollection.make_filterable` takes it.
        server: more arguments for `create_collection` (shard_number, replication_factor, ...); unused in a folder.
    """

    lexical: str | None = "english"
    quantization: Literal["scalar", "binary"] | None = None
    filterable: Mapping[str, FieldKind] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)


def new_collection(embedder: Embedder, options: CollectionOptions) -> tuple[Manifest, Schema]:
    """Manifest and schema of a collection for an embedder.

    Raises:
        InvalidInputError: there is no BM25 for the language, or another option is wrong.
    """
    return new_index(embedder, options.lexical, options.quantization, options.filterable)


def collection_config(embedder: Embedder, options: CollectionOptions | None = None) -> dict[str, Any]:
    """The arguments of `create_collection`, for who wants to call it: `client.create_collection(name, **config)`.

    Named vectors `doc` (D, cosine) and `passages` (one per passage, MAX_SIM, no graph), sparse vectors `lexical` (IDF),
    and the embedder's fingerprint in the metadata. Field indexes are made when the collection is first opened.

    Raises:
        InvalidInputError: there is no BM25 for the language, or another option is wrong.
    """
    options = options or CollectionOptions()
    return {**options.server, **server.collection_config(*new_collection(embedder, options))}
