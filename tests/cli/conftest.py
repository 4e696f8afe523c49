"""A checkpoint of toy size, an index made with it, and the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.logs import logging_as_before
from tiny_models import saved, sentence
from typer.testing import CliRunner, Result

from m2rag.cli.app import app

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    with logging_as_before():
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "other", seed=1)


def run_app(*args: object, input: str | bytes | None = None) -> Result:
    # Fixtures of the session call this too, before any test's own fixtures are set up.
    with logging_as_before():
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=input)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="session")
def run() -> Run:
    return run_app


@pytest.fixture(scope="session")
def data() -> Callable[[Result], Any]:
    """What a command printed with --json; anything else on standard output is an error."""
    return lambda result: json.loads(result.stdout)


def write_documents(folder: Path) -> Path:
    """Three documents, one of them longer than the model takes, in two kinds and a subfolder."""
    (folder / "sub").mkdir(parents=True)
    (folder / "cats.txt").write_text("The cat sat on the mat. " + sentence(40), encoding="utf-8")
    (folder / "rivers.md").write_text("# Rivers\n\nOld stone houses near rivers. " + sentence(60, seed=1))
    (folder / "sub" / "long.txt").write_text(sentence(600, seed=2), encoding="utf-8")
    return folder


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "documents")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """An index of `documents`; tests only read it."""
    base = tmp_path_factory.mktemp("built")
    result = run_app("index", write_documents(base / "documents"), "-i", base / "index", "-m", model)
    assert result.exit_code == 0, result.stderr
    return base / "index"
