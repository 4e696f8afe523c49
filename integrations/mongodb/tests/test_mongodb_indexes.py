"""Search indexes: made, waited for, compared with what was asked; by either client."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Doc, Loop
from pymongo import AsyncMongoClient, MongoClient
from support.atlas_front import AtlasFront
from support.fake_time import FakeTime

from m2rag.errors import InvalidInputError, StoreError
from m2rag_mongodb import (
    DefinitionMismatchError,
    IndexNotReadyError,
    IndexProgress,
    SearchUnavailableError,
    TextIndex,
    VectorIndex,
    aensure_index,
    ensure_index,
)

INDEX = VectorIndex(64, filters=("metadata.year", "metadata.tags"))
Ensure = Callable[..., None]


@pytest.fixture
def client(front: AtlasFront) -> Iterator[MongoClient[Doc]]:
    opened: MongoClient[Doc] = MongoClient(front.uri)
    yield opened
    opened.close()


@pytest.fixture(params=["client", "async client"])
def ensure(request: pytest.FixtureRequest, front: AtlasFront, client: MongoClient[Doc]) -> Iterator[Ensure]:
    """`ensure_index` or its twin, on the collection m2rag_own.docs."""
    if request.param == "client":
        yield lambda index, **options: ensure_index(client["m2rag_own"]["docs"], index, **options)
        return
    loop: Loop = request.getfixturevalue("loop")
    aclient: AsyncMongoClient[Doc] = AsyncMongoClient(front.uri)
    yield lambda index, **options: loop.run(aensure_index(aclient["m2rag_own"]["docs"], index, **options))
    loop.run(aclient.close())


def listed(client: MongoClient[Doc]) -> dict[str, Doc]:
    return {one["name"]: one for one in client["m2rag_own"]["docs"].list_search_indexes()}


def test_the_definition() -> None:
    assert VectorIndex(8, "v", "mine", "dotProduct", "scalar", ("year",)).definition() == {
        "fields": [
            {"type": "vector", "path": "v", "numDimensions": 8, "similarity": "dotProduct", "quantization": "scalar"},
            {"type": "filter", "path": "year"},
        ]
    }
    for wrong in ({"dimension": 0}, {"dimension": 8, "filters": "year"}):
        with pytest.raises(InvalidInputError):
            VectorIndex(**wrong)  # type: ignore[arg-type]


def test_made_with_its_collection_and_left_alone_afterwards(
    ensure: Ensure, front: AtlasFront, client: MongoClient[Doc]
) -> None:
    ensure(INDEX)
    found = listed(client)["vector_index"]
    assert (found["status"], found["type"], found["latestDefinition"]) == ("READY", "vectorSearch", INDEX.definition())
    made = front.commands.count("createSearchIndexes")
    ensure(INDEX)
    ensure(VectorIndex(64, filters=("metadata.year",)), timeout=0)  # fewer filter fields than there are
    assert front.commands.count("createSearchIndexes") == made == 1
    ensure(TextIndex(("text", "title"), analyzer="lucene.german"))
    assert set(listed(client)) == {"vector_index", "text_index"}


def test_waited_for_with_progress(ensure: Ensure, front: AtlasFront) -> None:
    front.hold = True
    time, seen = FakeTime(), list[IndexProgress]()

    def progress(state: IndexProgress) -> None:
        seen.append(state)
        front.hold = len(seen) < 4

    ensure(INDEX, progress=progress, clock=time.clock, sleep=time.sleep)
    assert [(state.status, state.queryable) for state in seen] == [("BUILDING", False)] * 4 + [("READY", True)]
    assert [state.seconds for state in seen] == pytest.approx([0, 0.5, 1.25, 2.375, 4.0625])
    assert {(state.name, state.timeout) for state in seen} == {("vector_index", 600.0)}


def test_the_time_limit_is_kept(ensure: Ensure, front: AtlasFront) -> None:
    front.hold = True
    time = FakeTime()
    with pytest.raises(IndexNotReadyError, match=r"'vector_index' of m2rag_own.docs is not ready.*BUILDING") as caught:
        ensure(INDEX, timeout=60, clock=time.clock, sleep=time.sleep)
    assert caught.value.status == "BUILDING" and 50 < caught.value.seconds <= 60 and sum(time.waits) <= 60
    assert max(time.waits) == 5.0 and len(time.waits) < 20
    front.hold = False
    ensure(INDEX)


def test_an_index_that_fails_says_why(ensure: Ensure, front: AtlasFront) -> None:
    front.broken = "out of space"
    with pytest.raises(StoreError, match="'vector_index' of m2rag_own.docs failed to build: out of space"):
        ensure(INDEX)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (VectorIndex(32), "numDimensions is 64, not 32"),
        (VectorIndex(64, similarity="euclidean"), "similarity is cosine, not euclidean"),
        (VectorIndex(64, path="v"), "no vector field 'v'"),
        (VectorIndex(64, quantization="binary"), "quantization is none, not binary"),
        (VectorIndex(64, filters=("metadata.year", "title")), "no filter fields title"),
        (TextIndex(("text",), name="vector_index"), "of type vectorSearch, not search"),
    ],
)
def test_another_index_of_the_name_is_an_error(ensure: Ensure, client: MongoClient[Doc], other: Any, said: str) -> None:
    ensure(INDEX)
    with pytest.raises(DefinitionMismatchError, match=said):
        ensure(other)
    assert listed(client)["vector_index"]["latestDefinition"] == INDEX.definition()


def test_a_text_index_with_another_analyzer(ensure: Ensure) -> None:
    ensure(TextIndex(("text",)))
    with pytest.raises(DefinitionMismatchError, match="lucene.english.*not.*lucene.german"):
        ensure(TextIndex(("text",), analyzer="lucene.german"))


def test_changed_on_request_it_is_waited_for_again(ensure: Ensure, front: AtlasFront, client: MongoClient[Doc]) -> None:
    ensure(INDEX)
    front.build_seconds = 0.3
    other, seen = VectorIndex(64, filters=("title",)), list[IndexProgress]()
    ensure(other, update=True, progress=seen.append)
    assert listed(client)["vector_index"]["latestDefinition"] == other.definition()
    assert [(state.status, state.queryable) for state in seen] == [("BUILDING", True), ("READY", True)]
    with pytest.raises(DefinitionMismatchError):  # the type of an index cannot be changed
        ensure(TextIndex(("text",), name="vector_index"), update=True)


def test_what_a_server_adds_is_no_difference() -> None:
    found = INDEX.definition()
    found["fields"][0].update(quantization="none", hnswOptions={"maxEdges": 16})
    found["fields"].append({"type": "filter", "path": "more"})
    found["numPartitions"] = 1
    assert INDEX.differences(found) == []
    text = TextIndex(("text",))
    field = {"type": "string", "analyzer": "lucene.english", "indexOptions": "offsets"}
    for listed_as in (field, [field]):
        assert text.differences({"mappings": {"dynamic": False, "fields": {"text": listed_as}}}) == []


@pytest.mark.parametrize("done_first", [False, True])
def test_the_connection_breaks_while_it_is_made(
    ensure: Ensure, front: AtlasFront, client: MongoClient[Doc], done_first: bool
) -> None:
    for command in ("create", "createSearchIndexes"):
        front.fail(1, command, code=0, done_first=done_first)
    ensure(INDEX)
    assert set(listed(client)) == {"vector_index"}


def test_a_server_without_search(mongod: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "m2rag")
    client: MongoClient[Doc] = MongoClient("127.0.0.1", mongod, directConnection=True)
    with pytest.raises(SearchUnavailableError, match="m2rag_bare.docs has no vector search.*takes Atlas"):
        ensure_index(client["m2rag_bare"]["docs"], INDEX)
    client.close()
    assert caplog.messages == []  # and it was not tried again
