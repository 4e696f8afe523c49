from __future__ import annotations

import io

from rich.console import Console

from m2rag.progress import embedding_progress


def test_the_bar_shows_documents_and_rates() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    with embedding_progress("Reading", docs=4, tokens=1000, console=console) as advance:
        advance(1, 250)
        advance(3, 750)
    last = stream.getvalue().rsplit("Reading", 1)[-1]
    assert "4/4 docs" in last and "docs/s" in last and "tokens/s" in last


def test_nothing_is_drawn_unless_asked_for() -> None:
    stream = io.StringIO()
    with embedding_progress("Reading", 4, 1000, show=False, console=Console(file=stream)) as advance:
        advance(4, 1000)
    assert stream.getvalue() == ""
