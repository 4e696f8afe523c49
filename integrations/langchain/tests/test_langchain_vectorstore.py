"""`M2QdrantVectorStore` beyond the standard suite: what it promises of its own, in a folder and on a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from pydantic import SecretStr
from stand_in import WordEmbeddings
from support.qdrant_server import QdrantTestServer

from langchain_m2rag import DocumentsNotStoredError, M2Embeddings, M2LongDocumentRetriever, M2QdrantVectorStore
from m2rag import LongDocumentIndex
from m2rag.errors import IndexLockedError, IndexMismatchError, IndexNotFoundError, InvalidInputError, StoreError
from m2rag.stores import open_store

Make = Callable[..., M2QdrantVectorStore]
TEXTS = ["bread and salt", "bread and butter", "ships and harbours", "trains and stations"]
IDS = ["a", "b", "c", "d"]


@pytest.fixture(params=["folder", "server"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Opens the test's collection, the same one whenever it is called; the one before is closed."""
    where = tmp_path / "index" if request.param == "folder" else request.getfixturevalue("collection_url")
    opened: list[M2QdrantVectorStore] = []

    def open_it(embedding: Any = None, **options: Any) -> M2QdrantVectorStore:
        if opened:
            opened.pop().close()
        opened.append(M2QdrantVectorStore(where, embedding or WordEmbeddings(), **options))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()


def test_what_is_there_is_not_embedded_again(make: Make) -> None:
    first = WordEmbeddings()
    assert make(first).add_texts(TEXTS, ids=IDS) == IDS
    again = WordEmbeddings()
    store = make(again)
    assert store.add_texts(["bread and honey", *TEXTS[1:]], ids=IDS) == IDS, "all ids, also of what was there"
    assert first.embedded == TEXTS and again.embedded == ["bread and honey"]
    assert store.get_by_ids(["a"])[0].page_content == "bread and honey" and len(store.index) == 4


def test_any_string_is_an_id_and_metadata_comes_back_as_it_was(make: Make) -> None:
    store = make()
    ids = ["1", "a/b c.txt", "Ä ö ü 文", "x" * 2000, "550e8400-e29b-41d4-a716-446655440000"]
    metadata = {"id": 7, "text": "t", "title": None, "metadata": {"deep": [1, 2.5, True, None, "ß"]}, "_id": "x"}
    documents = [Document(page_content=f"bread {i}", metadata=metadata, id=id) for i, id in enumerate(ids)]
    assert store.add_documents(documents) == ids
    assert store.get_by_ids([*ids[::-1], "missing"]) == documents[::-1]
    assert sorted(store.similarity_search("bread", k=9), key=lambda one: ids.index(one.id or "")) == documents


def test_scores_filters_and_ways_to_search(make: Make) -> None:
    embeddings = WordEmbeddings()
    store = make(embeddings)
    store.add_texts(TEXTS, [{"n": i, "even": i % 2 == 0, "tags": [f"t{i}", "all"]} for i in range(4)], ids=IDS)
    found = store.similarity_search_with_score("bread and salt", k=4)
    scores = [score for _, score in found]
    assert found[0][0].id == "a" and scores[0] == pytest.approx(1, abs=1e-5) and scores == sorted(scores, reverse=True)
    vector = embeddings.embed_query("bread and salt")
    assert store.similarity_search_with_score_by_vector(vector, 4) == found
    assert store.similarity_search_by_vector(vector, 4) == [document for document, _ in found]
    for condition, expected in (({"n": 2}, "c"), ({"tags": "t3"}, "d"), ({"even": True, "tags": "t0"}, "a")):
        assert [one.id for one in store.similarity_search("bread", k=4, filter=condition)] == [expected]
        assert [one.id for one in store.similarity_search_by_vector(vector, k=4, filter=condition)] == [expected]
        assert [one.id for one in store.max_marginal_relevance_search("bread", filter=condition)] == [expected]
    [(_, relevance)] = store.similarity_search_with_relevance_scores("bread and salt", k=1)
    assert relevance == pytest.approx(1, abs=1e-5)
    assert len(store.similarity_search_with_relevance_scores("bread and salt", k=4, score_threshold=0.999)) == 1
    retriever = store.as_retriever(search_kwargs={"k": 2, "filter": {"even": True}})
    assert [one.id for one in retriever.invoke("bread and salt")] == ["a", "c"]


