"""The code of a README, for tests that run it as it stands."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest


class Readme:
    """The examples in a README.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text(encoding="utf-8")

    @property
    def examples(self) -> list[str]:
        """All of its Python code, by block."""
        return re.findall(r"```python\n(.*?)```", self.text, re.S)

    def example(self, section: str) -> str:
        """The only example of a section; "" is what comes before the first."""
        sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", self.text, re.M | re.S))
        [block] = re.findall(r"```python\n(.*?)```", sections.get(section, self.text.split("\n## ")[0]), re.S)
        return block

    def run(self, code: str, **replaced: str) -> dict[str, Any]:
        """Run an example, with some of its text replaced; returns its variables."""
        for old, new in replaced.items():
            assert old in code
            code = code.replace(old, new)
        scope: dict[str, Any] = {"__name__": "readme"}
        exec(compile(code, str(self.path), "exec"), scope)
        return scope


def contracts_folder(base: Path) -> Path:
    """The folder that examples index, path/to/folder below `base`: one document about liability, one about bread."""
    folder = base / "path" / "to" / "folder"
    folder.mkdir(parents=True)
    (folder / "contract.txt").write_text("The seller is liable if goods arrive late. Payment is due in May.")
    (folder / "recipe.txt").write_text("Bake the bread slowly and salt the soup.")
    return folder


def skip_unless_installed(code: str) -> None:
    """Skip the test where a package that the code imports is not installed: examples show those of others too."""
    for module in re.findall(r"^from (\S+) import", code, re.M):
        if not _installed(module):
            pytest.skip(f"{module} is not installed")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
