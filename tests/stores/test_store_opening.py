"""From a folder or URL to a store: which one, and what is said when there is none."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from m2rag.errors import InvalidInputError, MissingDependencyError
from m2rag.stores import EdgeStore, Manifest, Schema, VectorSpec, VectorStore, open_store, without_secrets
from m2rag.stores.opening import ENTRY_POINTS

NEW = (Manifest("fake:8", 8, "2025-01-01T00:00:00+00:00", "0.1.0"), Schema((VectorSpec("doc", 8),)))
CALLS: list[tuple[object, ...]] = []


def open_fake(url: str, *, create: object = None, api_key: str | None = None) -> VectorStore:
    CALLS.append((url, create, api_key))
    return "a store"  # type: ignore[return-value]


def open_other(url: str, *, create: object = None, api_key: str | None = None) -> VectorStore:
    raise AssertionError("not asked for")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points of packages that are pretended to be installed."""
    points = [EntryPoint("fake", f"{__name__}:open_fake", ENTRY_POINTS)]

    def entry_points(group: str) -> list[EntryPoint]:
        assert group == "m2rag.stores"
        return points

    monkeypatch.setattr("m2rag.stores.opening.entry_points", entry_points)
    CALLS.clear()
    return points


@pytest.mark.parametrize("url", ["fake://user:secret@host/db", "FAKE://host"])
def test_an_installed_package_opens_its_scheme(installed: list[EntryPoint], url: str) -> None:
    assert open_store(url, create=NEW, api_key="key") == "a store"
    assert open_store(url) == "a store"
    assert CALLS == [(url, NEW, "key"), (url, None, None)]


def test_schemes_with_signs(installed: list[EntryPoint]) -> None:
    installed.append(EntryPoint("fake+srv", f"{__name__}:open_fake", ENTRY_POINTS))
    assert open_store("fake+srv://host") == "a store"


def test_nothing_opens_it(installed: list[EntryPoint]) -> None:
    with pytest.raises(InvalidInputError, match=r"nothing installed opens other://host/db.*\(fake://\)") as caught:
        open_store("other://user:secret@host/db?key=secret")
    assert "secret" not in str(caught.value)


def test_two_packages_with_one_scheme(installed: list[EntryPoint]) -> None:
    installed.append(EntryPoint("fake", f"{__name__}:open_other", ENTRY_POINTS))
    with pytest.raises(InvalidInputError, match=r"several installed packages open fake:// \(.*open_fake.*open_other"):
        open_store("fake://host")


def test_the_schemes_of_qdrant_cannot_be_replaced(installed: list[EntryPoint]) -> None:
    installed.append(EntryPoint("http", f"{__name__}:open_fake", ENTRY_POINTS))
    with pytest.raises(InvalidInputError, match="Qdrant server"):
        open_store("http://user@host/x")
    assert CALLS == []


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'm2rag\[qdrant\]'"):
        open_store("http://localhost:6333/x")


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "index", str(tmp_path / "index"), "index", "./index"):
        store = open_store(place, create=NEW)
        assert isinstance(store, EdgeStore)
        store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    for nothing in ("", " "):
        with pytest.raises(InvalidInputError, match="empty"):
            open_store(nothing)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mongodb+srv://me:pw@host:1/db?x=pw#pw", "mongodb+srv://host:1/db"),
        ("http://host:6333/docs", "http://host:6333/docs"),
        ("folder/with@sign", "folder/with@sign"),
        ("http://[bad", "http://..."),
    ],
)
def test_urls_are_shown_without_secrets(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
