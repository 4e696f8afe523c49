"""Contract search: its PDFs, where the filters come from, the page it serves, and how that looks in a browser."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pypdf import PdfReader
from support.serving import serving
from tiny_models import FakeBackend

from m2rag.backends.local import LocalBackend

FOLDER = Path(__file__).parents[2] / "examples" / "contract_search"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PICTURES = os.environ.get("M2RAG_SCREENSHOTS")
ANIMALS = "May the tenant keep animals?"
LEASE = "northquay-lindqvist-2019.pdf"


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """The script, as it is found when it is run: its folder comes first on the path."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("app")
    sys.path.remove(str(FOLDER))
    for name in ("app", "make_contracts"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def made(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All contracts, each with few pages."""
    folder = tmp_path_factory.mktemp("made") / "contracts"
    example.write_contracts(folder, scale=0.02)
    return folder


def test_contracts_are_long_varied_and_the_same_each_time(example: Any, tmp_path: Path) -> None:
    pages = example.write_contracts(tmp_path / "a")
    assert len(pages) == 12 and min(pages.values()) >= 10 and max(pages.values()) <= 60
    example.write_contracts(tmp_path / "b")
    for name in [*pages, "metadata.csv"]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    reader = PdfReader(tmp_path / "a" / LEASE)
    assert len(reader.pages) == pages[LEASE]
    text = "\n".join(page.extract_text() for page in reader.pages)
    lines = [line for line in text.splitlines() if len(line) > 40]
    assert len(set(lines)) > 0.9 * len(lines), "the same words over and over"
    assert max(map(len, text.splitlines())) <= 84, "a line runs over the margin"
    assert "{" not in text


def test_filters_come_from_the_table_or_else_from_the_pdf(
    example: Any, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(made, tmp_path / "mine")
    (folder / "deep").mkdir()
    (folder / LEASE).rename(folder / "deep" / "unnamed.PDF")
    (folder / "broken.pdf").write_bytes(b"no PDF")
    found = {document.id: document for document in example.contracts(folder)}
    assert len(found) == 12
    assert "left out: " in (said := capsys.readouterr().err) and "broken.pdf is damaged or no PDF" in said
    told = found["pellworth-kestrel-2016.pdf"].metadata
    wanted = {
        "kind": "supply",
        "parties": ["Pellworth Foods", "Kestrel Castings"],
        "year": 2016,
        "law": "England and Wales",
    }
    assert {name: told[name] for name in wanted} == wanted
    own = found["deep/unnamed.PDF"].metadata
    assert (own["year"], own["parties"]) == (2019, "Northquay Properties") and "kind" not in own
    (folder / "metadata.csv").write_text("name,year\na.pdf,2000\n")
    with pytest.raises(SystemExit, match="no column 'file'; the columns are name, year"):
        list(example.contracts(folder))


def test_as_printed_it_writes_the_contracts_indexes_and_serves_them(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["app.py"])
    monkeypatch.setattr(example.LocalBackend, "load", lambda model: FakeBackend(max_tokens=32_768))
    some = partial(example.write_contracts, contracts=sys.modules["make_contracts"].CONTRACTS[:3], scale=0.02)
    monkeypatch.setattr(example, "write_contracts", some)
    served: list[dict[str, Any]] = []

    def run(app: Any, **options: Any) -> None:
        with serving(app) as address:
            served.append({"page": httpx.get(address).text, **httpx.get(f"{address}/api/index").json(), **options})

    monkeypatch.setattr(example.uvicorn, "run", run)
    for _ in range(2):
        example.main()
    said = capsys.readouterr().out
    assert "3 contracts embedded, " in said
    assert re.search(r"^0 contracts embedded, 0 tokens in \d+ s; 3 were there$", said, re.MULTILINE)
    assert "Contract search: http://127.0.0.1:8000/" in said
    first, second = served
    assert "<title>Contract search</title>" in first["page"] and first["host"] == "127.0.0.1"
    assert first["documents"] == second["documents"] == 3
    facets = {facet["label"]: {one["value"]: one["documents"] for one in facet["values"]} for facet in first["facets"]}
    assert [*facets] == ["Kind", "Party", "Year", "Governing law"]
    assert facets["Party"]["Kestrel Castings"] == 2 and facets["Year"][2019] == 1
    assert first["questions"] == list(example.PAGE.questions)


def test_a_question_and_a_filter_find_the_clause(example: Any, made: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    some.mkdir()
    for name in (LEASE, "northquay-pellworth-2022.pdf", "metadata.csv"):
        shutil.copy(made / name, some)
    server = example.build(some, tmp_path / "index", LocalBackend.load(None, device="cpu"))
    with serving(server.app) as address:
        wanted = {"query": ANIMALS, "filter": {"parties": "Lindqvist Marine", "law": "Scotland"}, "n_passages": 1}
        (hit,) = httpx.post(f"{address}/api/search", json=wanted, timeout=30).raise_for_status().json()["hits"]
        assert hit["id"] == LEASE and "One dog and any number of cats" in " ".join(hit["passages"][0]["text"].split())


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_the_page_in_a_browser(example: Any, tmp_path: Path) -> None:
    """Filters by mouse and by keyboard, with a question and without; light, dark, and 400 pixels wide."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests are driven by Playwright")
    expect = playwright.expect
    example.write_contracts(tmp_path / "contracts")
    server = example.build(tmp_path / "contracts", tmp_path / "index", LocalBackend.load(None, device="cpu"))
    problems: list[str] = []
    with serving(server.app) as address, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--font-render-hinting=none"]
        )

        def opened(path: str, width: int, height: int, scheme: str) -> Any:
            page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
            page.set_default_timeout(60_000)
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.goto(address + path)
            expect(page.locator("#list a.hit").first).to_be_visible(timeout=60_000)
            return page

        def picture(page: Any, name: str) -> None:
            page.wait_for_timeout(500)
            if PICTURES:
                page.screenshot(path=f"{PICTURES}/contracts-{name}.png", animations="disabled", caret="hide")

        page = opened("/", 1100, 720, "light")
        expect(page).to_have_title("Contract search")
        expect(page.locator("#results-title")).to_have_text("12 documents")
        expect(page.locator("#filter")).to_be_hidden()
        page.get_by_label("Kind").select_option(label="lease (2)")
        expect(page.locator("#results-title")).to_have_text("2 documents")
        page.get_by_label("Year").select_option(label="2014 (1)")
        expect(page.locator("#message")).to_have_text("No document has all of these filters.")
        page.get_by_role("button", name="Clear filters").click()
        expect(page.locator("#results-title")).to_have_text("12 documents")
        picture(page, "start")
        page.get_by_role("button", name=ANIMALS).click()
        expect(page.locator("#results-title")).to_have_text("10 hits")
        # By keyboard alone: to the last filter, choose, then into the list and the document.
        page.keyboard.press("/")
        page.get_by_label("Governing law").focus()
        for _ in range(4):  # England and Wales, Germany, New York, Scotland
            page.keyboard.press("ArrowDown")
        expect(page.locator("#results-title")).to_have_text("3 hits")
        page.keyboard.press("/")
        page.keyboard.press("End")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(page.locator("mark.current").first).to_be_visible()
        expect(page.locator("#doc-metadata")).to_contain_text("parties: Northquay Properties, Lindqvist Marine")
        expect(page.locator("#doc-text mark", has_text="One dog")).to_have_count(1)
        picture(page, "light")
        path = page.url.removeprefix(address)
        assert "f=law%3DScotland" in path
        dark = opened(path, 1100, 720, "dark")
        expect(dark.locator("mark.current").first).to_be_visible()
        expect(dark.get_by_label("Governing law")).to_have_class("chosen")
        picture(dark, "dark")
        narrow = opened(path.split("&doc=")[0], 400, 820, "light")
        assert narrow.evaluate("document.documentElement.scrollWidth") <= 400
        picture(narrow, "narrow")
        narrow.locator("#list a.hit").first.click()
        expect(narrow.locator("mark.current").first).to_be_visible()
        assert narrow.evaluate("document.documentElement.scrollWidth") <= 400
        picture(narrow, "narrow-document")
        browser.close()
    assert not problems
