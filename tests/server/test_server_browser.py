"""The page in Chromium: what a person sees and does, by mouse, by keyboard, on a phone, in the dark.

Every test also fails on an error in the browser's console and on a request to anywhere but the server. With
M2RAG_SCREENSHOTS set to a folder, the pictures of the documentation are written there.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.serving import serving
from tiny_models import FakeBackend

from m2rag.backends.local import LocalBackend
from m2rag.demo import load_documents
from m2rag.server.app import Server
from m2rag.server.settings import ServerSettings

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests are driven by Playwright")
expect = playwright.expect
expect.set_options(timeout=20_000)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PICTURES = os.environ.get("M2RAG_SCREENSHOTS")
PEPS = ("pep-0458", "pep-0495", "pep-0506", "pep-0557", "pep-0657", "pep-0672")
QUESTION = (
    "Someone has broken in and stolen the keys that vouch for packages. What has to be revoked, and what comes next?"
)
EVIL_NAME = '<img src=x onerror="window.hacked=1">.md'
EVIL = "# <script>window.hacked=2</script><b>bold</b>\n\n<img src=x onerror='window.hacked=3'> &lt;i&gt; javascript:"
STEW = (
    "🍲🍲🍲 Stew for 𝔣our.\n\n" + "Put the kettle on the fire & wait. " * 60 + "\n\nAt the end add pepper 🌶 and salt."
)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--font-render-hinting=none"]
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the demo's documents as files, in a folder."""
    folder = tmp_path_factory.mktemp("files") / "peps"
    folder.mkdir()
    for document in load_documents():
        if document.id in PEPS:
            title = f"{document.title}\n{'=' * len(document.title or '')}\n\n"
            (folder / f"{document.id}.rst").write_text(title + document.text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[str]:
    """The bundled model with the demo's documents indexed, and a few made for these tests."""
    index = tmp_path_factory.mktemp("real") / "index"
    with serving(Server(LocalBackend.load(None, device="cpu"), index=index).app) as address:
        for file in folder.iterdir():
            httpx.put(f"{address}/api/documents/{file.name}", content=file.read_bytes()).raise_for_status()
        httpx.put(f"{address}/api/documents/stew.md", content=STEW.encode()).raise_for_status()
        indexed(address, 120)
        yield address


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[str]:
    """A quick model without documents."""
    with serving(Server(FakeBackend(max_tokens=4096), index=tmp_path / "index", temporary=True).app) as address:
        yield address


def indexed(address: str, seconds: float = 30) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while (progress := httpx.get(f"{address}/api/indexing").json())["active"]:
        assert time.monotonic() < deadline, "indexing never ended"
        time.sleep(0.05)
    return progress


Opener = Callable[..., Any]


@pytest.fixture
def open_page(request: pytest.FixtureRequest, browser: Any) -> Iterator[Opener]:
    """Opens pages, and looks at the end whether all was well with them."""
    # Set up before, the server goes after its pages: they ask it how indexing goes.
    if "empty" in request.fixturenames:
        request.getfixturevalue("empty")
    contexts: list[Any] = []
    problems: list[str] = []

    def opened(
        address: str,
        *,
        path: str = "/",
        width: int = 1360,
        height: int = 860,
        errors: str = "",
        ready: bool = True,
        **options: Any,
    ) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()

        def console(message: Any) -> None:
            if message.type in ("error", "warning") and not (errors and re.search(errors, message.text)):
                problems.append(f"console {message.type}: {message.text}")

        page.on("console", console)
        page.on("pageerror", lambda error: problems.append(f"exception: {error}"))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: None if request.url.startswith(address) else problems.append(request.url))
        page.goto(address + path)
        if ready:
            expect(page.locator("#summary")).not_to_be_empty()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


def ask(page: Any, question: str) -> None:
    page.locator("#query").fill(question)
    page.locator("#query").press("Enter")
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    expect(page.locator("#results-title")).to_have_text(re.compile("hit|found"))


def open_hit(page: Any, id: str) -> None:
    page.locator(f'a.hit[data-id="{id}"]').click()
    expect(page.locator("mark.current").first).to_be_visible()
    page.wait_for_timeout(150)  # two frames after which the passage is in place for good


def found(address: str, question: str, **more: Any) -> list[dict[str, Any]]:
    """The hits as the page asks for them."""
    wanted = {"query": question, "k": 10, "mode": "hybrid", "n_passages": 8, **more}
    return httpx.post(f"{address}/api/search", json=wanted).raise_for_status().json()["hits"]


def picture(page: Any, name: str) -> None:
    if PICTURES:
        page.wait_for_timeout(200)
        page.screenshot(path=f"{PICTURES}/page-{name}.png", animations="disabled", caret="hide")


