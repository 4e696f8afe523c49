"""The page of the command line, made from the commands themselves whenever the site is built."""

from __future__ import annotations

import re
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGE = "reference/command-line.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """mkdocs calls this with the files found; adds the page."""
    files.append(File.generated(config, PAGE, content=command_line()))
    return files


def command_line() -> str:
    """Markdown: what `m2rag --help` says, and then each command."""
    from m2rag.cli.app import app

    root: Any = typer.main.get_command(app)
    context = root.make_context("m2rag", [], resilient_parsing=True)
    sections = [
        "# Command line",
        root.help,
        f"{_plain(root.epilog)}",
        "```text\nm2rag COMMAND --help\n```",
        "`--version` prints the version; `--verbose` before or after the command shows log messages.",
    ]
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        sections += [f"## {name}", *_command(command, command.context_class(command, parent=context, info_name=name))]
    return "\n\n".join(sections) + "\n"


def _command(command: Any, context: Any) -> list[str]:
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [_plain(command.help or ""), f"```text\nm2rag {context.info_name} {usage}\n```"]
    for kind, title in (("argument", "Argument"), ("option", "Option")):
        records = [p.get_help_record(context) for p in command.get_params(context) if p.param_type_name == kind]
        rows = [f"| <code>{_cell(name)}</code> | {_cell(told)} |" for name, told in filter(None, records)]
        if rows:
            parts.append("\n".join([f"| {title} | |", "|---|---|", *rows]))
    if command.epilog:
        example = command.epilog.removeprefix("Example: ")
        parts.append(f"```\n{example}\n```")
    return [part for part in parts if part]


def _plain(text: str) -> str:
    """Angle brackets and underscores as they stand, and one line a paragraph."""
    paragraphs = re.split(r"\n\s*\n", text.replace("\b", ""))
    return "\n\n".join(" ".join(one.split()).replace("<", "&lt;") for one in paragraphs)


def _cell(text: str) -> str:
    return _plain(text).replace("|", "&#124;").replace("*", "&#42;").replace("`", "&#96;")
