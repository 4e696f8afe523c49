"""The code in Markdown pages: run it, check what it names, and see that command lines are ones.

A comment in front of a block says what it is:

- `<!-- not run: REASON -->`, Python that needs what tests do not have: compiled, and what it names is checked.
- `<!-- printed -->`, the output of the Python before it.
- `<!-- message -->`, an error message.

Shell commands stand in blocks without a language.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import inspect
import io
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"^(?:<!-- (?P<note>[^\n]+?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: after its fence; "" is a shell's.
        note: of the comment in front of it; "" without.
        code: its lines.
        line: of the page, where the code begins.
    """

    language: str
    note: str
    code: str
    line: int

    @property
    def is_run(self) -> bool:
        return self.language == "python" and not self.note.startswith("not run: ")


def blocks(text: str) -> list[Block]:
    """The blocks of a page, in order."""
    return [
        Block(found["language"], found["note"] or "", found["code"], text[: found.start("code")].count("\n") + 1)
        for found in _BLOCK.finditer(text)
    ]


def run_page(path: Path, text: str, replaced: Mapping[str, str]) -> dict[str, Any]:
    """Run a page's Python, block by block in one namespace, and compare what it prints with what it says.

    Args:
        path: of the page, for tracebacks.
        text: of the page.
        replaced: addresses in it, and those that are there in a test.

    Returns:
        The variables.
    """
    scope: dict[str, Any] = {"__name__": "page"}
    printed = ""
    for block in blocks(text):
        if block.is_run:
            code = block.code
            for old, new in replaced.items():
                code = code.replace(old, new)
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                exec(compile("\n" * (block.line - 1) + code, str(path), "exec"), scope)
            printed = said.getvalue()
        elif block.note == "printed":
            assert printed == block.code, f"{path.name}, line {block.line}: printed {printed!r}"
    return scope


def misnamed(code: str) -> list[str]:
    """What a block that is not run names and is not there: modules, names in them, methods, keyword arguments."""
    tree = ast.parse(code)
    known: dict[str, Any] = dict(vars(builtins))
    wrong: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.split(".")[0]] = importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    wrong.append(f"{node.module} has no {alias.name}")
                known[alias.asname or alias.name] = getattr(module, alias.name, None)
    instances: dict[str, Any] = {}
    for name, value in _made(tree):
        made = _resolved(value.func, known, {})
        if inspect.isclass(made):
            instances[name] = made
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            wrong += _wrong_call(node, known, instances)
    return wrong


def _made(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Names that calls are given: `name = call(...)` and `with call(...) as name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            for item in node.items:
                if isinstance(item.context_expr, ast.Call) and isinstance(item.optional_vars, ast.Name):
                    yield item.optional_vars.id, item.context_expr


def _resolved(node: ast.expr, known: Mapping[str, Any], instances: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name) and node.value.id in instances:
            return getattr(instances[node.value.id], node.attr, AttributeError)
        owner = _resolved(node.value, known, instances)
        return getattr(owner, node.attr, AttributeError) if owner is not None else None
    return None


def _wrong_call(call: ast.Call, known: Mapping[str, Any], instances: Mapping[str, Any]) -> list[str]:
    function = _resolved(call.func, known, instances)
    shown = ast.unparse(call.func)
    if function is AttributeError:
        return [f"there is no {shown}"]
    if not callable(function):
        return []
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some of those written in C tell nothing
        return []
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return []
    names = {one.name for one in parameters}
    return [f"{shown} takes no {key.arg}" for key in call.keywords if key.arg and key.arg not in names]


def commands(code: str, program: str = "m2rag") -> list[list[str]]:
    """The command lines of a program in a shell block, as lists of words."""
    lines = (line.strip() for line in code.replace("\\\n", " ").splitlines())
    found = (shlex.split(line, comments=True) for line in lines if line.startswith(f"{program} "))
    return [words[: words.index("|")] if "|" in words else words for words in found]


@lru_cache(maxsize=1)
def _commands() -> Any:
    import typer

    from m2rag.cli.app import app

    return typer.main.get_command(app)


def wrong_command(words: list[str]) -> str | None:
    """Why a command line of m2rag would be refused for its form; None if it would not.

    Whether files are there is another matter, and so is what the command does: it is not run.
    """
    import typer

    group = _commands()
    context = group.make_context("m2rag", ["doctor"])
    command = group.get_command(context, words[1])
    if command is None:
        return f"there is no command {words[1]}"
    try:
        command.make_context(words[1], words[2:], parent=context)
    except typer.Exit:
        return None
    except Exception as error:  # typer brings its own click, whose UsageError has no public name
        if not hasattr(error, "format_message"):
            raise
        told = str(error.format_message())
        return None if "does not exist" in told else told
    return None
