"""`M2LongDocumentRetriever`: LangChain's suite as it is, and whole documents, passages, offsets, filters."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError
from qdrant_client import QdrantClient
from support.embedding_server import EmbeddingServer

from langchain_m2rag import M2Embeddings, M2LongDocumentRetriever
from m2rag import LongDocumentIndex
from m2rag.errors import InvalidInputError

SUBJECTS = {
    "bread": "Mix flour, water, salt and yeast, and let the dough rise before baking the loaf. ",
    "ships": "The ship lay in the harbour while her sails were mended and the crew waited. ",
    "trains": "The locomotive left the station and pulled its carriages along the railway. ",
    "courts": "The judge heard the witness, and the jury found the accused not guilty. ",
}
DOCUMENTS = [
    Document(
        id=f"{name}.txt",
        page_content=f"{17 * text}\n\nThe colour of the {name} was a bright green.\n\n{17 * text}",
        metadata={"subject": name, "n": i, "even": i % 2 == 0},
    )
    for i, (name, text) in enumerate(SUBJECTS.items())
]
QUERY = "a harbour with ships in it"


@pytest.fixture(scope="module", params=["folder", "server"])
def index(
    request: pytest.FixtureRequest,
    embeddings: M2Embeddings,
    tmp_path_factory: pytest.TempPathFactory,
    qdrant: QdrantClient,
    qdrant_url: str,
) -> Iterator[LongDocumentIndex]:
    name = f"m2rag-test-{uuid.uuid4().hex}"
    where = tmp_path_factory.mktemp("retriever") / "index" if request.param == "folder" else f"{qdrant_url}/{name}"
    with LongDocumentIndex(where, embeddings.embedder) as opened:
        report = M2LongDocumentRetriever(index=opened).add_documents(DOCUMENTS)
        assert (report.added, report.failed) == (4, [])
        yield opened
    if request.param == "server":
        qdrant.delete_collection(name)


class _Standard(RetrieversIntegrationTests):
    returns = "documents"

    @pytest.fixture(autouse=True)
    def _index(self, index: LongDocumentIndex) -> None:
        self.index = index

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return M2LongDocumentRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"index": self.index, "returns": self.returns}

    @property
    def retriever_query_example(self) -> str:
        return QUERY


class TestDocuments(_Standard):
    pass


class TestPassages(_Standard):
    returns = "passages"


def test_whole_documents_with_scores_and_passages(index: LongDocumentIndex) -> None:
    found = M2LongDocumentRetriever(index=index, k=4).invoke(QUERY)
    assert found[0].id == "ships.txt" and sorted(one.id or "" for one in found) == sorted(
        one.id or "" for one in DOCUMENTS
    )
    scores = [one.metadata["score"] for one in found]
    assert scores == sorted(scores, reverse=True) and all(type(score) is float for score in scores)
    for one in found:
        original = next(document for document in DOCUMENTS if document.id == one.id)
        assert one.page_content == original.page_content
        assert original.metadata.items() <= one.metadata.items()
        assert -1 < one.metadata["document_score"] < 1 and one.metadata["n_tokens"] > 400
        assert one.metadata["truncated"] is False and 1 <= len(one.metadata["passages"]) <= 3
        for passage in one.metadata["passages"]:
            assert passage["text"] == one.page_content[passage["start_index"] : passage["end_index"]]


def test_best_passages_with_their_places(index: LongDocumentIndex) -> None:
    retriever = M2LongDocumentRetriever(index=index, k=4, returns="passages", n_passages=2)
    found = retriever.invoke(QUERY)
    assert len(found) == 4 and found[0].metadata["document_id"] == "ships.txt"
    scores = [one.metadata["score"] for one in found]
    assert scores == sorted(scores, reverse=True)
    texts = {one.id: one.page_content for one in DOCUMENTS}
    for one in found:
        start, end = one.metadata["start_index"], one.metadata["end_index"]
        assert one.page_content == texts[one.metadata["document_id"]][start:end] != ""
        assert one.metadata["subject"] in one.id and one.metadata["document_score"] < 1
    assert len({one.id for one in found}) == 4
    of_one = [one.metadata["document_id"] for one in retriever.invoke(QUERY, k=8)]
    assert max(of_one.count(id) for id in of_one) == 2
    assert {one.metadata["document_id"] for one in retriever.invoke(QUERY, returns="documents", k=2)} >= {"ships.txt"}


def test_filters_in_the_constructor_and_in_the_call(index: LongDocumentIndex) -> None:
    even = M2LongDocumentRetriever(index=index, filter={"even": True})
    assert {one.id for one in even.invoke(QUERY)} == {"bread.txt", "trains.txt"}
    assert [one.id for one in even.invoke(QUERY, filter={"subject": "courts"})] == ["courts.txt"]
    assert even.invoke(QUERY, filter={"subject": "nothing"}) == []
    assert len(even.invoke(QUERY, filter={})) == 4


def test_names_of_its_own_fields(index: LongDocumentIndex) -> None:
    document = Document(id="clash", page_content="Clashing names, in green.", metadata={"score": "theirs"})
    try:
        M2LongDocumentRetriever(index=index).add_documents([document])
        asked: dict[str, Any] = {"index": index, "k": 1, "filter": {"score": "theirs"}, "mode": "dense"}
        [hidden] = M2LongDocumentRetriever(**asked).invoke("names")
        assert hidden.metadata["score"] == hidden.metadata["document_score"]
        [kept] = M2LongDocumentRetriever(**asked, prefix="m2_").invoke("names")
        assert kept.metadata["score"] == "theirs" and kept.metadata["m2_score"] == hidden.metadata["score"]
        assert not any(name.startswith("m2_m2_") or name == "passages" for name in kept.metadata)
    finally:
        index.delete("clash")


async def test_async_leaves_the_event_loop_free(
    index: LongDocumentIndex, embeddings: M2Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = M2LongDocumentRetriever(index=index, k=2)
    expected = retriever.invoke(QUERY)
    reached, go_on = asyncio.Event(), threading.Event()
    loop, search = asyncio.get_running_loop(), LongDocumentIndex.search

    def slow(self: LongDocumentIndex, *args: Any, **options: Any) -> Any:
        loop.call_soon_threadsafe(reached.set)
        assert go_on.wait(20)
        return search(self, *args, **options)

    monkeypatch.setattr(LongDocumentIndex, "search", slow)
    task = asyncio.create_task(retriever.ainvoke(QUERY, k=2, filter={}, returns="documents"))
    await asyncio.wait_for(reached.wait(), 20)  # the loop turns while the search stands still
    go_on.set()
    assert await task == expected


def test_in_a_chain_and_in_batches(index: LongDocumentIndex) -> None:
    retriever = M2LongDocumentRetriever(index=index, k=1, tags=["long"])
    joined = retriever | RunnableLambda(lambda found: found[0].metadata["subject"])
    chain = {"context": joined, "question": RunnablePassthrough()} | RunnableLambda(str)
    assert chain.invoke(QUERY) == str({"context": "ships", "question": QUERY})
    assert retriever.batch([QUERY, "baking a loaf"])[1][0].id == "bread.txt"


def test_adding_documents(embeddings: M2Embeddings, tmp_path: Path) -> None:
    with LongDocumentIndex(tmp_path / "index", embeddings.embedder) as opened:
        retriever = M2LongDocumentRetriever(index=opened)
        unnamed = [Document(page_content="Bread and salt.", metadata={"n": n}) for n in (1, 2)]
        assert retriever.add_documents(unnamed).added == 2, "two documents of one text and other metadata"
        assert retriever.add_documents(unnamed).unchanged == 2
        named = [Document(id="own", page_content="Butter."), Document(id="own", page_content="Honey.")]
        report = retriever.add_documents(named)
        assert report.added == 1 and "is taken by another document" in str(report.failed[0].cause)
        assert retriever.add_documents(named, ids=["x", "y"]).added == 2
        report = retriever.add_documents([Document(id="empty", page_content=" "), Document(id="z", page_content="Z.")])
        assert report.added == 1 and [failure.id for failure in report.failed] == ["empty"]
        assert {"own", "x", "y", "z"} < set(opened.ids()) and len(opened) == 6
        with pytest.raises(ValueError, match="1 ids for 2 documents"):
            retriever.add_documents(named, ids=["x"])


def test_a_document_deleted_while_it_is_found(index: LongDocumentIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    get = LongDocumentIndex.get
    monkeypatch.setattr(LongDocumentIndex, "get", lambda self, id: None if id == "ships.txt" else get(self, id))
    assert {one.id for one in M2LongDocumentRetriever(index=index, k=4).invoke(QUERY)} == {
        *("bread.txt", "trains.txt", "courts.txt")
    }


def test_passages_of_a_model_that_gives_none_go_by_words(server: EmbeddingServer, tmp_path: Path) -> None:
    remote = M2Embeddings(model="any-model", base_url=server.url)
    with LongDocumentIndex(tmp_path / "index", remote.embedder) as opened:
        retriever = M2LongDocumentRetriever(index=opened, mode="lexical", returns="passages")
        retriever.add_documents(DOCUMENTS)
        (found,) = retriever.invoke("ovens and dough", k=1)
        assert found.metadata["document_id"] == "bread.txt"
        assert found.metadata["score"] == found.metadata["document_score"]
        assert M2LongDocumentRetriever(index=opened, mode="dense", returns="passages").invoke("xylophones") == []


def test_an_index_without_passages_says_so(server: EmbeddingServer, tmp_path: Path) -> None:
    remote = M2Embeddings(model="any-model", base_url=server.url)
    with LongDocumentIndex(tmp_path / "index", remote.embedder, lexical=None) as opened:
        retriever = M2LongDocumentRetriever(index=opened)
        retriever.add_documents(DOCUMENTS)
        assert [one.metadata["passages"] for one in retriever.invoke(QUERY, k=2)] == [[], []]
        with pytest.raises(ValueError, match="holds no passages.*returns='documents'"):
            retriever.invoke(QUERY, returns="passages")


def test_mistakes_of_the_caller(index: LongDocumentIndex) -> None:
    for wrong in (
        {"k": 0},
        {"returns": "chunks"},
        {"mode": "sparse"},
        {"rescore": 2.0},
        {"search_kwargs": {}},
        {"n_passages": -1},
    ):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            M2LongDocumentRetriever(index=index, **wrong)
    retriever = M2LongDocumentRetriever(index=index)
    with pytest.raises(TypeError, match="top_k"):
        retriever.invoke(QUERY, top_k=3)
    with pytest.raises(ValueError, match="returns is 'chunks'"):
        retriever.invoke(QUERY, returns="chunks")
    with pytest.raises(InvalidInputError, match="k must be at least 1"):
        retriever.invoke(QUERY, k=0)
    with pytest.raises(InvalidInputError, match="only white space"):
        retriever.invoke("  ")


def test_modes(index: LongDocumentIndex) -> None:
    """What the index finds by each mode, which it chooses itself if it is not told."""
    for mode in (None, *index.modes):
        found = M2LongDocumentRetriever(index=index, k=3, mode=mode).invoke("garden")
        assert [one.metadata["score"] for one in found] == [hit.score for hit in index.search("garden", 3, mode=mode)]
