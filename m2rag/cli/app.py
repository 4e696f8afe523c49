"""The application: its commands, and what becomes of errors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from m2rag.cli import ask, demo, doctor, embed, evaluation, index, info, maintenance, search, serve, sync
from m2rag.cli.common import ERROR, INTERRUPTED, VERBOSE, note, set_up_logging
from m2rag.errors import M2RagError

logger = logging.getLogger(__name__)


# Functions that other packages add as commands; this one imports none of them.
ENTRY_POINTS = "m2rag.commands"


class _Commands(TyperGroup):
    """A library error is one message and exit code 1, Ctrl-C is 130; anything else is a bug and shows itself.

    Commands of other packages are loaded when they are called or listed, so that one which cannot be imported stops
    nothing but itself.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        own = super().list_commands(ctx)
        return own + sorted(entry_points(group=ENTRY_POINTS).names - set(own))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        found = tuple(entry_points(group=ENTRY_POINTS, name=cmd_name))
        return own if own is not None or not found else _command(found[0])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except M2RagError as error:
            # The details are for a bug report; the message alone says what to do.
            logger.debug("details", exc_info=error)
            note(f"Error: {error}", style="red")
            raise typer.Exit(ERROR) from error
        except KeyboardInterrupt as interrupt:
            note("Stopped.")
            raise typer.Exit(INTERRUPTED) from interrupt


def _command(entry: EntryPoint) -> Any:
    """The command behind an entry point; one that cannot be loaded says so when it is called."""
    settings = {}
    try:
        function = entry.load()
    # The code of another package runs here, and may raise anything.
    except Exception as error:
        function = _unavailable(entry, error)
        settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    single = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
    single.command(entry.name, context_settings=settings)(function)
    return typer.main.get_command(single)


def _unavailable(entry: EntryPoint, cause: Exception) -> Callable[[], None]:
    def command() -> None:
        """Not available: its package cannot be loaded."""
        told = f"{type(cause).__name__}: {cause}"
        raise M2RagError(f"the command {entry.name!r} ({entry.value}) cannot be loaded: {told}") from cause

    return command


app = typer.Typer(
    name="m2rag",
    cls=_Commands,
    help="Find whole long documents by meaning: one vector for each, made from all of its text.",
    epilog="Start with: m2rag demo. Exit codes: 0 done, 1 error, 2 wrong usage, 3 some documents failed, "
    "130 interrupted. Results go to standard output, all else to standard error.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from m2rag import __version__

        typer.echo(f"m2rag {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    verbose: VERBOSE = False,
) -> None:
    set_up_logging(verbose)


app.command("demo", epilog="Example: m2rag demo -q 'How are wheels named?'")(demo.demo)
app.command("embed", epilog="Example: m2rag embed --file report.pdf --on-too-long window --out report.npy")(embed.embed)
app.command("index", epilog="Example: m2rag index ~/papers --index papers.m2rag")(index.index)
app.command("sync", epilog="Example: m2rag sync ~/papers --index papers.m2rag --watch")(sync.sync)
app.command("search", epilog="Example: m2rag search 'how long may a lease run?' --index papers.m2rag -k 5")(
    search.search
)
app.command("ask", epilog="Example: m2rag ask 'how long may a lease run?' --index papers.m2rag --chat-model gpt-4o")(
    ask.ask
)
app.command("serve", epilog="Example: m2rag serve --index papers.m2rag")(serve.serve)
app.command("doctor", epilog="Example: m2rag doctor --index papers.m2rag")(doctor.doctor)
app.command("info", epilog="Example: m2rag info --index papers.m2rag")(info.info)
app.command("delete", epilog="Example: m2rag delete reports/2019.pdf --index papers.m2rag")(maintenance.delete)
app.command("snapshot", epilog="Example: m2rag snapshot --index papers.m2rag --out papers.m2rag.tar.gz")(
    maintenance.snapshot
)
app.command("restore", epilog="Example: m2rag restore papers.m2rag.tar.gz --index papers.m2rag")(maintenance.restore)
app.command("eval", epilog="Example: m2rag eval tasks/qmsum tasks/textbooks --out figures.json")(evaluation.evaluate)
