"""The README's code runs as it stands, against the test double."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.atlas_front import AtlasFront
from support.readme import Readme, contracts_folder, skip_unless_installed

README = Readme(Path(__file__).parents[1] / "README.md")


def test_the_first_example_is_short() -> None:
    """Beside imports, five lines at most."""
    assert len([line for line in README.examples[0].splitlines() if line and not line.startswith("from")]) <= 5


@pytest.mark.parametrize("number", range(len(README.examples)))
@pytest.mark.filterwarnings("default")  # of the packages of others; and an example closes no client
def test_readme(
    number: int,
    front: AtlasFront,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = README.examples[number]
    skip_unless_installed(code)
    monkeypatch.chdir(tmp_path)
    contracts_folder(tmp_path)
    README.run(code, **{"mongodb://localhost:27017": front.uri})
    said = capsys.readouterr().out
    assert "liable" in said or "contract.txt" in said or "document" in said or "status='READY'" in said
