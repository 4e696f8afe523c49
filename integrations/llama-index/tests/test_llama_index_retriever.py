"""`M2LongDocumentRetriever`: whole documents, passages, offsets, filters; in a folder and on a server."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, QueryBundle
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from qdrant_client import QdrantClient
from support.embedding_server import EmbeddingServer

from llama_index.embeddings.m2rag import M2Embedding, M2LongDocumentRetriever
from m2rag import LongDocumentIndex
from m2rag.errors import IndexMismatchError, InvalidInputError

SUBJECTS = {
    "bread": "Mix flour, water, salt and yeast, and let the dough rise before baking the loaf. ",
    "ships": "The ship lay in the harbour while her sails were mended and the crew waited. ",
    "trains": "The locomotive left the station and pulled its carriages along the railway. ",
    "courts": "The judge heard the witness, and the jury found the accused not guilty. ",
}
DOCUMENTS = [
    Document(
        id_=f"{name}.txt",
        text=f"{17 * text}\n\nThe colour of the {name} was a bright green.\n\n{17 * text}",
        metadata={"subject": name, "n": i, "tags": [f"t{i}", "all"]},
    )
    for i, (name, text) in enumerate(SUBJECTS.items())
]
QUERY = "a harbour with ships in it"


@pytest.fixture(scope="module", params=["folder", "server"])
def index(
    request: pytest.FixtureRequest,
    embedding: M2Embedding,
    tmp_path_factory: pytest.TempPathFactory,
    qdrant: QdrantClient,
    qdrant_url: str,
) -> Iterator[LongDocumentIndex]:
    name = f"m2rag-test-{uuid.uuid4().hex}"
    where = tmp_path_factory.mktemp("retriever") / "index" if request.param == "folder" else f"{qdrant_url}/{name}"
    with LongDocumentIndex(where, embedding.embedder) as opened:
        report = M2LongDocumentRetriever(opened).add_documents(DOCUMENTS)
        assert (report.added, report.failed) == (4, [])
        yield opened
    if request.param == "server":
        qdrant.delete_collection(name)


def test_whole_documents(index: LongDocumentIndex) -> None:
    found = M2LongDocumentRetriever(index, similarity_top_k=9).retrieve(QUERY)
    assert len(found) == 4 and found[0].node_id == found[0].node.ref_doc_id == "ships.txt"
    scores = [hit.score for hit in found]
    assert scores == sorted(scores, reverse=True) and all(type(score) is float for score in scores)
    for hit in found:
        original = next(document for document in DOCUMENTS if document.id_ == hit.node_id)
        assert hit.text == original.text and original.metadata.items() <= hit.metadata.items()
        assert (hit.node.start_char_idx, hit.node.end_char_idx) == (0, len(hit.text))
        assert hit.metadata["n_tokens"] > 400 and hit.metadata["truncated"] is False
        for passage in hit.metadata["passages"]:
            assert passage["text"] == hit.text[passage["start_char_idx"] : passage["end_char_idx"]] != ""
        shown = hit.node.get_content("llm")
        assert "subject: " in shown and "n_tokens" not in shown and "passages" not in shown
    assert [hit.node_id for hit in M2LongDocumentRetriever(index).retrieve(QueryBundle(QUERY))] == [
        hit.node_id for hit in found[:2]
    ]


def test_best_passages(index: LongDocumentIndex) -> None:
    found = M2LongDocumentRetriever(index, similarity_top_k=4, returns="passages", n_passages=2).retrieve(QUERY)
    assert len(found) == 4 == len({hit.node_id for hit in found}) and found[0].node.ref_doc_id == "ships.txt"
    scores = [hit.score for hit in found]
    assert scores == sorted(scores, reverse=True)
    texts = {document.id_: document.text for document in DOCUMENTS}
    sources = [hit.node.ref_doc_id for hit in found]
    for hit, source in zip(found, sources, strict=True):
        assert hit.text == texts[source][hit.node.start_char_idx : hit.node.end_char_idx] != ""
    assert max(sources.count(source) for source in sources) <= 2


@pytest.mark.parametrize(
    "filters, expected",
    [
        ({"n": 2}, ["trains.txt"]),
        ({"tags": "t0", "subject": "bread"}, ["bread.txt"]),
        ({"subject": "nothing"}, []),
        ({"n": {"gte": 2, "lt": 3}}, ["trains.txt"]),
        (MetadataFilters(filters=[MetadataFilter(key="n", value=3)]), ["courts.txt"]),
        (
            MetadataFilters(
                filters=[
                    MetadataFilter(key="n", value=1, operator=FilterOperator.GT),
                    MetadataFilter(key="n", value=2.5, operator=FilterOperator.LTE),
                    MetadataFilter(key="subject", value=["trains", "ships"], operator=FilterOperator.IN),
                ]
            ),
            ["trains.txt"],
        ),
        (
            MetadataFilters(
                filters=[
                    MetadataFilter(key="tags", value="all", operator=FilterOperator.CONTAINS),
                    MetadataFilter(key="subject", value="ships"),
                ]
            ),
            ["ships.txt"],
        ),
    ],
)
def test_filters(index: LongDocumentIndex, filters: Any, expected: list[str]) -> None:
    found = M2LongDocumentRetriever(index, similarity_top_k=9, filters=filters).retrieve(QUERY)
    assert [hit.node_id for hit in found] == expected


@pytest.mark.parametrize(
    "filters",
    [
        MetadataFilters(filters=[MetadataFilter(key="n", value=3, operator=FilterOperator.NE)]),
        MetadataFilters(filters=[MetadataFilter(key="n", value=v, operator=FilterOperator.IN) for v in ([1], [2])]),
        MetadataFilters(filters=[MetadataFilters(filters=[MetadataFilter(key="n", value=3)])]),
        MetadataFilters(filters=[MetadataFilter(key="n", value=n) for n in (1, 2)]),
        MetadataFilters(filters=[MetadataFilter(key=k, value=1) for k in "ab"], condition=FilterCondition.OR),
        MetadataFilters(filters=[MetadataFilter(key="n", value=1)], condition=FilterCondition.NOT),
    ],
)
def test_filters_the_index_has_not_are_refused(index: LongDocumentIndex, filters: MetadataFilters) -> None:
    with pytest.raises(ValueError, match="the index (compares|takes|joins)"):
        M2LongDocumentRetriever(index, filters=filters)


async def test_async_leaves_the_event_loop_free(index: LongDocumentIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = M2LongDocumentRetriever(index)
    expected = retriever.retrieve(QUERY)
    reached, go_on = asyncio.Event(), threading.Event()
    loop, search = asyncio.get_running_loop(), LongDocumentIndex.search

    def slow(self: LongDocumentIndex, *args: Any, **options: Any) -> Any:
        loop.call_soon_threadsafe(reached.set)
        assert go_on.wait(20)
        return search(self, *args, **options)

    monkeypatch.setattr(LongDocumentIndex, "search", slow)
    task = asyncio.create_task(retriever.aretrieve(QUERY))
    await asyncio.wait_for(reached.wait(), 20)  # the loop turns while the search stands still
    go_on.set()
    assert [(hit.node_id, hit.score) for hit in await task] == [(hit.node_id, hit.score) for hit in expected]


def test_callbacks_and_a_query_engine(index: LongDocumentIndex) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    retriever = M2LongDocumentRetriever(
        index, returns="passages", similarity_top_k=1, callback_manager=CallbackManager([debug])
    )
    response = RetrieverQueryEngine.from_args(retriever, llm=MockLLM()).query(QUERY)
    assert response.source_nodes[0].node.ref_doc_id == "ships.txt" and "The ship lay in the harbour" in str(response)
    assert len(debug.get_event_pairs(CBEventType.RETRIEVE)) == 1


def test_names_of_its_own_fields(index: LongDocumentIndex) -> None:
    clash = Document(id_="clash", text="Clashing names, in green.", metadata={"truncated": "theirs"})
    try:
        M2LongDocumentRetriever(index).add_documents([clash])
        [hidden] = M2LongDocumentRetriever(index, filters={"truncated": "theirs"}).retrieve("names")
        assert hidden.metadata["truncated"] is False
        [kept] = M2LongDocumentRetriever(index, filters={"truncated": "theirs"}, prefix="m2_").retrieve("names")
        assert kept.metadata["truncated"] == "theirs" and kept.metadata["m2_truncated"] is False
    finally:
        index.delete("clash")


def test_adding_documents(embedding: M2Embedding, tmp_path: Path) -> None:
    with LongDocumentIndex(tmp_path / "index", embedding.embedder) as opened:
        retriever = M2LongDocumentRetriever(opened)
        assert retriever.add_documents(DOCUMENTS).added == 4
        changed = Document(id_="ships.txt", text="No ship any more.")
        report = retriever.add_documents([*DOCUMENTS[:1], changed, Document(id_="empty", text=" ")])
        assert (report.unchanged, report.replaced) == (1, 1) and [one.id for one in report.failed] == ["empty"]
        twice = [Document(id_="twice", text="Once."), Document(id_="twice", text="Twice.")]
        report = retriever.add_documents(twice)
        assert report.added == 1 and "is taken by another document" in str(report.failed[0].cause)
    with LongDocumentIndex(tmp_path / "short", M2Embedding(max_tokens=256).embedder) as opened:
        retriever = M2LongDocumentRetriever(opened)
        report = retriever.add_documents(DOCUMENTS[:1], on_too_long="error")
        assert "the limit is 256" in str(report.failed[0].cause) and len(opened) == 0
        assert retriever.add_documents(DOCUMENTS[:1]).added == 1
        [hit] = retriever.retrieve("bread")
        assert hit.metadata["truncated"] is False and hit.text == DOCUMENTS[0].text
    with pytest.raises(IndexMismatchError, match="normalize=false"):
        LongDocumentIndex(tmp_path / "index", M2Embedding(normalize=False).embedder)


def test_a_document_deleted_while_it_is_found(index: LongDocumentIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    get = LongDocumentIndex.get
    monkeypatch.setattr(LongDocumentIndex, "get", lambda self, id: None if id == "ships.txt" else get(self, id))
    assert len(M2LongDocumentRetriever(index, similarity_top_k=4).retrieve(QUERY)) == 3


def test_passages_of_a_model_that_gives_none_go_by_words(server: EmbeddingServer, tmp_path: Path) -> None:
    remote = M2Embedding("any-model", base_url=server.url)
    with LongDocumentIndex(tmp_path / "index", remote.embedder) as opened:
        retriever = M2LongDocumentRetriever(opened, similarity_top_k=1, mode="lexical", returns="passages")
        retriever.add_documents(DOCUMENTS)
        (found,) = retriever.retrieve("ovens and dough")
        assert found.node.source_node.node_id == "bread.txt" and found.score == found.metadata["document_score"]
        assert M2LongDocumentRetriever(opened, mode="dense", returns="passages").retrieve("xylophones") == []


def test_an_index_without_passages_says_so(server: EmbeddingServer, tmp_path: Path) -> None:
    remote = M2Embedding("any-model", base_url=server.url)
    with LongDocumentIndex(tmp_path / "index", remote.embedder, lexical=None) as opened:
        M2LongDocumentRetriever(opened).add_documents(DOCUMENTS)
        assert [hit.metadata["passages"] for hit in M2LongDocumentRetriever(opened).retrieve(QUERY)] == [[], []]
        with pytest.raises(ValueError, match="holds no passages.*returns='documents'"):
            M2LongDocumentRetriever(opened, returns="passages").retrieve(QUERY)


def test_mistakes_of_the_caller(index: LongDocumentIndex) -> None:
    wrong: list[dict[str, Any]] = [
        {"similarity_top_k": 0},
        {"returns": "chunks"},
        {"n_passages": -1},
        {"n_passages": 0, "returns": "passages"},
        {"rescore": 2.0},
        {"mode": "sparse"},
    ]
    for options in wrong:
        with pytest.raises(ValueError, match=next(iter(options))):
            M2LongDocumentRetriever(index, **options)
    with pytest.raises(InvalidInputError, match="only white space"):
        M2LongDocumentRetriever(index).retrieve("  ")
