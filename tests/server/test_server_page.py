"""The page's files and the API behind them: what is answered to what, also to what nobody should send."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from support.serving import serving
from tiny_models import FakeBackend

from m2rag.errors import StoreError
from m2rag.server.app import Server
from m2rag.server.settings import ServerSettings

LIMIT = 150_000
WALK = "# A walk\n\nThrough the forest, past the lake, over the hill."
SOUP = "# Soup\n\nBoil water, add salt and potatoes, stir. Naïve 𝔘nicode 🍲 soup."


class Site:
    """A client of the running server, and the server itself."""

    def __init__(self, server: Server, address: str) -> None:
        self.server = server
        self.address = address
        self.client = httpx.Client(base_url=address, timeout=30)
        self.get, self.put, self.post, self.delete = (
            getattr(self.client, name) for name in ("get", "put", "post", "delete")
        )

    def raw(self, method: str, target: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
        """Status and JSON of a request whose target is sent as it stands."""
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=30)
        try:
            connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in {"Content-Length": str(len(body or b"")), **(headers or {})}.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            content = response.read()
            return response.status, json.loads(content) if content.startswith(b"{") else content
        finally:
            connection.close()

    def finished(self) -> dict[str, Any]:
        deadline = time.monotonic() + 30
        while (progress := self.get("/api/indexing").json())["active"]:
            assert time.monotonic() < deadline, "indexing never ended"
            time.sleep(0.01)
        return progress

    def search(self, **wanted: Any) -> httpx.Response:
        return self.post("/api/search", json=wanted)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    settings = ServerSettings(max_request_bytes=LIMIT)
    index = tmp_path_factory.mktemp("page") / "index"
    server = Server(FakeBackend(), settings=settings, index=index, temporary=True)
    with serving(server.app) as address:
        yield Site(server, address)


@pytest.fixture
def site(running: Site) -> Site:
    """The server with two documents."""
    kept = {"walks/forest.md": WALK, "soup.md": SOUP}
    there = {document["id"] for document in running.get("/api/documents", params={"limit": 200}).json()["documents"]}
    for id in there - set(kept):
        running.delete(f"/api/documents/{quote(id, safe='')}")
    for id in set(kept) - there:
        running.put(f"/api/documents/{id}", content=kept[id].encode())
    running.finished()
    return running


def told(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer that is none."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


# The files


def test_every_file_of_the_page_is_served(site: Site) -> None:
    page = site.get("/")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    folder = files("m2rag.server") / "static"
    for file in folder.iterdir():
        answer = page if file.name == "index.html" else site.get(f"/page/{file.name}")
        assert answer.content == file.read_bytes(), file.name
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert site.get("/favicon.ico").headers["content-type"] == "image/svg+xml"
    assert site.get("/page/app.js").headers["content-type"] == "text/javascript; charset=utf-8"


def test_what_the_browser_has_is_not_sent_again(site: Site) -> None:
    tag = site.get("/page/app.js").headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = site.get("/page/app.js", headers={"if-none-match": known})
        assert again.status_code == 304 and not again.content and again.headers["etag"] == tag
    assert site.get("/page/app.js", headers={"if-none-match": '"other"'}).status_code == 200
    assert site.client.head("/").status_code == 200


def test_files_name_only_files_that_are_there() -> None:
    folder = files("m2rag.server") / "static"
    names = {file.name for file in folder.iterdir()}
    for file in folder.iterdir():
        text = file.read_text("utf-8")
        found = re.findall(r"""(?:src|href)=["']/page/([^"']+)|from ["']\./([^"']+)""", text)
        assert {a or b for a, b in found} <= names
        # Nothing from elsewhere, nothing the policy of the server would refuse, no way for text to become markup.
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), file.name
        assert "innerHTML" not in re.sub(r"//.*", "", text) and "insertAdjacentHTML" not in text
        if file.name.endswith(".html"):
            assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text)


@pytest.mark.parametrize(
    "target",
    [
        "/page/../errors.py", "/page/..%2ferrors.py", "/page/%2e%2e/errors.py", "/page/%2e%2e%2ferrors.py",
        "/page//etc/passwd", "/page/", "/page", "/page/index.html/..", "/page/app.js%00", "/page/APP.JS",
        "/static/app.js", "//etc/passwd", "/../../etc/passwd",
    ],
)  # fmt: skip
def test_nothing_else_is_served(site: Site, target: str) -> None:
    status, body = site.raw("GET", target)
    assert status == 404 and set(body) == {"error"}