def test_marginal_relevance_prefers_what_differs(make: Make) -> None:
    store = make()
    store.add_texts(["bread and salt", "bread and salt too", "bread by rail"], ids=["a", "twin", "other"])
    assert [one.id for one in store.similarity_search("bread and salt", k=2)] == ["a", "twin"]
    assert [one.id for one in store.max_marginal_relevance_search("bread and salt", 2, lambda_mult=0.3)] == [
        "a",
        "other",
    ]
    assert len(store.as_retriever(search_type="mmr", search_kwargs={"k": 3}).invoke("bread")) == 3
    assert store.max_marginal_relevance_search("bread", k=2, filter={"n": 1}) == []


def test_the_same_collection_is_found_by_words_too(make: Make) -> None:
    store = make()
    store.add_texts(TEXTS, ids=IDS)
    assert store.index.modes == ("hybrid", "dense", "lexical") and store.index.info()["lexical"] == "english"
    assert [hit.id for hit in store.index.search("a ship", mode="lexical")] == ["c"]
    assert M2LongDocumentRetriever(index=store.index, k=1, mode="hybrid").invoke("a station")[0].id == "d"
    assert make(lexical=None).index.info()["lexical"] == "english", "it keeps what it was made with"


def test_words_of_a_new_collection(tmp_path: Path) -> None:
    with M2QdrantVectorStore(tmp_path / "none", WordEmbeddings(), lexical=None) as store:
        store.add_texts(TEXTS, ids=IDS)
        assert store.index.modes == ("dense",) and len(store.index.search("ship", 4)) == 4
    with M2QdrantVectorStore(tmp_path / "german", WordEmbeddings(), lexical="german") as store:
        store.add_texts(["Die Katzen schlafen."], ids=["a"])
        assert store.index.search("Katze", mode="lexical")[0].id == "a"
    with pytest.raises(InvalidInputError, match="klingon"):
        M2QdrantVectorStore(tmp_path / "other", WordEmbeddings(), lexical="klingon")


async def test_async(make: Make) -> None:
    store = make()
    assert await store.aadd_texts(TEXTS, ids=IDS) == IDS
    assert await store.asimilarity_search("bread", k=2) == store.similarity_search("bread", k=2)
    assert await store.asimilarity_search_with_score("bread") == store.similarity_search_with_score("bread")
    assert await store.amax_marginal_relevance_search("bread") == store.max_marginal_relevance_search("bread")
    assert await store.aget_by_ids(IDS) == store.get_by_ids(IDS)
    assert await store.adelete(["a"]) and len(store.index) == 3


def test_delete_without_ids_is_all(make: Make) -> None:
    store = make()
    store.add_texts(TEXTS, ids=IDS)
    assert store.delete([]) and len(store.index) == 4
    assert store.delete() and len(store.index) == 0


def test_another_model_is_refused(make: Make) -> None:
    make().add_texts(TEXTS, ids=IDS)
    for other in (WordEmbeddings(size=16), WordEmbeddings(model="other")):
        with pytest.raises(IndexMismatchError) as caught:
            make(other)
        assert "model=words dimensions=32" in caught.value.stored
        assert f"model={other.model} dimensions={other.size}" in caught.value.given
    assert len(make().index) == 4
    with pytest.raises(IndexMismatchError, match="shape \\(3,\\)"):
        make().similarity_search_by_vector([1.0, 0.0, 0.0])
    named = {"fingerprint": "mine"}
    with pytest.raises(IndexMismatchError, match="mine"):
        make(**named)


