"""Run by a test in a process of its own: adds documents to a collection and says how many are done."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from fake_embedder import HashEmbedder
from qdrant_client import AsyncQdrantClient, QdrantClient
from support.collection_cases import DOCUMENTS

from m2rag_qdrant import AsyncDocumentCollection, DocumentCollection


def say(state: Any) -> None:
    sys.stdout.write(f"done {state.done}\n")
    sys.stdout.flush()


def main() -> None:
    kind, place, name = sys.argv[1:]
    embedder = HashEmbedder(seconds_per_text=0.1)
    options: dict[str, Any] = {"batch_tokens": 60, "progress": say}
    if kind == "folder":
        DocumentCollection.in_folder(place, embedder).add(DOCUMENTS, **options)
    elif kind == "client":
        client = QdrantClient(place, check_compatibility=False)
        DocumentCollection.on_server(client, name, embedder).add(DOCUMENTS, **options)
    else:

        async def add() -> None:
            aclient = AsyncQdrantClient(place, check_compatibility=False)
            opened = await AsyncDocumentCollection.on_server(aclient, name, embedder)
            await opened.add(DOCUMENTS, **options)

        asyncio.run(add())


if __name__ == "__main__":
    main()