def units(text: str) -> list[int]:
    """Position in characters -> position in UTF-16 units."""
    positions = [0]
    for letter in text:
        positions.append(positions[-1] + (2 if ord(letter) > 0xFFFF else 1))
    return positions


# Documents in


def test_nothing_yet(open_page: Opener, empty: str) -> None:
    page = open_page(empty)
    expect(page.locator("#blank h2")).to_have_text("Drop files or a folder here")
    expect(page.locator("#summary")).to_contain_text("0 documents · 0 tokens")
    expect(page.locator("#summary .badge")).to_have_text("temporary")
    expect(page.locator("#blank")).to_contain_text("forgotten when the server stops")
    picture(page, "empty")
    ask(page, "anything")
    expect(page.locator("#message")).to_contain_text("no documents yet")


def test_files_by_the_input_are_indexed_to_the_end(open_page: Opener, empty: str, folder: Path, tmp_path: Path) -> None:
    broken, photo = tmp_path / "broken.pdf", tmp_path / "photo.png"
    broken.write_bytes(b"no PDF")
    photo.write_bytes(b"...")
    page = open_page(empty)
    page.locator("#files").set_input_files([*folder.iterdir(), broken, photo])
    expect(page.locator("#indexing-title")).to_have_text(f"Indexed: {len(PEPS)} added, 1 failed")
    expect(page.locator("#indexing-bar")).to_be_hidden()
    expect(page.locator("#indexing-current")).to_have_text("1 file of other kinds left out, such as photo.png")
    page.locator("#failures summary").click()
    expect(page.locator("#failures-list li")).to_contain_text("broken.pdf is damaged or no PDF")
    expect(page.locator("#summary")).to_contain_text(f"{len(PEPS)} documents")
    expect(page.locator("#list li")).to_have_count(len(PEPS))
    expect(page.locator("#list li").first).to_contain_text("Secure PyPI downloads with signed repository metadata")
    page.locator("#files").set_input_files([folder / "pep-0458.rst"])
    expect(page.locator("#indexing-title")).to_have_text("Indexed: 1 unchanged")
    page.reload()  # what is over is not told again
    expect(page.locator("#list li")).to_have_count(len(PEPS))
    page.wait_for_load_state("networkidle")
    expect(page.locator("#indexing")).to_be_hidden()


def test_a_folder_by_its_input(open_page: Opener, empty: str, folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "peps")
    (copied / ".hidden.md").write_text("not this", encoding="utf-8")
    page = open_page(empty)
    page.locator("#folder").set_input_files(copied)
    expect(page.locator("#indexing-title")).to_have_text(f"Indexed: {len(PEPS)} added")
    ids = [document["id"] for document in httpx.get(f"{empty}/api/documents").json()["documents"]]
    assert ids == [f"peps/{id}.rst" for id in PEPS]


def test_a_folder_that_is_dropped(open_page: Opener, empty: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.md").write_text("# Alone\n\nA file beside the folder.", encoding="utf-8")
    page = open_page(empty)
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(folder), str(tmp_path / "alone.md")], "dragOperationsMask": 1}

    def drag(kind: str) -> None:
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 700, "y": 400, "data": data})

    drag("dragEnter")
    drag("dragOver")
    expect(page.locator("#drop")).to_be_visible()
    page.evaluate("window.dispatchEvent(new DragEvent('dragleave'))")  # the browser's own has no command
    expect(page.locator("#drop")).to_be_hidden()
    drag("dragEnter")
    drag("dragOver")
    drag("drop")
    expect(page.locator("#drop")).to_be_hidden()
    expect(page.locator("#indexing-title")).to_have_text(f"Indexed: {len(PEPS) + 1} added")
    ids = [document["id"] for document in httpx.get(f"{empty}/api/documents").json()["documents"]]
    assert ids == ["alone.md", *(f"peps/{id}.rst" for id in PEPS)]


def test_a_busy_server_is_asked_again_and_a_failing_one_told(open_page: Opener, empty: str) -> None:
    page = open_page(empty, errors="429|500")
    answers = {"a.md": [429, 429], "b.md": [500]}

    def busy(route: Any) -> None:
        name = route.request.url.rsplit("/", 1)[1]
        if not answers.get(name):
            route.continue_()
            return
        body = {"error": {"message": "not now", "type": "t", "param": None, "code": None}}
        route.fulfill(status=answers[name].pop(), json=body, headers={"Retry-After": "0.01"})

    page.route("**/api/documents/*.md", busy)
    files = [{"name": f"{n}.md", "mimeType": "text/plain", "buffer": f"text {n}".encode()} for n in "abc"]
    page.locator("#files").set_input_files(files)
    expect(page.locator("#indexing-title")).to_have_text("Indexed: 2 added, 1 failed")
    page.locator("#failures summary").click()
    expect(page.locator("#failures-list")).to_have_text("b.md not now")
    assert answers == {"a.md": [], "b.md": []}


