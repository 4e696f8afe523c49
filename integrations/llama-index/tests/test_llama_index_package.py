"""The distribution by the book of LlamaIndex: a namespace package, and metadata that names its classes."""

from __future__ import annotations

import importlib
import re
from importlib.metadata import requires
from pathlib import Path

import llama_index.embeddings.m2rag as package

ROOT = Path(__file__).parents[1]


def test_namespace() -> None:
    assert (ROOT / "llama_index/embeddings/m2rag/py.typed").is_file()
    for folder in ("llama_index", "llama_index/embeddings"):
        assert not (ROOT / folder / "__init__.py").exists(), "it would hide all other packages of LlamaIndex"
    assert importlib.import_module("llama_index.core") and importlib.import_module("llama_index").__file__ is None


def test_llamahub_metadata_names_what_is_there() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'import_path = "{package.__name__}"' in text
    section = text.split("[tool.llamahub.class_authors]")[1].split("[tool.")[0]
    named = re.findall(r"^(\w+) = ", section, re.M)
    assert set(named) == {name for name in package.__all__ if not name.endswith("Error")}
    assert all(hasattr(package, name) for name in package.__all__)


def test_requirements() -> None:
    needed = [one for one in requires("llama-index-embeddings-m2rag") or [] if "extra ==" not in one]
    assert {re.split(r"[<>=]", one)[0] for one in needed} == {"llama-index-core", "m2rag", "numpy", "pydantic"}
