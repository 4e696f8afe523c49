"""`m2rag doctor`: what this installation has, what it lacks, what to do."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.text import Text

from m2rag.cli.common import API_KEY, AS_JSON, DEVICE, ERROR, MODEL, SOME_INDEX, VERBOSE, plural, say, say_json

_MARKS = {"ok": ("ok", "green"), "note": ("--", "yellow"), "problem": ("!!", "red")}


def doctor(
    index: SOME_INDEX = None,
    api_key: API_KEY = None,
    model: MODEL = None,
    device: DEVICE = None,
    as_json: AS_JSON = False,
    verbose: VERBOSE = False,
) -> None:
    """Check Python, packages, GPU, kernels, model and store, and say what to do about each problem.

    With --index also whether that index can be reached and was built with this model. Exit code 1: there are problems.

    JSON: {findings: [{name, state, found, advice}], problems}; state: ok, note (something that can be had), problem.
    """
    from m2rag.doctor import examine

    findings = []
    for finding in examine(model, device=device, index=index, api_key=api_key):
        findings.append(finding)
        if not as_json:
            mark, style = _MARKS[finding.state]
            line = Text(f"{mark}  ", style=style)
            line.append(f"{finding.name:<8}", style="bold")
            line.append(finding.found, style="default")
            say(line)
            if finding.advice:
                say(f"            {finding.advice}", style=style)
    problems = sum(finding.state == "problem" for finding in findings)
    if as_json:
        say_json({"findings": [asdict(finding) for finding in findings], "problems": problems})
    elif problems:
        say(f"{plural(problems, 'problem')}.")
    else:
        say("No problems.")
    if problems:
        raise typer.Exit(ERROR)
