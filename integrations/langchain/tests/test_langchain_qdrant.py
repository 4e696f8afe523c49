"""Unmodified langchain-qdrant with our embedding class, against the engine behind HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from langchain_core.documents import Document
from langchain_qdrant import QdrantVectorStore
from langchain_qdrant.qdrant import QdrantVectorStoreError
from qdrant_client import QdrantClient, models

from langchain_m2rag import M2Embeddings

pytestmark = pytest.mark.filterwarnings("default")  # of the packages of others

DOCUMENTS = [
    Document(page_content=text * 30, metadata={"n": i})
    for i, text in enumerate(
        [
            "Mix flour, water, salt and yeast, and let the dough rise before baking. ",
            "The ship lay in the harbour while her sails were mended. ",
            "The judge heard the witness, and the jury found him guilty. ",
        ]
    )
]
IDS = [str(uuid.UUID(int=i)) for i in range(3)]


@pytest.fixture
def store(qdrant: QdrantClient, collection: str, embeddings: M2Embeddings) -> Iterator[QdrantVectorStore]:
    size = models.VectorParams(size=embeddings.embedder.dimension, distance=models.Distance.COSINE)
    qdrant.create_collection(collection, vectors_config=size)
    yield QdrantVectorStore(qdrant, collection, embeddings)


def test_the_whole_round(store: QdrantVectorStore, embeddings: M2Embeddings) -> None:
    assert store.add_documents(DOCUMENTS, ids=IDS) == IDS
    store.add_documents(DOCUMENTS, ids=IDS)
    [(best, score), *others] = store.similarity_search_with_score("a ship in a harbour", k=9)
    assert len(others) == 2 and best.page_content == DOCUMENTS[1].page_content and best.metadata["n"] == 1
    whole = embeddings.embed_documents([DOCUMENTS[1].page_content])[0]
    query = embeddings.embed_query("a ship in a harbour")
    assert score == pytest.approx(sum(a * b for a, b in zip(whole, query, strict=True)), abs=1e-4)
    only = models.Filter(must=[models.FieldCondition(key="metadata.n", match=models.MatchValue(value=2))])
    assert [one.metadata["n"] for one in store.similarity_search("a ship", k=9, filter=only)] == [2]
    assert len(store.max_marginal_relevance_search("a ship", k=2, fetch_k=3)) == 2
    assert store.as_retriever(search_kwargs={"k": 1}).invoke("baking dough")[0].metadata["n"] == 0
    assert store.delete([IDS[1]]) and [one.metadata["n"] for one in store.get_by_ids(IDS)] == [0, 2]


async def test_async(store: QdrantVectorStore) -> None:
    assert await store.aadd_documents(DOCUMENTS, ids=IDS) == IDS
    assert (await store.asimilarity_search("a ship in a harbour", k=1))[0].metadata["n"] == 1


def test_a_collection_of_another_dimension(store: QdrantVectorStore, qdrant: QdrantClient, collection: str) -> None:
    class Longer(M2Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [[*vector, 0.0] for vector in super().embed_documents(texts)]

    with pytest.raises(QdrantVectorStoreError, match="384 dimensions"):
        QdrantVectorStore(qdrant, collection, Longer())


def test_it_searches_a_collection_of_ours(qdrant: QdrantClient, collection_url: str, embeddings: M2Embeddings) -> None:
    """What `M2QdrantVectorStore` wrote is plain Qdrant."""
    from langchain_m2rag import M2QdrantVectorStore

    with M2QdrantVectorStore(collection_url, embeddings) as ours:
        ours.add_documents(DOCUMENTS, ids=["bread", "ships", "courts"])
    name = collection_url.rpartition("/")[2]
    store = QdrantVectorStore(qdrant, name, embeddings, vector_name="doc", content_payload_key="text")
    [best] = store.similarity_search("a ship in a harbour", k=1)
    assert best.page_content == DOCUMENTS[1].page_content and best.metadata["n"] == 1