def test_the_dimension_of_the_answers_is_checked(make: Make) -> None:
    embeddings = WordEmbeddings()
    store = make(embeddings)
    embeddings.size = 16
    with pytest.raises(IndexMismatchError, match=r"\(4, 16\)"):
        store.add_texts(TEXTS, ids=IDS)
    with pytest.raises(IndexMismatchError, match=r"\(16,\)"):
        store.similarity_search("bread")
    assert len(store.index) == 0


def test_duplicate_ids_store_nothing(make: Make) -> None:
    store = make()
    with pytest.raises(ValueError, match="texts 1 and 3 have the same id 'b': nothing was stored"):
        store.add_texts(TEXTS, ids=["a", "b", "c", "b"])
    assert len(store.index) == 0
    with pytest.raises(ValueError, match="1 metadatas for 4 texts"):
        store.add_texts(TEXTS, [{}])
    with pytest.raises(ValueError, match="2 ids for 4 texts"):
        store.add_texts(TEXTS, ids=["a", "b"])


def test_what_cannot_be_stored_is_named_and_the_rest_is_stored(make: Make) -> None:
    store = make()
    texts = ["bread", "   ", "salt", "poison", "honey"]
    metadatas = [{}, {}, {"when": object()}, {}, {}]
    with pytest.raises(DocumentsNotStoredError, match="3 of 5 .* 'empty': .* 'odd': .*not JSON.*") as caught:
        store.add_texts(texts, metadatas, ids=["bread", "empty", "odd", "nan", "honey"])
    assert {failure.id for failure in caught.value.failures} == {"empty", "odd", "nan"}
    assert store.index.ids() == ["bread", "honey"]


def test_too_long_documents(embeddings: M2Embeddings, tmp_path: Path) -> None:
    texts, ids = ["much too long " * 30, "short"], ["long", "short"]
    short = M2Embeddings(max_tokens=32)
    with M2QdrantVectorStore(tmp_path / "strict", short, on_too_long="error") as store:
        with pytest.raises(DocumentsNotStoredError, match="1 of 2 .*'long': .* the limit is 32"):
            store.add_texts(texts, ids=ids)
        assert store.index.ids() == ["short"]
    with M2QdrantVectorStore(tmp_path / "windows", short) as store:
        store.add_texts(texts, ids=ids)
        [hit] = store.index.search("much too long", 1)
        assert hit.id == "long" and hit.n_windows > 1 and not hit.truncated


def test_mistakes_of_the_caller(make: Make, embeddings: M2Embeddings, tmp_path: Path) -> None:
    store = make()
    for call in (
        lambda: store.add_texts(TEXTS, chunk_size=3),
        lambda: store.similarity_search("bread", where={"n": 1}),
        lambda: store.delete(["a"], soft=True),
    ):
        with pytest.raises(TypeError, match="unknown arguments: (chunk_size|where|soft)"):
            call()
    with pytest.raises(ValueError, match="k is 0"):
        store.similarity_search("bread", k=0)
    with pytest.raises(InvalidInputError, match="filter 'n'"):
        store.similarity_search("bread", filter={"n": {"$gt": 1}})
    with pytest.raises(ValueError, match="location is missing"):
        M2QdrantVectorStore.from_texts(TEXTS, WordEmbeddings())
    with pytest.raises(ValueError, match="fingerprint of their own"):
        M2QdrantVectorStore(tmp_path / "other", embeddings, fingerprint="x")
    with pytest.raises(IndexNotFoundError):
        M2QdrantVectorStore(tmp_path / "nothing", WordEmbeddings(), create=False)
    assert not (tmp_path / "nothing").exists()


