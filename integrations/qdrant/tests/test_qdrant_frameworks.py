"""Unmodified langchain-qdrant and llama-index's Qdrant store, on the same server and on collections of ours."""

from __future__ import annotations

from typing import Any

import pytest
from fake_embedder import HashEmbedder
from qdrant_client import QdrantClient
from test_qdrant_collection import DOCUMENTS

from m2rag_qdrant import DocumentCollection

TEXTS = [document.text for document in DOCUMENTS]


@pytest.mark.filterwarnings("default")
def test_langchain_qdrant(qdrant: QdrantClient, qdrant_url: str, collection: str) -> None:
    embeddings = pytest.importorskip("langchain_core.embeddings")
    stores = pytest.importorskip("langchain_qdrant")
    models = pytest.importorskip("qdrant_client.models")

    class Embeddings(embeddings.Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return HashEmbedder().embed_documents(texts).vectors.tolist()

        def embed_query(self, text: str) -> list[float]:
            return HashEmbedder().embed_query(text).tolist()

    store = stores.QdrantVectorStore.from_texts(
        TEXTS, Embeddings(), [{"n": i} for i in range(len(TEXTS))], url=qdrant_url, collection_name=collection
    )
    wanted = models.Filter(must=[models.FieldCondition(key="metadata.n", match=models.MatchAny(any=[3, 4]))])
    found = store.similarity_search_with_score(TEXTS[3], k=5, filter=wanted)
    assert [document.metadata["n"] for document, _ in found] == [3, 4] and found[0][1] == pytest.approx(1, abs=1e-4)
    assert len(store.max_marginal_relevance_search(TEXTS[3], k=3)) == 3
    id = found[0][0].metadata["_id"]
    assert [document.page_content for document in store.get_by_ids([id])] == [TEXTS[3]]
    assert store.delete([id]) and store.get_by_ids([id]) == []

    qdrant.delete_collection(collection)
    DocumentCollection.on_server(qdrant, collection, HashEmbedder()).add(DOCUMENTS)
    ours = stores.QdrantVectorStore(qdrant, collection, Embeddings(), vector_name="doc", content_payload_key="text")
    best = ours.similarity_search(TEXTS[3], k=1)[0]
    assert best.page_content == TEXTS[3] and best.metadata["tags"] == ["t0"]


@pytest.mark.filterwarnings("default")
def test_llama_index_qdrant(qdrant: QdrantClient, collection: str) -> None:
    stores = pytest.importorskip("llama_index.vector_stores.qdrant")
    schema = pytest.importorskip("llama_index.core.schema")
    queries = pytest.importorskip("llama_index.core.vector_stores")
    embedder = HashEmbedder()
    store = stores.QdrantVectorStore(collection, client=qdrant)
    nodes: list[Any] = [
        schema.TextNode(text=text, metadata={"n": i}, embedding=embedder.vector(text).tolist())
        for i, text in enumerate(TEXTS)
    ]
    assert store.add(nodes) == [node.node_id for node in nodes]
    query = queries.VectorStoreQuery(query_embedding=embedder.vector(TEXTS[3]).tolist(), similarity_top_k=2)
    found = store.query(query)
    assert found.nodes[0].get_content() == TEXTS[3] and found.similarities[0] == pytest.approx(1, abs=1e-4)
    filters = queries.MetadataFilters(filters=[queries.MetadataFilter(key="n", value=5)])
    query.filters = filters
    assert [node.metadata["n"] for node in store.query(query).nodes] == [5]
    store.delete_nodes([nodes[3].node_id])
    assert store.get_nodes([nodes[3].node_id]) == [] and len(store.get_nodes([nodes[4].node_id])) == 1
