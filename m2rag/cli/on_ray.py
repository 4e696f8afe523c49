"""`m2rag index --engine ray`: the options, and indexing by Ray's workers."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m2rag.cli.common import INTERRUPTED, note, plural

if TYPE_CHECKING:
    from m2rag.index import AddProgress, AddReport
    from m2rag.index.sources import Source


class Engine(str, Enum):
    """What does the work."""

    LOCAL = "local"
    RAY = "ray"


ENGINE = Annotated[
    Engine,
    typer.Option("--engine", help="local: this process. ray: the workers of a Ray cluster, into an index on a server."),
]
ADDRESS = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="With ray: of the cluster, auto or HOST:6379. Default: RAY_ADDRESS, else a Ray on this machine.",
        show_default=False,
    ),
]
ACTORS = Annotated[
    int | None,
    typer.Option("--actors", min=1, help="With ray: how many embed. Default: as many as fit.", show_default=False),
]
CPUS = Annotated[
    float | None,
    typer.Option("--cpus-per-actor", help="With ray: 0.5, 1, 4, ... Default: 1, with a GPU 0.", show_default=False),
]
GPUS = Annotated[
    float | None,
    typer.Option(
        "--gpus-per-actor",
        help="With ray: 1, or 0.5 for two actors on one. Default: 1 if the cluster has any.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class RayOptions:
    """What the options of `--engine ray` say."""

    address: str | None
    actors: int | None
    cpus_per_actor: float | None
    gpus_per_actor: float | None

    def check(self, engine: Engine, api_key_given: bool) -> None:
        """Raise a usage error for options that do not go with the engine."""
        given = [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value is not None]
        if engine is Engine.LOCAL and given:
            raise typer.BadParameter(f"{', '.join(given)}: only with --engine ray")
        if engine is Engine.RAY and api_key_given:
            raise typer.BadParameter(
                "Ray shows the command line of a job to everyone who sees its cluster: put the key into the "
                "environment variable QDRANT_API_KEY",
                param_hint="--api-key",
            )


def add(
    place: str,
    sources: Iterable[Source] | list[Path],
    options: RayOptions,
    *,
    progress: Callable[[AddProgress], None] | None,
    **settings: Any,
) -> tuple[AddReport, int]:
    """Index with Ray; what was done, and how many documents the index then has.

    Args:
        settings: more arguments of `add_with_ray`.
    """
    from m2rag.index.on_ray import add_with_ray
    from m2rag.stores import without_secrets

    if not logging.getLogger("m2rag").isEnabledFor(logging.DEBUG):
        # Else Ray tells of every actor, as an error, that starting it again may fail.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with redirect_stdout(sys.stderr):  # where Ray tells of workers that died; our own output is for others
            report = add_with_ray(place, sources, **vars(options), progress=progress, **settings)
        return report, _count(place)
    except KeyboardInterrupt as interrupt:
        there = plural(_count(place), "document")
        note(f"Stopped. {there} safe in {without_secrets(place)}: run the same command again to go on from there.")
        raise typer.Exit(INTERRUPTED) from interrupt


def _count(place: str) -> int:
    from m2rag.errors import IndexNotFoundError
    from m2rag.stores import open_store

    try:
        store = open_store(place)
    except IndexNotFoundError:  # interrupted before it was made
        return 0
    try:
        return store.count()
    finally:
        store.close()
