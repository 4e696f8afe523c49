"""`VectorStoreIndex` on unmodified stores of LlamaIndex for Qdrant and MongoDB, with our embedding class."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.vector_stores.mongodb import MongoDBAtlasVectorSearch
from llama_index.vector_stores.qdrant import QdrantVectorStore
from pymongo import AsyncMongoClient
from pymongo.database import Database
from qdrant_client import AsyncQdrantClient, QdrantClient

from llama_index.embeddings.m2rag import M2Embedding, WholeDocumentNodeParser

pytestmark = pytest.mark.filterwarnings("default")  # of the packages of others

SENTENCES = [
    "Mix flour, water, salt and yeast, and let the dough rise before baking. ",
    "The ship lay in the harbour while her sails were mended. ",
    "The judge heard the witness, and the jury found him guilty. ",
]
DOCUMENTS = [Document(text=90 * sentence, id_=f"doc {i}", metadata={"n": i}) for i, sentence in enumerate(SENTENCES)]
QUERY = "a ship in a harbour"


def only(key: str, value: Any, operator: FilterOperator = FilterOperator.EQ) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])


@pytest.fixture
def qdrant_store(qdrant: QdrantClient, qdrant_url: str, collection: str) -> QdrantVectorStore:
    key = os.environ.get("QDRANT_API_KEY")
    aclient = AsyncQdrantClient(qdrant_url, api_key=key, timeout=60, check_compatibility=False)
    return QdrantVectorStore(collection, client=qdrant, aclient=aclient)


def made(store: Any, embedding: M2Embedding, documents: list[Document] = DOCUMENTS) -> VectorStoreIndex:
    return VectorStoreIndex.from_documents(
        documents,
        storage_context=StorageContext.from_defaults(vector_store=store),
        transformations=[WholeDocumentNodeParser()],
        embed_model=embedding,
    )


def test_qdrant(qdrant: QdrantClient, qdrant_store: QdrantVectorStore, embedding: M2Embedding) -> None:
    index = made(qdrant_store, embedding)
    name = qdrant_store.collection_name
    assert qdrant.count(name).count == 3, "whole documents stay whole"
    [best, *others] = index.as_retriever(similarity_top_k=9).retrieve(QUERY)
    assert best.node.get_content() == DOCUMENTS[1].text and best.node.ref_doc_id == "doc 1" and len(others) == 2
    whole = embedding.get_text_embedding(DOCUMENTS[1].text)
    expected = embedding.similarity(embedding.get_query_embedding(QUERY), whole)
    assert best.score == pytest.approx(expected, abs=1e-4)
    for filters, found in ((only("n", 2), [2]), (only("n", 1, FilterOperator.LT), [0])):
        hits = index.as_retriever(similarity_top_k=9, filters=filters).retrieve(QUERY)
        assert [hit.node.metadata["n"] for hit in hits] == found
    made(qdrant_store, embedding, [*DOCUMENTS[1:], Document(text="Other bread.", id_="doc 0", metadata={"n": 7})])
    assert qdrant.count(name).count == 3, "a document under the same id replaces what was there"
    again = VectorStoreIndex.from_vector_store(qdrant_store, embed_model=embedding)
    assert again.as_retriever(similarity_top_k=1).retrieve("bread")[0].node.get_content() == "Other bread."
    again.delete_ref_doc("doc 1")
    assert {hit.node.metadata["n"] for hit in again.as_retriever(similarity_top_k=9).retrieve(QUERY)} == {2, 7}


async def test_qdrant_async(qdrant_store: QdrantVectorStore, embedding: M2Embedding) -> None:
    pipeline = IngestionPipeline(
        transformations=[WholeDocumentNodeParser(), embedding], vector_store=qdrant_store, disable_cache=True
    )
    assert len(await pipeline.arun(documents=DOCUMENTS)) == 3
    index = VectorStoreIndex.from_vector_store(qdrant_store, embed_model=embedding)
    [best] = await index.as_retriever(similarity_top_k=1).aretrieve(QUERY)
    assert best.node.get_content() == DOCUMENTS[1].text
    await index.adelete_ref_doc("doc 1")
    assert len(await index.as_retriever(similarity_top_k=9).aretrieve(QUERY)) == 2
    await qdrant_store._aclient.close()


def test_qdrant_another_dimension(qdrant_store: QdrantVectorStore, embedding: M2Embedding, server: Any) -> None:
    """The store leaves this to the server; it is an error, not a wrong hit."""
    made(qdrant_store, embedding)
    other = VectorStoreIndex.from_vector_store(qdrant_store, embed_model=M2Embedding("any", base_url=server.url))
    with pytest.raises(Exception, match="(?i)dim"):  # the client's own
        other.as_retriever().retrieve(QUERY)


def until(found: Callable[[], list[Any]], wanted: int) -> list[Any]:
    """A search index learns of documents some time after they are written."""
    deadline = time.monotonic() + 60
    while len(result := found()) < wanted and time.monotonic() < deadline:
        time.sleep(0.2)
    return result


def test_mongodb(database: Database[Any], mongodb_uri: str, embedding: M2Embedding) -> None:
    name = f"li_{uuid.uuid4().hex[:8]}"
    database.create_collection(name)
    aclient: AsyncMongoClient[Any] = AsyncMongoClient(mongodb_uri)  # it wants both
    store = MongoDBAtlasVectorSearch(database.client, aclient, db_name=database.name, collection_name=name)
    store.create_vector_search_index(
        embedding.embedder.dimension, "embedding", "cosine", filters=["metadata.n"], wait_until_complete=60
    )
    index = made(store, embedding)
    assert database[name].count_documents({}) == 3, "whole documents stay whole"
    until(lambda: index.as_retriever(similarity_top_k=9).retrieve(QUERY), 3)
    [best] = index.as_retriever(similarity_top_k=1).retrieve(QUERY)
    assert best.node.get_content() == DOCUMENTS[1].text and best.node.ref_doc_id == "doc 1"
    hits = index.as_retriever(similarity_top_k=9, filters=only("n", 2)).retrieve(QUERY)
    assert [hit.node.metadata["n"] for hit in hits] == [2]
    with pytest.raises(Exception, match="duplicate key"):  # the driver's own: this store inserts only
        made(store, embedding, DOCUMENTS[:1])
    index.delete_ref_doc("doc 1")
    assert database[name].count_documents({}) == 2
