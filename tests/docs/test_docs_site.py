"""The site builds strictly, its pages are whole, and nothing in it comes from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
READMES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(REPOSITORY.glob("*/*/README.md"))]
MADE = "reference/command-line.md"


class _Loader(yaml.SafeLoader):
    """mkdocs.yml may name functions of plugins; a test needs none of them."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def configuration() -> dict[str, Any]:
    return yaml.load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)


def in_navigation(items: list[Any]) -> list[str]:
    found: list[str] = []
    for item in items:
        value = next(iter(item.values())) if isinstance(item, dict) else item
        found += in_navigation(value) if isinstance(value, list) else [value]
    return found


def anchors(page: Path) -> set[str]:
    """Ids of the headings of a page, as mkdocs makes them, and of what the reference shows."""
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", prose, re.M)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", one).strip().lower()) for one in headings} | set(
        re.findall(r"^::: (\S+)$", text, re.M)
    )


def test_navigation_holds_every_page_once() -> None:
    listed = in_navigation(configuration()["nav"])
    assert sorted(listed) == sorted([*(path.relative_to(DOCS).as_posix() for path in PAGES), MADE])


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """As the strict build does, in no time."""
    made = {(DOCS / MADE).resolve(), *((DOCS / "images" / p.name).resolve() for p in RESULTS.glob("*.svg"))}
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_file() or there in made, target
        if anchor and there not in made:
            assert anchor in anchors(there), target


RESULTS = REPOSITORY / "benchmarks" / "results"


def test_paths_in_the_repository_exist() -> None:
    """`train/recipes/x.yaml` and the like, named in running text."""
    for page in PAGES:
        folders = r"(?:train|examples|benchmarks|integrations|tests)"
        for path in re.findall(rf"`({folders}/[\w./-]+)`", page.read_text(encoding="utf-8")):
            assert (REPOSITORY / path).exists(), f"{page.name}: {path}"


def test_no_page_is_copied_from_the_readme() -> None:
    """The pages go deeper; a paragraph that is in both places is one to forget when it changes."""
    readme = {line for line in _long_lines(REPOSITORY / "README.md")}
    twice = {line for page in PAGES for line in _long_lines(page) if line in readme}
    assert not twice


def _long_lines(path: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [line.strip() for line in text.splitlines() if len(line.strip()) > 70 and not line.startswith("|")]


def test_the_distribution_has_no_docs() -> None:
    from setuptools import find_namespace_packages

    found = [name for where in (".", "kernels", "train") for name in find_namespace_packages(where, include=["m2rag*"])]
    assert "m2rag" in found and not [name for name in found if "docs" in name or "hooks" in name]


def test_strict_build(tmp_path: Path) -> None:
    """No warning, no dead link or anchor, no stray page. One test, as a build takes seconds."""
    for package in ("material", "mkdocstrings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'm2rag[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    silent = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=REPOSITORY, env=silent, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr
    built = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    wanted = {page.removesuffix(".md") + ".html" for page in in_navigation(configuration()["nav"])}
    assert built == wanted | {"404.html"}
    check_that_it_needs_no_network(tmp_path)
    check_what_is_made_while_building(tmp_path)


def check_that_it_needs_no_network(site: Path) -> None:
    loads = re.compile(r"""<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=["']?((?:https?:)?//[^"'> ]+)""")
    for page in site.rglob("*.html"):
        assert not loads.findall(page.read_text(encoding="utf-8")), page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def check_what_is_made_while_building(site: Path) -> None:
    commands = (site / "reference" / "command-line.html").read_text(encoding="utf-8")
    assert 'id="train"' in commands and "--filterable" in commands
    benchmarks = (site / "benchmarks.html").read_text(encoding="utf-8")
    assert "<!-- results" not in benchmarks and "qmsum_question" in benchmarks and (site / "images/cpu.svg").is_file()
    reference = (site / "reference" / "m2rag.html").read_text(encoding="utf-8")
    assert 'id="m2rag.embedder.M2Embedder.embed_documents"' in reference and "IndexMismatchError" in reference