# Documents


def test_a_document_goes_in_and_comes_back(site: Site) -> None:
    answer = site.put("/api/documents/notes/a%20b.md", content=b"# Two\n\nwords")
    assert answer.status_code == 202 and answer.json() == {"id": "notes/a b.md", "state": "queued"}
    progress = site.finished()
    assert progress["added"] == progress["done"] == 1 and progress["failures"] == [] and progress["current"]
    for target in ("/api/documents/notes/a%20b.md", "/api/documents/notes%2Fa%20b.md"):
        document = site.get(target).json()
        assert document["id"] == "notes/a b.md" and document["text"] == "# Two\n\nwords" and document["title"] == "Two"
        assert document["n_characters"] == 12 and document["n_tokens"] > 2 and document["metadata"]["suffix"] == ".md"
        assert (document["n_windows"], document["truncated"]) == (1, False)
    assert site.delete("/api/documents/notes%2Fa%20b.md").json() == {"id": "notes/a b.md", "deleted": True}
    gone = site.delete("/api/documents/notes%2Fa%20b.md")
    assert gone.status_code == 404 and told(gone)["code"] == "not_found"
    assert site.get("/api/documents/notes%2Fa%20b.md").status_code == 404


def test_failures_are_told_by_the_progress(site: Site) -> None:
    site.put("/api/documents/broken.pdf", content=b"no PDF")
    [failure] = site.finished()["failures"]
    assert failure["id"] == "broken.pdf" and failure["error"] == "DocumentError" and "broken.pdf" in failure["message"]


def test_listing(site: Site) -> None:
    everything = site.get("/api/documents").json()
    assert everything["total"] == 2 and [d["id"] for d in everything["documents"]] == ["soup.md", "walks/forest.md"]
    assert everything["documents"][0]["title"] == "Soup" and "text" not in everything["documents"][0]
    assert site.get("/api/documents", params={"offset": 1, "limit": 1}).json()["documents"][0]["title"] == "A walk"
    assert site.get("/api/documents", params={"prefix": "walks/"}).json()["total"] == 1
    assert site.get("/api/documents", params={"offset": 2**31 - 1}).json()["documents"] == []


def test_the_index_describes_itself(site: Site) -> None:
    info = site.get("/api/index").json()
    assert info["documents"] == 2 and info["tokens"] > 20 and info["temporary"] is True
    assert info["max_tokens"] == 64 and info["max_upload_bytes"] == LIMIT
    assert {".md", ".pdf", ".jsonl"} <= set(info["suffixes"]) and ".gz" in info["packings"]
    assert set(info["modes"]) == {"hybrid", "dense", "lexical"}
    fields = {field["name"]: field["values"] for field in info["fields"]}
    assert fields["suffix"] == [".md"]


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("", 400), ("%20", 400), ("/etc/passwd.txt", 400), ("../up.txt", 400), ("%2e%2e/up.txt", 400),
        ("%2e%2e%2fup.txt", 400), ("a/%2e/b.txt", 400), ("a//b.txt", 400), ("a%00.txt", 400), ("a%0a.txt", 404),
        ("x" * 1100 + ".txt", 400), ("photo.png", 415), ("none", 415), (".txt", 415), ("a.txt/", 400),
        ("%ff.txt", 202), ("%F0%9F%8D%B2.txt", 202), ("a%5Cb.txt", 202), ("%3Cscript%3E.txt", 202),
        ("a%3Fb%23.txt", 202),
    ],
)  # fmt: skip
def test_names_of_uploads(site: Site, name: str, status: int) -> None:
    assert site.raw("PUT", f"/api/documents/{name}", b"some text")[0] == status
    if status == 202:
        progress = site.finished()
        assert (progress["done"], progress["added"]) == (1, 1)


def test_bodies_of_uploads(site: Site) -> None:
    assert site.put("/api/documents/large.txt", content=b"x" * (LIMIT + 1)).status_code == 413
    assert site.put("/api/documents/large.txt", content=(b"x" * 10_000 for _ in range(30))).status_code == 413
    assert site.put("/api/documents/fits.txt", content=(b"word " * 100 for _ in range(30))).status_code == 202
    assert site.put("/api/documents/empty.txt", content=b"").status_code == 202
    progress = site.finished()
    assert [failure["message"] for failure in progress["failures"]] == ["empty.txt is empty"]
    assert site.get("/api/documents/fits.txt").json()["n_windows"] > 1
    for length in ("-1", "abc", "9" * 30):
        status, _ = site.raw("PUT", "/api/documents/odd.txt", headers={"Content-Length": length})
        assert status in (400, 413)


