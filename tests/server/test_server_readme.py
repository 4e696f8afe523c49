"""The README's example of a server runs as printed, against one on loopback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.readme import Readme
from support.serving import bundled_server  # noqa: F401

from m2rag import M2Embedder

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_example_gives_the_local_vectors(bundled_server: str) -> None:  # noqa: F811
    code = Readme(README).example("A server for a team")
    assert "http://127.0.0.1:8000/v1" in code
    scope: dict = {}
    exec(compile(code.replace("http://127.0.0.1:8000/v1", bundled_server), str(README), "exec"), scope)
    expected = M2Embedder(device="cpu").embed_documents(["a whole document", "another one"]).vectors
    np.testing.assert_allclose(scope["vectors"], expected, atol=1e-6)
