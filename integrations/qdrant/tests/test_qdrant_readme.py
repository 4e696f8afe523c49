"""The README's code runs as it stands, against the test double."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from support.qdrant_server import QdrantTestServer

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


def missing(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True


@pytest.mark.parametrize("number", range(len(BLOCKS)))
@pytest.mark.filterwarnings("default")  # of the packages of others
def test_readme(
    number: int,
    double: QdrantTestServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = BLOCKS[number]
    needed = re.findall(r"^from (\S+) import", code, re.M)
    for module in needed:
        if missing(module):
            pytest.skip(f"{module} is not installed")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "path" / "to" / "folder"
    folder.mkdir(parents=True)
    (folder / "contract.txt").write_text("The seller is liable if goods arrive late. Payment is due in May.")
    (folder / "recipe.txt").write_text("Bake the bread slowly and salt the soup.")
    if '"papers"' in code and ".add(" not in code:
        from qdrant_client import QdrantClient

        from m2rag import M2Embedder
        from m2rag_qdrant import DocumentCollection

        DocumentCollection.on_server(QdrantClient(double.url), "papers", M2Embedder()).add(folder)
    exec(compile(code.replace("http://localhost:6333", double.url), str(README), "exec"), {"__name__": "readme"})
    said = capsys.readouterr().out
    assert "liable" in said or "contract.txt" in said or "document" in said
