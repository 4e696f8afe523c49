"""Run by tests in a process of its own: adds documents to a collection and says how many are done."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from fake_embedder import HashEmbedder
from pymongo import AsyncMongoClient
from support.collection_cases import DOCUMENTS

from m2rag.index import LongDocumentIndex
from m2rag_mongodb import AsyncDocumentCollection, layout


def say(state: Any) -> None:
    sys.stdout.write(f"done {state.done}\n")
    sys.stdout.flush()


def main() -> None:
    kind, url, options, database = sys.argv[1:]
    embedder = HashEmbedder(seconds_per_text=0.05)
    layout.INLINE_BYTES, layout.PART_BYTES = 1500, 700  # every document in parts
    how: dict[str, Any] = {"batch_tokens": 60, "progress": say}
    if kind == "url":
        with LongDocumentIndex(f"{url}/{database}/docs?{options}", embedder) as index:
            index.add(DOCUMENTS, **how)
        return

    async def add() -> None:
        client: AsyncMongoClient[Any] = AsyncMongoClient(f"{url}/?{options}")
        opened = await AsyncDocumentCollection.on_server(client[database]["docs"], embedder)
        await opened.add(DOCUMENTS, **how)

    asyncio.run(add())


if __name__ == "__main__":
    main()