def test_an_old_answer_about_progress_is_not_the_last_word(open_page: Opener, empty: str) -> None:
    page = open_page(empty)
    page.wait_for_load_state("networkidle")
    held: list[Any] = []
    page.route("**/api/indexing", lambda route: route.continue_() if held else held.append(route))
    old = httpx.get(f"{empty}/api/indexing").json()
    with page.expect_response(lambda response: response.request.method == "PUT"):
        page.locator("#files").set_input_files([{"name": "a.md", "mimeType": "text/plain", "buffer": b"some words"}])
    indexed(empty)
    page.wait_for_timeout(100)
    held[0].fulfill(json=old)
    expect(page.locator("#indexing-title")).to_have_text("Indexed: 1 added")


def test_progress_while_it_goes_on(open_page: Opener, empty: str) -> None:
    page = open_page(empty)
    progress = {
        "active": True, "queued": 20, "indexing": 8, "done": 12,
        "added": 11, "replaced": 0, "unchanged": 0, "failed": 1,
        "failures": [{"id": "a.pdf", "error": "DocumentError", "message": "a.pdf is damaged"}], "tokens": 90_000,
        "seconds": 10.0, "documents_per_second": 1.2, "tokens_per_second": 9_000.0, "eta_seconds": 23.3,
        "current": "folder/b.md",
    }  # fmt: skip
    page.route("**/api/indexing", lambda route: route.fulfill(json=progress))
    page.reload()
    expect(page.locator("#indexing-title")).to_have_text("Indexing: 12 of 40 documents")
    expect(page.locator("#indexing-rates")).to_have_text("1.2 documents/s · 9,000 tokens/s · about 23 seconds left")
    expect(page.locator("#indexing-current")).to_have_text("folder/b.md")
    expect(page.locator("#failures-title")).to_have_text("1 document failed")
    assert page.locator("#indexing-bar").evaluate("bar => [bar.value, bar.max]") == [12, 40]


# Searching and reading


def test_a_hit_is_read_as_the_whole_document_with_exactly_its_passages_marked(open_page: Opener, real: str) -> None:
    page = open_page(real)
    for question, id in ((QUESTION, "pep-0458.rst"), ("pepper and salt for the stew", "stew.md")):
        ask(page, question)
        hits = found(real, question)
        assert hits[0]["id"] == id
        first = page.locator("#list li").first
        expect(first).to_contain_text(hits[0]["title"])
        expect(first.locator(".score")).to_have_text(f"{hits[0]['score']:.3f}")
        expect(first).to_contain_text(f"{hits[0]['n_tokens']:,} tokens")
        assert first.locator(".snippet b").count() > 0
        open_hit(page, id)
        text = httpx.get(f"{real}/api/documents/{id}").json()["text"]
        assert page.locator("#doc-text").evaluate("node => node.textContent") == text
        marks = page.evaluate(
            """() => { const found = {};
            for (const mark of document.querySelectorAll("#doc-text mark")) {
              const range = document.createRange();
              range.setStart(document.getElementById("doc-text"), 0);
              range.setEndBefore(mark);
              const start = range.toString().length;
              const known = found[mark.dataset.passage] ??= {start, end: start, text: "", strength: mark.className};
              if (start !== known.end) throw Error("a gap in passage " + mark.dataset.passage);
              known.text += mark.textContent; known.end += mark.textContent.length; }
            return Object.values(found); }"""
        )
        at = units(text)
        wanted = sorted(hits[0]["passages"], key=lambda passage: passage["start"])
        assert [(m["text"], m["start"], m["end"]) for m in marks] == [
            (p["text"], at[p["start"]], at[p["end"]]) for p in wanted
        ]
        strengths = [int(re.search(r"s(\d)", mark["strength"])[1]) for mark in marks]  # type: ignore[index]
        # The answer's order: the passage that fits best need not have the highest cosine.
        ranks = [hits[0]["passages"].index(passage) for passage in wanted]
        assert strengths == [max(1, 5 - rank) for rank in ranks]
        best = ranks.index(0)
        expect(page.locator("#passage-note")).to_have_text(f"Passage {best + 1} of {len(wanted)}")
        page.keyboard.press("Escape")


