"""The Python of the documentation runs as printed and prints what the pages say; its command lines are ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.pages import blocks, commands, misnamed, run_page, wrong_command
from support.readme import skip_unless_installed

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted(path for path in (REPOSITORY / "docs").rglob("*.md"))
READMES = [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("integrations/*/README.md"))]
OTHERS = [REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "examples").rglob("README.md"))]


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


WITH_CODE = [path for path in PAGES if any(block.language == "python" for block in blocks(path.read_text()))]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
@pytest.mark.filterwarnings("default")  # of the packages of others
def test_python_runs(page: Path, place: Path, addresses: Callable[[str], dict[str, str]]) -> None:
    text = page.read_text(encoding="utf-8")
    skip_unless_installed(text)
    run_page(page, text, addresses(text))


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_python_that_is_not_run_names_what_there_is(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "python" and not block.is_run:
            assert len(block.note.removeprefix("not run: ")) > 5, f"line {block.line}: no reason"
            assert misnamed(block.code) == [], f"line {block.line}"


@pytest.mark.parametrize("page", [*PAGES, *READMES, *OTHERS], ids=name_of)
def test_command_lines(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language in ("", "console", "bash", "sh"):
            for words in commands(block.code):
                assert wrong_command(words) is None, f"line {block.line}: {' '.join(words)}"


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=name_of)
def test_extras_and_targets_exist(page: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 brings it")
    text = page.read_text(encoding="utf-8")
    projects = {}
    for file in (REPOSITORY / "pyproject.toml", *REPOSITORY.glob("integrations/*/pyproject.toml")):
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        projects[project["name"]] = set(project.get("optional-dependencies", {}))
    for name, extras in re.findall(r"\b([a-z][a-z0-9-]*m2rag|m2rag[a-z-]*)\[([a-z,]+)\]'", text):
        assert set(extras.split(",")) <= projects[name], f"{name}[{extras}]"
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.M))
    for block in blocks(text):
        for words in commands(block.code, "make"):
            assert words[1] in targets, f"line {block.line}: {words}"


# Where a test of its own runs the README's Python, by section; all other sections are for the two tests below.
COVERED = {"First example", "Vectors", "The index", "A server for a team", "Answers"}


def readme_sections() -> list[tuple[str, str]]:
    text = READMES[0].read_text(encoding="utf-8")
    sections = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return [(title, body) for title, body in sections if title not in COVERED and "```python" in body]


@pytest.mark.parametrize(("title", "body"), readme_sections(), ids=lambda value: value if len(value) < 40 else "")
def test_readme_names_what_there_is(title: str, body: str) -> None:
    for block in blocks(body):
        if block.language == "python":
            assert misnamed("from m2rag import LongDocumentIndex, M2Embedder\n" + block.code) == []


def test_readme_remote_models(foreign_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example runs against an API of the same form; the provider's name in it is an address of the internet."""
    sections = dict(readme_sections())
    if "Remote models" not in sections:
        pytest.skip("README.md has no such section")
    monkeypatch.setenv("OPENAI_API_KEY", "no-key")
    given = 'from m2rag import M2Embedder\ntexts = ["A whole document.", "Another one."]\n'
    text = given + blocks(sections["Remote models"])[0].code
    scope = run_page(READMES[0], f"```python\n{text}```\n", {"https://host/v1": foreign_server})
    assert len(scope["result"]) == 2


def test_a_wrong_page_is_caught(place: Path) -> None:
    """The tests above can fail."""
    from m2rag import M2Embedder

    assert misnamed("from m2rag import M2Embeder") == ["m2rag has no M2Embeder"]
    assert misnamed("from m2rag import M2Embedder\nM2Embedder(dtyp='x')") == ["M2Embedder takes no dtyp"]
    wrong = misnamed("from m2rag import M2Embedder\ne = M2Embedder()\ne.embed()\ne.embed_documents([], passage=1)")
    assert wrong == ["there is no e.embed", "e.embed_documents takes no passage"] and M2Embedder
    assert "--indx" in str(wrong_command(["m2rag", "index", "papers", "--indx", "p"]))
    assert wrong_command(["m2rag", "serch", "x"]) == "there is no command serch"
    assert "--index" in str(wrong_command(["m2rag", "search", "x"]))
    assert wrong_command(["m2rag", "train", "there-is-no.yaml", "--run", "r", "--data", "nowhere"]) is None
    with pytest.raises(AssertionError, match="printed '2"):
        run_page(Path("page.md"), "```python\nprint(2)\n```\n\n<!-- printed -->\n```text\n3\n```\n", {})
    with pytest.raises(NameError):
        run_page(Path("page.md"), "```python\nnowhere()\n```\n", {})
