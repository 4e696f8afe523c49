"""`--report FILE`: what could not be indexed, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from m2rag.index import AddProgress, Failure, Outcome

REPORT = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE",
        dir_okay=False,
        help="Write each failure to this file as it happens, one JSON object a line: id, error, message, path.",
        show_default=False,
    ),
]


@contextmanager
def failure_report(
    path: Path | None, show: Callable[[AddProgress], None] | None = None
) -> Iterator[Callable[[AddProgress], None] | None]:
    """A progress callback that writes failures to a file, which is emptied first, and hands on to `show`.

    They are written at once and not at the end, so that a run that is killed leaves them too.
    """
    if path is None:
        yield show
        return
    try:
        # A name that is not valid Unicode becomes the escape that JSON has for it.
        file = path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be written: {error.strerror}", param_hint="--report") from error
    with file:

        def record(state: AddProgress) -> None:
            for outcome in state.finished:
                if outcome.cause is not None:
                    file.write(json.dumps(failure_as_json(outcome), ensure_ascii=False) + "\n")
                    file.flush()
            if show is not None:
                show(state)

        yield record


def failure_as_json(failure: Failure | Outcome) -> dict[str, Any]:
    """What failed and why, ready for JSON."""
    message = str(failure.cause)
    return {"id": failure.id, "error": type(failure.cause).__name__, "message": message, "path": failure.path}
