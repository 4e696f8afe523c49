"""`m2rag train RECIPE`: one command for every kind of recipe."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from m2rag.cli.common import VERBOSE, note


def train(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="YAML file, see train/recipes.", exists=True, dir_okay=False)
    ],
    run: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder of the run: states, logs, and at the end the model, in DIR/model.",
            file_okay=False,
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder that the recipe's paths start from.", exists=True, file_okay=False),
    ] = Path("."),
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe (dots reach inside); repeatable."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, ...; default: a GPU where there is one.")
    ] = None,
    stop_after: Annotated[
        int | None, typer.Option(metavar="STEPS", help="Stop after so many steps; run again to go on.", min=1)
    ] = None,
    verbose: VERBOSE = False,
) -> None:
    """Train as a recipe says. Run it again to go on after Ctrl-C, a crash or --stop-after.

    Example: m2rag train train/recipes/m2rag-mini.yaml --run runs/mini --data DATA
    """
    from transformers.utils.logging import disable_progress_bar

    from m2rag_train.errors import CheckpointWriteError
    from m2rag_train.recipe import RunOptions, is_first_process, load_recipe

    # A run of hours that says nothing looks like one that hangs.
    logging.getLogger("m2rag_train").setLevel(logging.DEBUG if verbose else logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.DEBUG if verbose else logging.INFO)
    plan = load_recipe(recipe, changes or [])
    # One for each file that is read or written: lines of the log say more.
    disable_progress_bar()
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointWriteError(f"{run}: {error.strerror}") from error
    model = plan.run(RunOptions(run=run, data=data, device=device, stop_after=stop_after))
    if not is_first_process():
        return
    if model is None:
        note(f"Stopped after {stop_after} steps; the same command goes on.")
    else:
        note(f"Done. m2rag index PATHS --model {model} ..." if (model / "modules.json").exists() else "Done.")
        typer.echo(model)
