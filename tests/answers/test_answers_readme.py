"""The README's example of answers runs as printed, against a chat server on loopback."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from support.chat_server import TEXT, chatting
from support.readme import Readme
from test_ask import TEXTS, FakeIndex

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    readme = Readme(README)
    if "\n## Answers\n" not in readme.text:
        pytest.skip("README.md has no section on answers yet")
    printed = io.StringIO()
    with chatting() as server, contextlib.redirect_stdout(printed):
        monkeypatch.delenv("M2RAG_CHAT_API_KEY", raising=False)
        code = readme.example("Answers").replace("https://host/v1", server.url)
        scope = {"index": FakeIndex(TEXTS)}
        exec(compile(code, str(README), "exec"), scope)
        scope["chat"].close()  # type: ignore[attr-defined]
    assert printed.getvalue().startswith(f"{TEXT}\n1 leases 0 ") and printed.getvalue().endswith(TEXT)