def test_the_minimap_is_true(open_page: Opener, real: str) -> None:
    page = open_page(real)
    ask(page, QUESTION)
    open_hit(page, "pep-0458.rst")
    text = httpx.get(f"{real}/api/documents/pep-0458.rst").json()["text"]
    ranked = found(real, QUESTION)[0]["passages"]
    passages = sorted(ranked, key=lambda passage: passage["start"])
    map_box = page.locator("#minimap").bounding_box()
    marks = page.locator(".minimap-mark")
    expect(marks).to_have_count(len(passages))
    for i, passage in enumerate(passages):
        box = marks.nth(i).bounding_box()
        assert box["y"] - map_box["y"] == pytest.approx(passage["start"] / len(text) * map_box["height"], abs=1)
        long = (passage["end"] - passage["start"]) / len(text) * map_box["height"]
        assert box["height"] == pytest.approx(max(long, 4), abs=1)

    def viewport() -> tuple[float, float]:
        page.wait_for_timeout(120)
        box = page.locator(".minimap-view").bounding_box()
        top = (box["y"] - map_box["y"]) / map_box["height"]
        return top, top + box["height"] / map_box["height"]

    best = passages.index(ranked[0])
    top, bottom = viewport()
    assert top - 0.01 <= passages[best]["start"] / len(text) <= bottom
    for fraction in (0.1, 0.85, 0.4):
        page.mouse.click(map_box["x"] + 20, map_box["y"] + fraction * map_box["height"])
        top, bottom = viewport()
        assert top - 0.005 <= fraction <= bottom + 0.005
    for i in (0, len(passages) - 1, best):
        marks.nth(i).click()
        expect(page.locator("#passage-note")).to_have_text(f"Passage {i + 1} of {len(passages)}")
        page.wait_for_timeout(100)
        mark = page.locator(f'mark[data-passage="{i}"]').first.bounding_box()
        scroller = page.locator("#doc-text").bounding_box()
        assert scroller["y"] <= mark["y"] <= scroller["y"] + scroller["height"] / 2
    page.locator("#doc-text").evaluate("node => { node.scrollTop = 0; }")
    assert viewport()[0] < 0.01
    page.locator("#doc-text").evaluate("node => { node.scrollTop = node.scrollHeight; }")
    page.wait_for_timeout(100)
    page.locator("#doc-text").evaluate("node => { node.scrollTop = node.scrollHeight; }")
    assert viewport()[1] > 0.99


