"""`AutoModel.from_pretrained` knows M2-BERT after `import m2rag`, and `import m2rag` stays fast.

transformers takes seconds to import, so our models are registered when somebody imports its Auto classes: at once if
that has happened, else right after it happens. "Right after" is when no module of transformers is half imported any
more: its modules import each other in circles, and ours would meet one without its names.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_AUTO = "transformers.models.auto.configuration_auto"


def register_on_import() -> None:
    """Import `m2rag.models`, which registers itself, now or as soon as the Auto classes are there."""
    if _AUTO in sys.modules:
        importlib.import_module("m2rag.models")
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the modules of transformers the usual way and notes when each has been executed."""

    def __init__(self) -> None:
        self.executing = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != "transformers":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None

    def executed(self) -> None:
        if self.executing == 0 and _AUTO in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            importlib.import_module("m2rag.models")


class _Loader(Loader):
    def __init__(self, usual: Loader, finder: _Finder) -> None:
        self._usual, self._finder = usual, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # Nothing of this class stays behind on the module.
        if module.__spec__ is not None:
            module.__spec__.loader = self._usual
        module.__loader__ = self._usual
        self._finder.executing += 1
        try:
            self._usual.exec_module(module)
        finally:
            self._finder.executing -= 1
        self._finder.executed()
