"""A missing optional package is told with its install line; any other failure of an import stays itself."""

from __future__ import annotations

import json

import pytest

from m2rag._optional import require
from m2rag.errors import MissingDependencyError


def test_returns_the_module() -> None:
    assert require("json", extra="eval") is json


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.part", "json.no_such_part"])
def test_missing_package_names_the_install(module: str) -> None:
    with pytest.raises(MissingDependencyError) as caught:
        require(module, extra="eval")
    assert module in str(caught.value)
    assert "pip install 'm2rag[eval]'" in str(caught.value)


def test_package_that_lacks_its_own_dependency_is_not_called_missing(tmp_path, monkeypatch) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_package_of_its_own\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package_of_its_own") as caught:
        require("half_installed", extra="eval")
    assert not isinstance(caught.value, MissingDependencyError)