def test_by_keyboard_alone(open_page: Opener, real: str) -> None:
    page = open_page(real)

    def focused() -> str:
        return page.evaluate("document.activeElement.id || document.activeElement.dataset.id")

    expect(page.locator("#query")).to_be_focused()
    page.keyboard.type("two times when the clock goes back")
    page.keyboard.press("Enter")
    expect(page.locator(".snippet").first).to_be_visible()
    hits = [hit["id"] for hit in found(real, "two times when the clock goes back")]
    page.keyboard.press("ArrowDown")
    assert focused() == hits[0]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    assert focused() == hits[1]
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page.locator("mark.current").first).to_be_visible()
    assert focused() == "doc-text"
    n = page.locator(".minimap-mark").count()
    at = int(page.locator("#passage-note").inner_text().split()[1])
    for _ in range(at - 1):
        page.keyboard.press("p")
    expect(page.locator("#passage-note")).to_have_text(f"Passage 1 of {n}")
    page.keyboard.press("p")
    expect(page.locator("#toast")).to_have_text("This is the first passage.")
    page.keyboard.press("n")
    expect(page.locator("#passage-note")).to_have_text(f"Passage 2 of {n}")
    page.keyboard.press("?")
    expect(page.locator("#shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#shortcuts")).to_be_hidden()
    expect(page.locator("#reader")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#reader")).to_be_hidden()
    assert focused() == hits[0]
    page.keyboard.press("Escape")
    assert focused() == "query"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.value") == "hybrid"
    page.keyboard.press("ArrowRight")
    expect(page.locator('input[value="dense"]')).to_be_checked()
    expect(page.locator("#mode-help")).to_contain_text("whole documents")
    assert "mode=dense" in page.url
    page.locator("#doc-text").evaluate("() => document.body.focus()")
    page.keyboard.press("Escape")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert focused() == "query"
    page.keyboard.type("/n?")
    assert page.locator("#query").input_value().endswith("/n?")


@pytest.mark.parametrize("how", ["the clipboard's own way", "the old way"])
def test_copying_a_passage(open_page: Opener, real: str, how: str) -> None:
    page = open_page(real, permissions=["clipboard-read", "clipboard-write"])
    if how == "the old way":
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    ask(page, QUESTION)
    open_hit(page, "pep-0458.rst")
    page.locator("#passage-copy").click()
    expect(page.locator("#toast")).to_have_text("Passage copied.")
    page.keyboard.press("n")
    page.locator("#doc-text").press("c")
    page.wait_for_timeout(100)
    n = int(page.locator("#passage-note").inner_text().split()[1])
    page.locator("#query").fill("")
    page.locator("#query").press("Control+V")
    passages = sorted(found(real, QUESTION)[0]["passages"], key=lambda passage: passage["start"])
    assert page.locator("#query").input_value() == passages[n - 1]["text"]


def test_modes_filters_and_numbers(open_page: Opener, real: str) -> None:
    page = open_page(real)
    assert page.locator("#modes span").all_inner_texts() == ["Both", "By meaning", "By words"]
    ask(page, "secrets")
    page.locator("#modes label", has_text="By words").click()
    words = [hit["id"] for hit in found(real, "secrets", mode="lexical")]
    expect(page.locator("#list li")).to_have_count(len(words))
    assert page.locator("a.hit").evaluate_all("links => links.map((link) => link.dataset.id)") == words
    page.locator("#modes label", has_text="By meaning").click()
    page.locator("#k").select_option("5")
    expect(page.locator("#results-title")).to_have_text("5 hits")
    offered = page.locator("#filter-list option").evaluate_all("options => options.map((option) => option.value)")
    assert "suffix=.md" in offered
    page.locator("#filter").fill("nonsense")
    page.locator("#filter").press("Enter")
    expect(page.locator("#chips li")).to_have_count(0)
    page.locator("#filter").fill("suffix=.md")
    page.locator("#filter").press("Enter")
    expect(page.locator("#chips li")).to_have_text(["suffix=.md×"])
    expect(page.locator("#list li")).to_have_count(1)
    assert "f=suffix%3D.md" in page.url
    page.locator("#filter").fill("size=1")
    page.locator("#filter").press("Enter")
    expect(page.locator("#message")).to_contain_text("No document has all of these filters")
    page.get_by_role("button", name="Remove the filter size=1").click()
    expect(page.locator("#list li")).to_have_count(1)
    page.locator("#filter").press("Backspace")
    expect(page.locator("#results-title")).to_have_text("5 hits")


def test_an_index_without_words_offers_no_modes(open_page: Opener, real: str) -> None:
    page = open_page(real)
    info = httpx.get(f"{real}/api/index").json()
    page.route("**/api/index", lambda route: route.fulfill(json={**info, "modes": ["dense"]}))
    page.reload()
    expect(page.locator("#mode-help")).to_contain_text("Compares your question with whole documents")
    expect(page.locator("#modes")).to_be_hidden()


def test_addresses_lead_to_what_was_seen(open_page: Opener, real: str) -> None:
    page = open_page(real)
    ask(page, QUESTION)
    open_hit(page, "pep-0458.rst")
    url = page.url
    again = open_page(real, path=url.removeprefix(real))
    expect(again.locator("mark.current").first).to_be_visible()
    expect(again.locator("#query")).to_have_value(QUESTION)
    expect(again.locator("#doc-title")).to_have_text("Secure PyPI downloads with signed repository metadata")
    page.go_back()
    expect(page.locator("#reader")).to_be_hidden()
    expect(page.locator(".snippet").first).to_be_visible()
    page.go_back()
    expect(page.locator("#query")).to_have_value("")
    page.go_forward()
    page.go_forward()
    expect(page.locator("mark.current").first).to_be_visible()
    missing = open_page(real, path="/#doc=nowhere.md", errors="404")
    expect(missing.locator("#toast")).to_contain_text("there is no document 'nowhere.md'")
    assert "doc=" not in missing.url


def test_deleting_asks_first(open_page: Opener, empty: str) -> None:
    for name in ("a.md", "b.md"):
        httpx.put(f"{empty}/api/documents/{name}", content=f"# Title of {name}\n\nwords".encode())
    indexed(empty)
    page = open_page(empty)
    page.locator('a.hit[data-id="a.md"]').click()
    page.locator("#doc-delete").click()
    expect(page.locator("#confirm-text")).to_contain_text("Title of a.md")
    expect(page.locator("#confirm-no")).to_be_focused()
    page.keyboard.press("Escape")
    assert httpx.get(f"{empty}/api/documents/a.md").status_code == 200
    page.locator("#doc-delete").click()
    page.locator("#confirm-yes").click()
    expect(page.locator("#toast")).to_have_text("Deleted.")
    expect(page.locator("#reader")).to_be_hidden()
    expect(page.locator("#list li")).to_have_count(1)
    expect(page.locator("#summary")).to_contain_text("1 document ·")
    assert httpx.get(f"{empty}/api/documents/a.md").status_code == 404


def test_a_document_that_has_changed_since_is_shown_without_wrong_marks(open_page: Opener, empty: str) -> None:
    httpx.put(f"{empty}/api/documents/a.md", content=b"old words about bread")
    indexed(empty)
    page = open_page(empty)
    ask(page, "bread")
    httpx.put(f"{empty}/api/documents/a.md", content=b"entirely new words, of another length, about bread")
    indexed(empty)
    page.locator("a.hit").click()
    expect(page.locator("#doc-text")).to_contain_text("entirely new words")
    expect(page.locator("#toast")).to_contain_text("has changed since the search")
    expect(page.locator("#doc-text mark")).to_have_count(0)


def test_a_megabyte_of_text_is_drawn_where_it_is_seen(open_page: Opener, empty: str) -> None:
    chance = random.Random(0)
    words = "the quick brown fox jumps over a lazy dog while seven wizards mix potions at dawn".split()
    paragraphs = [" ".join(chance.choices(words, k=chance.randint(5, 200))) for _ in range(2300)]
    text = "\n\n".join(paragraphs) + "\n\nThe needle is here: zyzzyva.\n\n" + "x" * 30_000
    assert len(text) > 1_000_000
    httpx.put(f"{empty}/api/documents/long.txt", content=text.encode())
    indexed(empty, 60)
    page = open_page(empty, path="/#q=zyzzyva&mode=lexical")
    expect(page.locator(".badge").last).to_contain_text("windows")
    started = time.monotonic()
    page.locator("a.hit").click()
    expect(page.locator("mark.current").first).to_be_visible()
    assert time.monotonic() - started < 5
    assert page.locator("#doc-text").evaluate("node => node.textContent") == text
    drawn = """() => [...document.querySelectorAll('.section')].filter((node) =>
        node.firstChild.checkVisibility({contentVisibilityAuto: true})).length"""
    assert 1 <= page.evaluate(drawn) < 12 < page.locator(".section").count()
    for fraction in (0.0, 0.5, 0.97):
        box = page.locator("#minimap").bounding_box()
        page.mouse.click(box["x"] + 5, box["y"] + fraction * box["height"])
        page.wait_for_timeout(200)
        view = page.locator(".minimap-view").bounding_box()
        assert abs((view["y"] + view["height"] / 2 - box["y"]) / box["height"] - fraction) < 0.02
    assert page.evaluate(drawn) < 12


# What documents hold is shown, never run


def test_markup_in_names_and_texts_is_text(open_page: Opener, empty: str) -> None:
    page = open_page(empty)
    page.locator("#files").set_input_files(
        [
            {"name": EVIL_NAME, "mimeType": "text/markdown", "buffer": EVIL.encode()},
            {"name": "<b>empty</b>.md", "mimeType": "text/markdown", "buffer": b" "},
        ]
    )
    expect(page.locator("#indexing-title")).to_have_text("Indexed: 1 added, 1 failed")
    page.locator("#failures summary").click()
    expect(page.locator("#failures-list strong")).to_have_text("<b>empty</b>.md")
    title = "<script>window.hacked=2</script><b>bold</b>"
    expect(page.locator(".hit-title")).to_have_text(title)
    question = "<img src=x onerror=window.hacked=4> bold script"
    ask(page, question)
    page.locator("#filter").fill("path=<i>x</i>")
    page.locator("#filter").press("Enter")
    expect(page.locator("#chips li")).to_contain_text("path=<i>x</i>")
    page.locator("#filter").press("Backspace")
    page.locator("a.hit").click()
    expect(page.locator("#doc-title")).to_have_text(title)
    expect(page.locator("#doc-note")).to_contain_text(EVIL_NAME)
    assert page.locator("#doc-text").evaluate("node => node.textContent") == EVIL
    page.locator("#doc-delete").click()
    expect(page.locator("#confirm-text")).to_contain_text(EVIL_NAME)
    assert page.evaluate("window.hacked") is None
    assert page.locator("main :is(script, iframe, i), main img:not([src='/page/icon.svg'])").count() == 0
    assert page.title() == f"{question} · m2rag"
    page.keyboard.press("Escape")
    hostile = open_page(
        empty, path="/#q=%3Cimg%20src%3Dx%20onerror%3Dwindow.hacked%3D5%3E&doc=%3Cscript%3E", errors="404"
    )
    expect(hostile.locator("#toast")).to_contain_text("<script>")
    assert hostile.evaluate("window.hacked") is None


def test_an_older_search_never_covers_a_newer_one(open_page: Opener, empty: str) -> None:
    httpx.put(f"{empty}/api/documents/fish.md", content=b"The fish swims far.").raise_for_status()
    indexed(empty)
    page = open_page(empty)
    ask(page, "fish")
    held: list[Any] = []
    page.route(
        "**/api/search",
        lambda route: held.append(route) if "nowhere" in route.request.post_data else route.continue_(),
    )
    page.locator("#filter").fill("path=nowhere")
    page.locator("#filter").press("Enter")
    expect(page.locator("#results-title")).to_have_text("Searching…")
    page.locator("#filter").press("Backspace")
    expect(page.locator("#results-title")).to_have_text("1 hit")
    for route in held:
        with contextlib.suppress(playwright.Error):  # the page has given it up
            route.continue_()
    page.wait_for_timeout(200)
    expect(page.locator(".hit-title")).to_have_count(1)
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")


def test_what_the_policy_forbids_is_forbidden(open_page: Opener, empty: str) -> None:
    page = open_page(empty, errors="Content Security Policy|Refused|404")
    page.evaluate(
        """() => { const script = document.createElement('script'); script.textContent = 'window.hacked = 1';
        document.body.append(script);
        const image = document.createElement('img'); image.setAttribute('onerror', 'window.hacked = 2');
        image.src = '/nothing'; document.body.append(image); }"""
    )
    page.wait_for_timeout(300)
    assert page.evaluate("window.hacked") is None


# Keys, and servers that are away


def test_a_server_that_asks_for_a_key(open_page: Opener, tmp_path: Path) -> None:
    settings = ServerSettings(keys=("right",), hosts=())
    server = Server(FakeBackend(), settings=settings, index=tmp_path / "index")
    with serving(server.app) as address:
        page = open_page(address, errors="401|ERR_CONNECTION_REFUSED", ready=False)
        expect(page.locator("#key-text")).to_contain_text("whoever runs the server")
        page.locator("#key").fill("wrong")
        page.locator("#key").press("Enter")
        expect(page.locator("#key-text")).to_contain_text("not accepted")
        page.locator("#key").fill("right")
        page.get_by_role("button", name="Continue").click()
        expect(page.locator("#key-dialog")).to_be_hidden()
        assert page.evaluate("sessionStorage.getItem('m2rag-api-key')") == "right"
        expect(page.locator("#summary")).to_contain_text("0 documents")
        page.locator("#files").set_input_files([{"name": "a.md", "mimeType": "text/plain", "buffer": b"some words"}])
        expect(page.locator("#indexing-title")).to_have_text("Indexed: 1 added")
        page.reload()
        expect(page.locator("#summary")).to_contain_text("1 document")
        expect(page.locator("#key-dialog")).to_be_hidden()


def test_a_server_that_is_away(open_page: Opener, real: str) -> None:
    page = open_page(real, errors="ERR_CONNECTION|ERR_FAILED")
    page.route("**/api/search", lambda route: route.abort("connectionrefused"))
    page.locator("#query").fill("anything")
    page.locator("#query").press("Enter")
    expect(page.locator("#message")).to_contain_text("The server cannot be reached")
    page.unroute("**/api/search")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".snippet").first).to_be_visible()
    expect(page.locator("#message")).to_be_hidden()


