"""A page under another name, with facets to choose from and questions to begin with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.serving import serving
from tiny_models import FakeBackend

from m2rag import Document, LongDocumentIndex, M2Embedder
from m2rag.server.app import Server
from m2rag.server.presentation import Presentation

ROWS: dict[str, dict[str, Any]] = {
    "a": {"party": "Alder & Sons", "year": 2019, "tags": ["x", "y", "x"]},
    "b": {"party": "Birch", "year": 2021, "tags": ["y"]},
    "c": {"party": "Birch", "year": 2019, "signed": True},
    "d": {},
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    place = tmp_path_factory.mktemp("presented") / "index"
    with LongDocumentIndex(place, M2Embedder(backend=FakeBackend())) as index:
        index.add(Document(id, f"the text of {id}", metadata=metadata) for id, metadata in ROWS.items())
    shown = Presentation(
        title="Deeds <& more>",
        placeholder='Ask "them"',
        facets={"party": "Party", "year": "Signed in", "tags": "Tags"},
        questions=("Who pays?",),
    )
    server = Server(FakeBackend(), index=place, presentation=shown)
    with serving(server.app) as address, httpx.Client(base_url=address) as client:
        yield client


def listed(client: httpx.Client, **having: Any) -> tuple[list[str], int]:
    answer = client.get("/api/documents", params={"having": json.dumps(having)}).raise_for_status().json()
    return [document["id"] for document in answer["documents"]], answer["total"]


def test_name_and_placeholder_are_in_the_page_itself_as_text(client: httpx.Client) -> None:
    html = client.get("/").text
    assert "<title>Deeds &lt;&amp; more&gt;</title>" in html
    assert "<span>Deeds &lt;&amp; more&gt;</span>" in html
    assert 'placeholder="Ask &quot;them&quot;"' in html
    assert "m2rag</" not in html


def test_facets_have_all_values_with_their_numbers(client: httpx.Client) -> None:
    info = client.get("/api/index").json()
    assert [(facet["name"], facet["label"]) for facet in info["facets"]] == [
        *(("party", "Party"), ("year", "Signed in"), ("tags", "Tags")),
    ]
    values = {facet["name"]: [(v["value"], v["documents"]) for v in facet["values"]] for facet in info["facets"]}
    assert values["party"] == [("Alder & Sons", 1), ("Birch", 2)]
    assert values["year"] == [(2019, 2), (2021, 1)]
    assert values["tags"] == [("x", 1), ("y", 2)]
    assert info["questions"] == ["Who pays?"]


def test_the_list_by_facets_is_what_a_search_by_them_finds(client: httpx.Client) -> None:
    for having in ({"party": "Birch"}, {"year": 2019}, {"party": "Birch", "year": 2019}, {"tags": "y"}, {"year": 1}):
        body = {"query": "text", "filter": having, "mode": "dense"}
        hits = client.post("/api/search", json=body).raise_for_status().json()["hits"]
        ids = sorted(hit["id"] for hit in hits)
        assert listed(client, **having) == (ids, len(ids))
    assert listed(client) == ([*ROWS], len(ROWS))
    paged = client.get("/api/documents", params={"having": '{"party": "Birch"}', "offset": 1, "limit": 1}).json()
    assert ([document["id"] for document in paged["documents"]], paged["total"]) == (["c"], 2)


@pytest.mark.parametrize("having", ["{", "[]", '{"party": null}', '{"party": ["Birch"]}', '{"signed": true}'])
def test_what_is_no_choice_of_facets_is_refused(client: httpx.Client, having: str) -> None:
    answer = client.get("/api/documents", params={"having": having})
    assert answer.status_code == 400
    if "signed" in having:
        assert "the facets are party, year, tags" in answer.json()["error"]["message"]


def test_facets_follow_what_is_deleted_and_added(tmp_path: Path) -> None:
    place = tmp_path / "index"
    with LongDocumentIndex(place, M2Embedder(backend=FakeBackend())) as index:
        index.add(Document(id, f"the text of {id}", metadata=metadata) for id, metadata in ROWS.items())
    server = Server(FakeBackend(), index=place, presentation=Presentation(facets={"year": "Year", "suffix": "Kind"}))
    with serving(server.app) as address, httpx.Client(base_url=address) as client:

        def years() -> dict[str, list[Any]]:
            facets = client.get("/api/index").json()["facets"]
            return {facet["name"]: [value["value"] for value in facet["values"]] for facet in facets}

        assert years() == {"year": [2019, 2021], "suffix": []}
        client.delete("/api/documents/b").raise_for_status()
        assert years()["year"] == [2019]
        client.put("/api/documents/e.md", content=b"# E\n\nSome words.").raise_for_status()
        while client.get("/api/indexing").json()["active"]:
            pass
        assert years() == {"year": [2019], "suffix": [".md"]}


def test_without_facets_nothing_is_offered_and_no_list_by_them(tmp_path: Path) -> None:
    server = Server(FakeBackend(), index=tmp_path / "index")
    with serving(server.app) as address, httpx.Client(base_url=address) as client:
        info = client.get("/api/index").json()
        assert info["facets"] == [] and info["questions"] == []
        assert "<title>m2rag</title>" in client.get("/").text
        answer = client.get("/api/documents", params={"having": '{"year": 1}'})
        assert answer.status_code == 400 and "the facets are none" in answer.json()["error"]["message"]


def test_an_empty_text_is_an_error() -> None:
    for options in ({"title": " "}, {"facets": {"year": ""}}, {"questions": ("",)}):
        with pytest.raises(ValueError, match="must not be empty"):
            Presentation(**options)  # type: ignore[arg-type]
