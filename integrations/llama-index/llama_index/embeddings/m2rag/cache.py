"""LlamaIndex's cache of embeddings, with a room for each model."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore


class ModelCache(BaseKVStore):
    """A key-value store whose collections belong to one model.

    LlamaIndex files vectors under the bare text: in a store that two models share, one is given the vectors of the
    other.

    Args:
        store: where things are kept.
        fingerprint: names the model; called on first use, as a remote model may have to be asked.
    """

    def __init__(self, store: BaseKVStore, fingerprint: Callable[[], str]) -> None:
        self.store = store
        self._fingerprint = fingerprint

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Keep a value."""
        self.store.put(key, val, self._own(collection))

    async def aput(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Keep a value."""
        await self.store.aput(key, val, await asyncio.to_thread(self._own, collection))

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """A value, if there is one."""
        return self.store.get(key, self._own(collection))

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """A value, if there is one."""
        return await self.store.aget(key, await asyncio.to_thread(self._own, collection))

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """All values of this model."""
        return self.store.get_all(self._own(collection))

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """All values of this model."""
        return await self.store.aget_all(await asyncio.to_thread(self._own, collection))

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Remove a value; whether there was one."""
        return self.store.delete(key, self._own(collection))

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Remove a value; whether there was one."""
        return await self.store.adelete(key, await asyncio.to_thread(self._own, collection))

    def _own(self, collection: str) -> str:
        return f"{collection}-m2rag-{hashlib.sha256(self._fingerprint().encode()).hexdigest()[:16]}"
