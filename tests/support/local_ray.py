"""A Ray on this machine, for tests."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@contextmanager
def local_ray(*modules: ModuleType) -> Iterator[tuple[Any, Path]]:
    """A Ray of two CPUs, and the folder that all it writes lies in; shut it down to look through that.

    Args:
        modules: of tests, which workers do not find.
    """
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'm2rag[ray]'")
    pytest.importorskip("ray.data")
    from ray.cloudpickle import register_pickle_by_value

    for module in modules:
        register_pickle_by_value(module)
    # Sockets lie in it: a long path is none.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100_000_000,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
        )
        yield ray, Path(folder)
        ray.shutdown()