# Looks


def test_light_and_dark(open_page: Opener, real: str) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        page = open_page(real, color_scheme=scheme)
        ask(page, QUESTION)
        open_hit(page, "pep-0458.rst")
        picture(page, scheme)
        grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        for selector in ("#doc-text mark.s5", "#doc-title", ".snippet", "#passage-note", "#doc-delete", ".hit-note"):
            assert contrast(page, selector) >= 4.5, (scheme, selector)
    assert brightness(grounds[0]) > 0.8 and brightness(grounds[1]) < 0.1
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == grounds[0]
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == grounds[0]
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == grounds[1]


def colour(text: str) -> tuple[float, float, float, float]:
    """A CSS colour as numbers from 0 to 1."""
    numbers = [float(number) for number in re.findall(r"[\d.]+", text)]
    red, green, blue = numbers[:3]
    return red / 255, green / 255, blue / 255, numbers[3] if len(numbers) > 3 else 1.0


def brightness(text: str) -> float:
    """Relative luminance."""
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour(text)[:3]]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(page: Any, selector: str) -> float:
    """Of an element's letters on what is behind them, as WCAG counts it."""
    letters, layers = page.locator(selector).first.evaluate(
        """node => { const layers = [];
        for (let at = node; at; at = at.parentElement) layers.push(getComputedStyle(at).backgroundColor);
        return [getComputedStyle(node).color, layers]; }"""
    )
    ground = (1.0, 1.0, 1.0)
    for layer in reversed(layers):
        *rgb, alpha = colour(layer)
        ground = tuple(alpha * new + (1 - alpha) * old for new, old in zip(rgb, ground, strict=True))  # type: ignore[assignment]
    behind = brightness(f"rgb({', '.join(str(255 * part) for part in ground)})")
    high, low = sorted((brightness(letters), behind), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width", [400, 320, 2200])
def test_no_screen_scrolls_sideways(open_page: Opener, real: str, empty: str, width: int) -> None:
    def fits(page: Any) -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("#doc-text").evaluate("node => node.scrollWidth <= node.clientWidth")

    fits(open_page(empty, width=width, height=800))
    page = open_page(real, width=width, height=800)
    fits(page)
    ask(page, QUESTION)
    fits(page)
    if width == 400:
        picture(page, "narrow-hits")
    open_hit(page, "pep-0458.rst")
    fits(page)
    for button in ("#passage-next", "#passage-copy", "#doc-delete", "#doc-close"):
        box = page.locator(button).bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= width
    if width == 400:
        picture(page, "narrow")
        page.locator("#doc-close").click()
        expect(page.locator(".snippet").first).to_be_visible()


def test_who_wants_no_motion_gets_none(open_page: Opener, empty: str) -> None:
    page = open_page(empty, reduced_motion="reduce")
    assert page.locator("#toast").evaluate("node => getComputedStyle(node).transitionDuration") in ("0s", "0s, 0s")


def test_names_and_roles(open_page: Opener, real: str) -> None:
    page = open_page(real)
    ask(page, QUESTION)
    open_hit(page, "pep-0458.rst")
    for role, name in (
        ("search", "Documents"), ("textbox", "Your question"), ("group", "How to search"),
        ("region", "Text of the document"),
        ("toolbar", "Passages"), ("button", "Next passage"), ("button", "Previous passage"), ("status", None),
        ("article", "Secure PyPI downloads with signed repository metadata"), ("combobox", "Hits"),
        ("group", "Where the passages are"),
    ):  # fmt: skip
        options = {} if name is None else {"name": name, "exact": False}
        assert page.get_by_role(role, **options).count() >= 1, (role, name)
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('button, input, select, textarea')].filter((node) =>
        !(node.getAttribute('aria-label') || node.textContent.trim() || node.labels?.length)).map((node) => node.id)"""
    )
    assert unnamed == []


# The text's own rules


def test_paragraphs_cover_any_text_without_a_gap(open_page: Opener, empty: str) -> None:
    chance = random.Random(1)
    bits = ["\n", "\n\n", " ", "    ", "a", "word ", "Title", "=====", "- item", "1. one", "```", "::", ">>> x", "🍲",
            "\t", "é", "x" * 50, "y" * 9000, "\r\n", "# head", "| a | b |", ".. note::", "{",
            "\u2028", "\0"]  # fmt: skip
    texts = ["", "\n", " ", "🍲"] + ["".join(chance.choices(bits, k=chance.randint(1, 60))) for _ in range(400)]
    page = open_page(empty)
    wrong = page.evaluate(
        """async (texts) => { const {paragraphs, sections, pieces} = await import('/page/text.js');
        return texts.filter((text) => [true, false].some((code) => {
          const found = sections(paragraphs(text, {code})).flat();
          const starts = found.map((one) => one.start), ends = found.map((one) => one.end);
          if (!text) return found.length > 0;
          const split = ends.some((end) => /[\\ud800-\\udbff]/.test(text[end - 1]));
          return starts[0] !== 0 || ends.at(-1) !== text.length || split || ends.some((end, i) => end <= starts[i]) ||
            starts.slice(1).some((start, i) => start !== ends[i]) || found.some((one) => one.end - one.start > 8001);
        })); }""",
        texts,
    )
    assert wrong == []


def test_positions_count_characters(open_page: Opener, empty: str) -> None:
    text = "a🍲b𝔣c\u00e9\ud7ff🌶🌶 end 🍲"
    page = open_page(empty)
    at = page.evaluate(
        """async ([text, n]) => { const {unitsOf} = await import('/page/text.js');
        return Array.from({length: n + 1}, (_, i) => unitsOf(text)(i)); }""",
        [text, len(text)],
    )
    assert at == units(text)


def test_numbered_clauses_without_blank_lines(open_page: Opener, empty: str) -> None:
    """As the text of a PDF has them: each is a paragraph, whose lines flow."""
    clause = (
        "4.1 The tenant keeps the inside in repair, doors, fittings and glass included.\nWhat is urgent may be done."
    )
    dotted = "4.2. Either of them may say, by letter, that the use of more than version\n3.2 of it needs consent."
    page = open_page(empty)
    kinds = page.evaluate(
        """async (text) => { const {paragraphs} = await import('/page/text.js');
        return paragraphs(text).map((one) => [one.kind, text.slice(one.start, one.end).trim()]); }""",
        f"4. Repairs\n{clause}\n{dotted}\n",
    )
    assert kinds == [["title", "4. Repairs"], ["item", clause], ["item", dotted]]


def test_kinds_of_paragraphs(open_page: Opener, empty: str) -> None:
    wrapped = (
        "This paragraph was broken into lines by hand, at a width of about sixty\n"
        "columns, as people do in e-mails and in the documents of programs, and\nends here."
    )
    cases = {
        wrapped: "prose",
        "Introduction": "title",
        "Introduction\n============": "heading",
        "## Two": "heading",
        "- one item of a list": "item",
        "if x:\n    return {\n        1,\n    }": "code",
        "a short line\nand a shorter one\nthird": "plain",
        "```\nanything\n\nat all\n```": "code",
        "name      age     city\nAnn       7       Bonn": "code",
    }
    page = open_page(empty)
    kinds = page.evaluate(
        """async (texts) => { const {paragraphs} = await import('/page/text.js');
        return texts.map((text) => paragraphs(text).map((one) => one.kind)); }""",
        list(cases),
    )
    assert kinds == [[kind] for kind in cases.values()], json.dumps(kinds)
