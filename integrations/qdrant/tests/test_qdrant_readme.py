"""The README's code runs as it stands, against the test double."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.qdrant_server import QdrantTestServer
from support.readme import Readme, contracts_folder, skip_unless_installed

README = Readme(Path(__file__).parents[1] / "README.md")


@pytest.mark.parametrize("number", range(len(README.examples)))
@pytest.mark.filterwarnings("default")  # of the packages of others
def test_readme(
    number: int,
    double: QdrantTestServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = README.examples[number]
    skip_unless_installed(code)
    monkeypatch.chdir(tmp_path)
    folder = contracts_folder(tmp_path)
    if '"papers"' in code and ".add(" not in code:
        from qdrant_client import QdrantClient

        from m2rag import M2Embedder
        from m2rag_qdrant import DocumentCollection

        DocumentCollection.on_server(QdrantClient(double.url), "papers", M2Embedder()).add(folder)
    README.run(code.replace("http://localhost:6333", double.url))
    said = capsys.readouterr().out
    assert "liable" in said or "contract.txt" in said or "document" in said
