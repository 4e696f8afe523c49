"""Tasks by name: LoCo, needle and passkey, and folders on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m2rag.errors import TaskError
from m2rag.evaluation.generated import LENGTHS, needle_task, passkey_task
from m2rag.evaluation.loco import load_loco_v0, load_loco_v1
from m2rag.evaluation.tasks import Task, load_task

_GENERATED = {"needle": needle_task, "passkey": passkey_task}
_LOCO = {"loco-v0": load_loco_v0, "loco-v1": load_loco_v1}
NAMES = (*_LOCO, *_GENERATED)


def find_tasks(
    names: Sequence[str | Path],
    *,
    split: str | None = None,
    lengths: Sequence[int] = LENGTHS,
    data: str | Path | None = None,
) -> list[Task]:
    """The tasks that `names` stand for, in their order.

    Args:
        names: each of "loco-v1" or "loco-v0" (all its tasks), "loco-v1/qmsum" (one of them), "needle", "passkey" (one
            task per length), or else a task folder in BEIR's layout ("./needle" is a folder).
        split: of the folders, see `load_task`.
        lengths: of needle and passkey, in tokens.
        data: where copies of LoCo's data sets are, see `m2rag.evaluation.loco.load_rows`; None: on the hub.

    Raises:
        TaskError: a task is missing or broken; two have the same name.
    """
    tasks: list[Task] = []
    for given in names:
        name, _, part = str(given).partition("/")
        if given in _GENERATED:
            tasks += [_GENERATED[str(given)](length) for length in lengths]
        elif name in _LOCO and isinstance(given, str):
            tasks += _LOCO[name](*([[part]] if part else []), data=data)
        else:
            tasks.append(_folder(given, split))
    seen = set()
    for task in tasks:
        if task.name in seen:
            raise TaskError(f"two tasks are called {task.name}: give one of them, or rename a folder")
        seen.add(task.name)
    return tasks


def _folder(given: str | Path, split: str | None) -> Task:
    try:
        return load_task(given, split=split)
    except TaskError as error:
        if Path(given).is_dir():
            raise
        raise TaskError(f"{error}. By name there are {', '.join(NAMES)}, and loco-v1/TASK") from error
