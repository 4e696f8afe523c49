"""Progress of embedding: documents, documents per second, tokens per second, time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Advance = Callable[[int, int], None]


class _RateColumn(ProgressColumn):
    """Documents and tokens per second since the start."""

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time or task.elapsed
        if not elapsed or not task.completed:
            return Text("-- docs/s")
        docs = task.fields["docs_done"] / elapsed
        return Text(f"{docs:,.1f} docs/s  {task.completed / elapsed:,.0f} tokens/s")


@contextmanager
def embedding_progress(
    label: str, docs: int, tokens: int, *, show: bool = True, console: Console | None = None
) -> Iterator[Advance]:
    """A bar on standard error for the length of the block; the block calls `advance(docs, tokens)` as it goes.

    The bar moves by tokens, because documents differ in length.

    Args:
        label: what is being done.
        docs: documents in all.
        tokens: tokens in all.
        show: False for a call that shows nothing.
        console: where to draw (default: standard error).
    """
    if not show:
        yield lambda docs, tokens: None
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[docs_done]}/{task.fields[docs]} docs"),
        _RateColumn(),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
    )
    with progress:
        bar = progress.add_task(label, total=tokens, docs=docs, docs_done=0)

        def advance(docs: int, tokens: int) -> None:
            done = progress.tasks[0].fields["docs_done"] + docs
            progress.update(bar, advance=tokens, docs_done=done)

        yield advance