def test_a_full_queue_says_when_to_come_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site.server.library, "_max_waiting", 0)
    answer = site.put("/api/documents/a.txt", content=b"text")
    assert answer.status_code == 429 and told(answer)["code"] == "queue_full"
    assert int(answer.headers["retry-after"]) >= 1


def test_a_document_that_waits_is_not_found_yet(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    library = site.server.library
    assert library is not None
    monkeypatch.setattr(library, "is_pending", lambda id: id == "a.txt")
    assert told(site.get("/api/documents/a.txt"))["code"] == "pending"
    assert told(site.get("/api/documents/b.txt"))["code"] == "not_found"


@pytest.mark.parametrize("id", [".", "..", "%2e%2e", "%00", "%ff%fe", "a%0d%0ab", "x" * 5000, "%ED%A0%80", "", "%20"])
def test_odd_ids_are_not_found(site: Site, id: str) -> None:
    for method in ("GET", "DELETE"):
        status, body = site.raw(method, f"/api/documents/{id}")
        assert status == 404 and body["error"]["message"]


@pytest.mark.parametrize(
    "query",
    [
        "offset=-1", "offset=1.5", "offset=x", f"offset={'9' * 400}", f"offset={2**31}", "offset=NaN", "limit=0",
        "limit=201", "limit=", f"prefix={'x' * 1025}", "unknown=1", "offset=%00",
    ],
)  # fmt: skip
def test_wrong_lists(site: Site, query: str) -> None:
    status, body = site.raw("GET", f"/api/documents?{query}")
    assert status == 400 and body["error"]["message"]


@pytest.mark.parametrize("prefix", ["%00", "%ED%A0%80", "%ff", "%F0%9F%8D%B2"])
def test_odd_prefixes_match_nothing(site: Site, prefix: str) -> None:
    assert site.raw("GET", f"/api/documents?prefix={prefix}") == (200, {"total": 0, "documents": []})


# Search


@pytest.mark.parametrize("mode", [None, "hybrid", "dense", "lexical"])
def test_searching_finds_passages_in_the_text(site: Site, mode: str | None) -> None:
    answer = site.search(query="salt potatoes soup", k=1, mode=mode, n_passages=5).json()
    assert answer["query"] == "salt potatoes soup"
    [hit] = answer["hits"]
    assert hit["id"] == "soup.md" and hit["title"] == "Soup" and hit["n_characters"] == len(SOUP)
    assert set(hit) >= {"score", "document_score", "metadata", "n_tokens", "n_windows", "truncated", "passages"}
    text = site.get("/api/documents/soup.md").json()["text"]
    assert text == SOUP and hit["passages"]
    for passage in hit["passages"]:
        assert text[passage["start"] : passage["end"]] == passage["text"]


def test_filters_and_numbers_of_a_search(site: Site) -> None:
    hits = site.search(query="soup", filter={"path": "walks/forest.md"}).json()["hits"]
    assert [hit["id"] for hit in hits] == ["walks/forest.md"]
    assert site.search(query="soup", filter={"path": "x"}).json()["hits"] == []
    assert len(site.search(query="soup", filter={}).json()["hits"]) == 2
    assert len(site.search(query="soup", filter={"size": len(WALK.encode())}, mode="dense").json()["hits"]) == 1
    beyond = {"size": {"gte": len(WALK.encode()), "lt": 10**6}, "path": {"in": ["x", "walks/forest.md"]}}
    assert [hit["id"] for hit in site.search(query="soup", filter=beyond).json()["hits"]] == ["walks/forest.md"]
    assert len(site.search(query="soup", k=1).json()["hits"]) == 1
    assert site.search(query="soup", n_passages=0).json()["hits"][0]["passages"] == []
    assert site.search(query="soup", mode="dense", rescore=0.5).status_code == 200


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        ({}, "query"), ({"query": ""}, "query"), ({"query": 7}, "query"), ({"query": None}, "query"),
        ({"query": ["a"]}, "query"), ({"query": "x" * 100_001}, "query"),
        ({"query": "a", "k": 0}, "k"), ({"query": "a", "k": 101}, "k"), ({"query": "a", "k": "3"}, "k"),
        ({"query": "a", "k": True}, "k"), ({"query": "a", "k": 1.5}, "k"), ({"query": "a", "k": 10**400}, "k"),
        ({"query": "a", "mode": "best"}, "mode"), ({"query": "a", "mode": 1}, "mode"),
        ({"query": "a", "rescore": 1.5}, "rescore"), ({"query": "a", "rescore": float("nan")}, "rescore"),
        ({"query": "a", "rescore": "0.5"}, "rescore"),
        ({"query": "a", "n_passages": -1}, "n_passages"), ({"query": "a", "n_passages": 51}, "n_passages"),
        ({"query": "a", "filter": []}, "filter"), ({"query": "a", "filter": {"a": None}}, "filter"),
        ({"query": "a", "filter": {"a": {"b": 1}}}, "filter"), ({"query": "a", "filter": {"a": [1]}}, "filter"),
        ({"query": "a", "filter": {"a": float("inf")}}, "filter"),
        ({"query": "a", "filter": {str(i): i for i in range(33)}}, "filter"),
        ({"query": "a", "unknown": 1}, "unknown"),
    ],
)  # fmt: skip
def test_wrong_searches(site: Site, wanted: dict[str, Any], param: str) -> None:
    answer = site.post("/api/search", content=json.dumps(wanted), headers={"content-type": "application/json"})
    assert answer.status_code == 400 and told(answer)["param"] == param
    assert len(answer.content) < 2_000


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b"[" * 10_000, b'{"query": "a"} x', b'{"query": "\\ud800"}'],
)
def test_bodies_that_are_no_search(site: Site, body: bytes) -> None:
    answer = site.post("/api/search", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and told(answer)


@pytest.mark.parametrize("query", [" ", "\u0000", "word " * 5000, "🍲", "!?", "\u202e\ufeff"])
def test_odd_questions(site: Site, query: str) -> None:
    answer = site.search(query=query)
    assert answer.status_code in (200, 400)
    if answer.status_code == 400:
        assert told(answer)


@pytest.mark.parametrize(
    "filter",
    [
        {"": 1}, {"a.b": 1}, {"a[": 1}, {"a[]": 1}, {"[0]": 1}, {'a"b': 1}, {"a\\b": 1}, {"a\0": 1}, {"a": "\0"},
        {"x" * 5000: 1}, {"a": 10**400}, {"a": 2**63}, {"a": "x" * 5000}, {"a": 2**63 - 1}, {"a": -(2**63)},
        {"a": 1e308}, {"a": 5e-324},
        {"🍲": "🍲"}, {"a": True}, {" ": " "}, {"a": -0.0}, {"a": {}}, {"a": {"in": []}}, {"a": {"in": "b"}},
        {"a": {"gte": True}}, {"a": {"gte": 1, "in": [1]}}, {"a": {"between": 1}}, {"a": {"gte": "soon"}},
        {"a": {"gte": 1, "lt": "2020-01-01"}}, {"a": {"in": [1, "b", True]}}, {"a": {"gte": 2**63}}, {"a": {"lt": ""}},
        {"a": {"in": [{"in": [1]}]}}, {"a": {"gte": None}}, {"a": [1]},
    ],
)  # fmt: skip
def test_odd_filters(site: Site, filter: dict[str, Any]) -> None:
    for mode in ("dense", "hybrid"):
        answer = site.search(query="soup", filter=filter, mode=mode)
        assert answer.status_code in (200, 400), answer.text
        assert answer.status_code == 400 and told(answer) or answer.json()["hits"] == []


def test_a_mode_that_the_index_has_not(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(site.server.library), "modes", ("dense",))
    answer = site.search(query="a", mode="lexical")
    assert answer.status_code == 400 and "lexical" in told(answer)["message"] and told(answer)["param"] == "mode"


def test_a_store_that_cannot_be_reached(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> Any:
        raise StoreError("the index cannot be reached")

    assert site.server.library is not None
    for name in ("search", "ids", "get", "delete", "info"):
        monkeypatch.setattr(site.server.library.index, name, unreachable)
    asks: list[Callable[[], httpx.Response]] = [
        lambda: site.search(query="a"),
        lambda: site.get("/api/documents"),
        lambda: site.get("/api/documents/soup.md"),
        lambda: site.delete("/api/documents/soup.md"),
        lambda: site.get("/api/index"),
    ]
    for ask in asks:
        answer = ask()
        assert answer.status_code == 503 and told(answer)["message"] == "the index cannot be reached"
        assert answer.headers["retry-after"] == "5"