def test_a_folder_has_one_opener(tmp_path: Path) -> None:
    with M2QdrantVectorStore(tmp_path / "index", WordEmbeddings()):
        with pytest.raises(IndexLockedError):
            M2QdrantVectorStore(tmp_path / "index", WordEmbeddings())
    with pytest.raises(DocumentsNotStoredError):
        M2QdrantVectorStore.from_texts([" "], WordEmbeddings(), location=tmp_path / "index")
    with M2QdrantVectorStore.from_texts(TEXTS, WordEmbeddings(), location=tmp_path / "index") as store:
        assert len(store.index) == 4, "the failing one let go of the folder"


def test_from_documents_and_from_an_open_store(tmp_path: Path) -> None:
    documents = [Document(page_content=text, id=id) for text, id in zip(TEXTS, IDS, strict=True)]
    with M2QdrantVectorStore.from_documents(documents, WordEmbeddings(), location=tmp_path / "index") as store:
        assert store.get_by_ids(IDS) == documents and isinstance(store.embeddings, WordEmbeddings)
    with M2QdrantVectorStore(open_store(tmp_path / "index"), WordEmbeddings()) as store:
        assert store.index.ids() == IDS


def test_one_collection_for_store_index_and_retriever(embeddings: M2Embeddings, tmp_path: Path) -> None:
    with M2QdrantVectorStore(tmp_path / "index", embeddings) as store:
        store.add_texts(TEXTS, [{"n": i} for i in range(4)], ids=IDS)
        [passage] = M2LongDocumentRetriever(index=store.index, k=1, returns="passages").invoke("ships in a harbour")
        assert passage.metadata["document_id"] == "c" and passage.page_content == TEXTS[2]
    with LongDocumentIndex(tmp_path / "index", embeddings.embedder) as opened:
        assert [hit.id for hit in opened.search("ships in a harbour", 1)] == ["c"]


def test_langchains_indexing(make: Make) -> None:
    """Its record manager and this store agree on what is there: added, skipped, updated, cleaned up."""
    embeddings = WordEmbeddings()
    store = make(embeddings)
    records = InMemoryRecordManager("test")
    records.create_schema()

    def run(texts: list[str]) -> dict[str, int]:
        documents = [Document(page_content=text, metadata={"source": text.split()[0]}) for text in texts]
        counted = index(
            documents, records, store, cleanup="full", source_id_key="source", key_encoder="sha256", batch_size=2
        )
        return {name: n for name, n in counted.items() if n}  # type: ignore[misc]

    assert run(TEXTS) == {"num_added": 4}
    assert run(TEXTS) == {"num_skipped": 4}
    assert run([*TEXTS[:2], "ships and sails"]) == {"num_added": 1, "num_skipped": 2, "num_deleted": 2}
    assert len(store.index) == 3 and embeddings.embedded == [*TEXTS, "ships and sails"]


def test_the_key_of_a_server() -> None:
    with QdrantTestServer(api_key="very-secret") as server:
        with pytest.raises(StoreError, match="refuses access") as caught:
            M2QdrantVectorStore(f"{server.url}/docs", WordEmbeddings(), api_key=SecretStr("very-wrong"))
        assert "very-wrong" not in str(caught.value)
        with M2QdrantVectorStore(f"{server.url}/docs", WordEmbeddings(), api_key=SecretStr("very-secret")) as store:
            assert store.add_texts(TEXTS, ids=IDS) == IDS


def test_a_connection_that_breaks_in_the_middle(double: QdrantTestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes whose answer is lost are repeated: each text once, embedded once."""
    from m2rag.stores import qdrant_server
    from m2rag.stores.retry import Patience

    monkeypatch.setattr(qdrant_server, "Patience", lambda: Patience(20, first_pause=0.02, longest_pause=0.1))
    embeddings = WordEmbeddings()
    with M2QdrantVectorStore(f"{double.url}/docs", embeddings, batch_tokens=8) as store:
        double.fail(2, "PUT .*/points", status=0, done_first=True)
        assert store.add_texts(TEXTS, ids=IDS) == IDS
        assert len(store.index) == 4 and embeddings.embedded == TEXTS
