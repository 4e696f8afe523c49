"""The README's code runs as it stands, against the test double."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from support.atlas_front import AtlasFront

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


def missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True


def test_the_first_example_is_short() -> None:
    """Beside imports, five lines at most."""
    assert len([line for line in BLOCKS[0].splitlines() if line and not line.startswith("from")]) <= 5


@pytest.mark.parametrize("number", range(len(BLOCKS)))
@pytest.mark.filterwarnings("default")  # of the packages of others; and an example closes no client
def test_readme(
    number: int,
    front: AtlasFront,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = BLOCKS[number]
    for module in re.findall(r"^from (\S+) import", code, re.M):
        if missing(module):
            pytest.skip(f"{module} is not installed")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "path" / "to" / "folder"
    folder.mkdir(parents=True)
    (folder / "contract.txt").write_text("The seller is liable if goods arrive late. Payment is due in May.")
    (folder / "recipe.txt").write_text("Bake the bread slowly and salt the soup.")
    assert "mongodb://localhost:27017" in code
    exec(compile(code.replace("mongodb://localhost:27017", front.uri), str(README), "exec"), {"__name__": "readme"})
    said = capsys.readouterr().out
    assert "liable" in said or "contract.txt" in said or "document" in said or "status='READY'" in said
