"""`mongodb://...` as the place of an index: from Python, from the command line, and without showing a password."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest
from conftest import Doc
from fake_embedder import HashEmbedder
from pymongo import MongoClient
from support.atlas_front import OPTIONS, AtlasFront
from typer.testing import CliRunner

from m2rag.cli.app import app
from m2rag.errors import IndexMismatchError, IndexNotFoundError, InvalidInputError, StoreError
from m2rag.index import Document, LongDocumentIndex, read_info
from m2rag.stores import open_store
from m2rag.stores.retry import Patience
from m2rag_mongodb import MongoStore, opening, store
from m2rag_mongodb.opening import parse_url

PASSWORD = "s3cr3t/p@ss:word"
ESCAPED = "s3cr3t%2Fp%40ss%3Aword"
DOCUMENTS = [Document(f"d{i}", f"A text about w{i}.", f"Title {i}", {"even": i % 2 == 0}) for i in range(5)]


@pytest.fixture
def url(front: AtlasFront) -> str:
    return f"{front.url}/m2rag_own/docs?{OPTIONS}"


@pytest.fixture(autouse=True)
def no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONGODB_PASSWORD", raising=False)


# URLs


@pytest.mark.parametrize(
    ("url", "uri", "names", "shown"),
    [
        ("mongodb://host/db/docs", "mongodb://host/", ("db", "docs"), "mongodb://host/db/docs"),
        ("mongodb://host:1,h2:2/db/docs", "mongodb://host:1,h2:2/", ("db", "docs"), "mongodb://host:1,h2:2/db/docs"),
        ("mongodb://host", "mongodb://host/", ("m2rag", "m2rag"), "mongodb://host/m2rag/m2rag"),
        ("mongodb://host/db", "mongodb://host/", ("db", "m2rag"), "mongodb://host/db/m2rag"),
        ("MongoDB://[::1]:5/a/b.c", "mongodb://[::1]:5/", ("a", "b.c"), "mongodb://[::1]:5/a/b.c"),
        (
            f"mongodb+srv://me:{ESCAPED}@c0.x.mongodb.net/?retryWrites=true&appName=a@b",
            f"mongodb+srv://me:{ESCAPED}@c0.x.mongodb.net/?retryWrites=true&appName=a@b",
            ("m2rag", "m2rag"),
            "mongodb+srv://c0.x.mongodb.net/m2rag/m2rag",
        ),
    ],
)
def test_urls(url: str, uri: str, names: tuple[str, str], shown: str) -> None:
    place = parse_url(url)
    assert (place.uri, (place.database, place.collection), place.shown) == (uri, names, shown)
    assert ESCAPED not in repr(place) + str(place)


def test_the_password_may_come_by_itself() -> None:
    assert parse_url("mongodb://me@host/db/c", PASSWORD).uri == f"mongodb://me:{ESCAPED}@host/"
    assert parse_url("mongodb://me:own@host/db/c", PASSWORD).uri == "mongodb://me:own@host/"
    assert parse_url("mongodb://me@host/db/c?authMechanism=MONGODB-X509").uri.startswith("mongodb://me@host/?")
    with pytest.raises(InvalidInputError, match=r"no password for the user of mongodb://host.*MONGODB_PASSWORD"):
        parse_url("mongodb://me@host/db/c")
    with pytest.raises(InvalidInputError, match="a password needs a user"):
        parse_url("mongodb://host/db/c", PASSWORD)


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://",
        "mongodb:///db/docs",
        "mongodb://host/a/b/c",
        f"mongodb://me:{PASSWORD}@host/db/docs",  # not escaped
        "mongodb://host/a.b/c",
        "mongodb://host/db/system.users",
        "mongodb://host/db/c$d",
        "mongodb://host/db/docs.parts",
        "mongodb://host/db/docs#x",
    ],
)
def test_urls_that_are_wrong(url: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        open_store(url)
    assert "s3cr3t" not in str(caught.value) and "word" not in str(caught.value).replace("password", "")


@pytest.mark.parametrize(
    "url",
    [
        "mongodb://host:port/db/docs",
        "mongodb://me:s3cr3t%zz@host:s3cr3t/db/docs",
        "mongodb://me:s3cr3t:more@host/db/docs",
    ],
)
def test_what_the_driver_does_not_take_is_told_without_its_words(url: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        open_store(url)
    shown = str(caught.value).replace(parse_url(url).shown, "")
    assert "s3cr3t" not in shown and caught.value.__cause__ is None and caught.value.__suppress_context__


# Opening


def test_an_index_by_url(url: str, front: AtlasFront) -> None:
    with pytest.raises(IndexNotFoundError, match=f"no index at {front.url}/m2rag_own/docs"):
        LongDocumentIndex(url, HashEmbedder(), create=False)
    with LongDocumentIndex(url, HashEmbedder()) as index:
        assert index.location == f"{front.url}/m2rag_own/docs"
        assert index.add(DOCUMENTS).added == 5
        assert index.add(DOCUMENTS).unchanged == 5
        assert [hit.id for hit in index.search("w3", 1)] == ["d3"]
        assert index.modes == ("hybrid", "dense", "lexical")
        assert [hit.id for hit in index.search("w3", 9, mode="lexical")] == ["d3"]
        assert {hit.id for hit in index.search("w3", 9, filter={"even": True})} == {"d0", "d2", "d4"}
        assert index.search("w3", 1, rescore=0.5)[0].passages[0].text == "A text about w3."
        assert index.delete("d3") == 1 and index.ids() == ["d0", "d1", "d2", "d4"]
    info = read_info(url)
    assert (info["documents"], info["path"], info["size_bytes"]) == (4, f"{front.url}/m2rag_own/docs", None)
    assert info["lexical"] == "english"
    with pytest.raises(IndexMismatchError, match="other:64"):
        LongDocumentIndex(url, HashEmbedder(fingerprint="other:64"))


def test_the_client_goes_with_the_store(url: str) -> None:
    LongDocumentIndex(url, HashEmbedder()).close()
    opened = open_store(url)
    assert isinstance(opened, MongoStore) and opened.count() == 0
    for _ in range(2):  # a client that is left open is a warning, and that an error here
        opened.close()
    with pytest.raises(StoreError, match="is closed"):
        opened.count()


def test_nobody_listens(front: AtlasFront, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "SELECTION_MS", 100)
    monkeypatch.setattr(store, "Patience", lambda: Patience(0.1))
    front.stop()
    with pytest.raises(StoreError, match=f"the index at {front.url}/m2rag_own/docs cannot be reached"):
        open_store(url)


# The password


@pytest.fixture
def user(mongod: int) -> Iterator[str]:
    """A user of the store behind the double, with `PASSWORD`."""
    client: MongoClient[Doc] = MongoClient("127.0.0.1", mongod, directConnection=True)
    client.admin.command("createUser", "me", pwd=PASSWORD, roles=["root"])
    yield "me"
    client.admin.command("dropUser", "me")
    client.close()


def test_the_password_is_needed_and_never_shown(
    user: str, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "m2rag")
    caplog.set_level(logging.DEBUG, "m2rag_mongodb")
    with_user = url.replace("://", f"://{user}@")
    shown: list[str] = []
    with pytest.raises(StoreError, match=r"refuses access \(18 .*check user, password") as caught:
        open_store(with_user, api_key=PASSWORD[::-1])
    shown += [str(caught.value), repr(caught.value.__cause__)]
    for place, key in ((with_user, PASSWORD), (url.replace("://", f"://{user}:{ESCAPED}@"), None)):
        with LongDocumentIndex(place, HashEmbedder(), api_key=key) as index:
            index.add(DOCUMENTS)
            shown += [repr(index._store), index.location, repr(vars(index._store)), str(index.info())]
    monkeypatch.setenv("MONGODB_PASSWORD", PASSWORD)
    opened = open_store(with_user)
    assert opened.count() == 5
    opened.close()
    everything = "\n".join([*shown, *caplog.messages])
    for secret in (PASSWORD, PASSWORD[::-1], ESCAPED, "s3cr3t"):
        assert secret not in everything


# The command line


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "cats.txt").write_text("Cats sleep most of the day and hunt at night.")
    (folder / "rivers.md").write_text("# Rivers\n\nOld houses near rivers are flooded in spring.")
    return folder


def test_index_search_info(url: str, front: AtlasFront, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2rag.cli.common.load_embedder", lambda *_, **__: HashEmbedder())
    place = f"{front.url}/m2rag_own/docs"
    nothing = run("search", "cats", "-i", url)
    assert nothing.exit_code == 1 and f"no index at {place}" in nothing.stderr
    told = run("index", folder, "-i", url)
    assert told.exit_code == 0 and f"{place}: 2 documents (2 added" in told.stdout
    assert "2 unchanged" in run("index", folder, "-i", url).stdout
    found = run("search", "old houses near rivers", "-i", url, "-k", "1", "-f", "suffix=.md", "--json")
    assert found.exit_code == 0 and '"rivers.md"' in found.stdout
    assert f'"path": "{place}"' in run("info", "-i", url, "--json").stdout


def test_errors_on_the_command_line(front: AtlasFront, folder: Path) -> None:
    for url in (f"mongodb://me:{PASSWORD}@host/db/docs", "mongodb://me@host/db/docs", f"{front.url}/a.b/c"):
        told = run("index", folder, "-i", url)
        assert told.exit_code == 1 and "Error" in told.stderr
        assert "s3cr3t" not in told.stderr and "Traceback" not in told.stderr


def test_the_driver_is_the_one_that_was_tested() -> None:
    assert pymongo.version_tuple >= (4, 13)
