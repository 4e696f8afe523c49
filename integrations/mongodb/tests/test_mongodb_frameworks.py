"""Plain langchain-mongodb and llama-index stores, unmodified, on indexes of ours and with our embedding classes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Doc
from fake_embedder import HashEmbedder
from pymongo import AsyncMongoClient, MongoClient
from pymongo.database import Database

from m2rag_mongodb import CollectionOptions, DocumentCollection, TextIndex, VectorIndex, ensure_index

pytestmark = pytest.mark.filterwarnings("default")  # of the packages of others
TEXTS = [f"A whole long text about w{i}. " * 40 for i in range(6)]


def until(found: Callable[[], Any], wanted: int) -> Any:
    """A search index learns of documents some time after they are written."""
    deadline = time.monotonic() + 60
    while len(result := found()) < wanted and time.monotonic() < deadline:
        time.sleep(0.5)
    return result


# LangChain


@pytest.fixture
def embeddings() -> Any:
    """`M2Embeddings` around the deterministic embedder, or as much of it as the store asks for."""
    base = pytest.importorskip("langchain_core.embeddings").Embeddings

    class Plain(base):  # type: ignore[misc]
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return HashEmbedder().embed_documents(texts).vectors.tolist()

        def embed_query(self, text: str) -> list[float]:
            return HashEmbedder().embed_query(text).tolist()

    return Plain()


def test_langchain(database: Database[Doc], embeddings: Any) -> None:
    MongoDBAtlasVectorSearch = pytest.importorskip("langchain_mongodb").MongoDBAtlasVectorSearch
    ensure_index(database["lc"], VectorIndex(64, filters=("n",)))
    store = MongoDBAtlasVectorSearch(database["lc"], embeddings)
    ids = [str(i) for i in range(6)]
    assert store.add_texts(TEXTS, [{"n": i} for i in range(6)], ids=ids) == ids
    until(lambda: store.similarity_search("w1", k=6), 6)
    [(best, score)] = store.similarity_search_with_score("w3", k=1)
    assert best.page_content == TEXTS[3] and best.metadata["n"] == 3 and 0.5 < score <= 1
    assert {one.metadata["n"] for one in store.similarity_search("w3", k=6, pre_filter={"n": {"$lt": 2}})} == {0, 1}
    store.add_texts(["changed w3"], [{"n": 3}], ids=["3"])
    assert database["lc"].count_documents({}) == 6 and store.get_by_ids(["3"])[0].page_content == "changed w3"
    assert store.as_retriever(search_kwargs={"k": 2}).invoke("w1")[0].metadata["n"] == 1
    assert store.delete(["0", "1"]) and database["lc"].count_documents({}) == 4


def test_langchain_full_text(database: Database[Doc], embeddings: Any) -> None:
    """Its retriever by words, on a text index of ours."""
    pytest.importorskip("langchain_mongodb")
    from langchain_mongodb.retrievers import MongoDBAtlasFullTextSearchRetriever

    ensure_index(database["lc"], TextIndex(("text",)))
    database["lc"].insert_many({"_id": i, "text": text} for i, text in enumerate(TEXTS))
    retriever = MongoDBAtlasFullTextSearchRetriever(
        collection=database["lc"], search_index_name="text_index", search_field="text", k=2
    )
    assert until(lambda: retriever.invoke("w4"), 1)[0].page_content == TEXTS[4]


def test_langchain_searches_a_collection_of_ours(database: Database[Doc], embeddings: Any) -> None:
    MongoDBAtlasVectorSearch = pytest.importorskip("langchain_mongodb").MongoDBAtlasVectorSearch
    from m2rag.index import Document

    options = CollectionOptions(lexical=None, filter_fields=("n",))
    with DocumentCollection.on_server(database["docs"], HashEmbedder(), options=options) as ours:
        ours.add(Document(f"d{i}", text, metadata={"n": i}) for i, text in enumerate(TEXTS))
        expected = [hit.id for hit in ours.search("w3", 3)]
    store = MongoDBAtlasVectorSearch(database["docs"], embeddings, index_name="m2rag_doc", embedding_key="doc")
    found = store.similarity_search("w3", k=3)
    assert [one.metadata["id"] for one in found] == expected and found[0].page_content == TEXTS[3]
    found = store.similarity_search("w3", k=6, pre_filter={"metadata.n": 2})
    assert [one.metadata["id"] for one in found] == ["d2"]


# llama-index


@pytest.fixture
def embed_model() -> Any:
    base = pytest.importorskip("llama_index.core.embeddings").BaseEmbedding

    class Plain(base):  # type: ignore[misc]
        @classmethod
        def class_name(cls) -> str:
            return "Plain"

        def _get_text_embedding(self, text: str) -> list[float]:
            return HashEmbedder().vector(text).tolist()

        def _get_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

    return Plain()


def test_llama_index(database: Database[Doc], mongodb_uri: str, embed_model: Any, loop: Any) -> None:
    pytest.importorskip("llama_index.vector_stores.mongodb")
    from llama_index.core import Document, StorageContext, VectorStoreIndex
    from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
    from llama_index.vector_stores.mongodb import MongoDBAtlasVectorSearch

    ensure_index(database["li"], VectorIndex(64, filters=("metadata.n",)))
    client: MongoClient[Doc] = MongoClient(mongodb_uri)
    aclient: AsyncMongoClient[Doc] = AsyncMongoClient(mongodb_uri)
    store = MongoDBAtlasVectorSearch(client, aclient, db_name=database.name, collection_name="li")
    nodes = [Document(text=text, id_=str(i), metadata={"n": i}) for i, text in enumerate(TEXTS)]
    index = VectorStoreIndex(
        nodes=nodes, storage_context=StorageContext.from_defaults(vector_store=store), embed_model=embed_model
    )
    assert database["li"].count_documents({}) == 6, "whole documents stay whole"
    until(lambda: index.as_retriever(similarity_top_k=6).retrieve("w1"), 6)
    best = index.as_retriever(similarity_top_k=1).retrieve("w3")[0]
    assert best.node.get_content() == TEXTS[3] and best.node.node_id == "3"
    only = MetadataFilters(filters=[MetadataFilter(key="n", value=2)])
    found = index.as_retriever(similarity_top_k=6, filters=only).retrieve("w3")
    assert [one.node.metadata["n"] for one in found] == [2]
    client.close()
    loop.run(aclient.close())
