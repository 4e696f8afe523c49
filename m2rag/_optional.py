"""The one place where optional packages are imported, so that a missing one is told with its exact install line."""

from __future__ import annotations

import importlib
from typing import Any

from m2rag.errors import MissingDependencyError


def require(module: str, *, extra: str) -> Any:
    """Import and return `module`, which comes with the extra `extra` of this distribution.

    Args:
        module: import name, dotted or not ("bm25s", "Stemmer").
        extra: name of the extra that installs it ("eval").

    Raises:
        MissingDependencyError: `module` is not installed. An installed package that fails while it is being
            imported, or lacks a dependency of its own, raises its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module != error.name and not module.startswith(error.name + "."):
            raise
        raise MissingDependencyError(
            f"this needs the package {module!r}, which is not installed: pip install 'm2rag[{extra}]'"
        ) from error
