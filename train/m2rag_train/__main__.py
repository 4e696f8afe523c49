"""python -m m2rag_train {cache,train,export} RECIPE ..."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

# Errors name what is wrong in their last line; pretty tracebacks would bury it in frames.
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Recipe = Annotated[Path, typer.Argument(help="YAML file, see train/recipes", exists=True, dir_okay=False)]
Run = Annotated[Path, typer.Option(help="folder of the run: teacher vectors, saved states")]
TeacherFolder = Annotated[Path, typer.Option(help="folder of the teacher model", exists=True, file_okay=False)]
Data = Annotated[Path, typer.Option(help="folder of the recipe's sources", exists=True, file_okay=False)]


@app.callback()
def _configure() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


@app.command()
def cache(recipe: Recipe, run: Run, teacher: TeacherFolder, data: Data) -> None:
    """Compute the teacher's vectors once; run again to resume."""
    from m2rag_train.recipe import load_recipe
    from m2rag_train.teacher import Teacher, build_cache

    build_cache(load_recipe(recipe), data, Teacher(teacher), run / "teacher")


@app.command()
def train(
    recipe: Recipe,
    run: Run,
    teacher: TeacherFolder,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    stop_after: Annotated[int | None, typer.Option(help="steps of this call")] = None,
) -> None:
    """Train from the last saved state to the recipe's end; run again to resume, also after Ctrl-C or a crash."""
    from m2rag_train.distill import train as run_recipe
    from m2rag_train.recipe import load_recipe
    from m2rag_train.teacher import Teacher

    model = Teacher(teacher)
    run_recipe(
        load_recipe(recipe),
        run,
        model.word_embeddings,
        cls_id=model.cls_id,
        sep_id=model.sep_id,
        device=device,
        stop_after=stop_after,
    )


@app.command()
def export(recipe: Recipe, run: Run, out: Annotated[Path, typer.Option(help="folder to write")]) -> None:
    """Write the last saved state as a folder that loads everywhere."""
    from m2rag_train.export import export as write
    from m2rag_train.recipe import load_recipe

    typer.echo(write(load_recipe(recipe), run, out))


if __name__ == "__main__":
    app()
