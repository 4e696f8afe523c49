"""The command line sets up the logging of its process; other tests have their own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logging_as_before() -> Iterator[None]:
    """Levels and handlers are put back afterwards."""
    names = (None, "m2rag", "m2rag_kernels", "m2rag_train", "m2rag.index.ingest")
    before = [(logger, logger.level, logger.handlers[:]) for logger in map(logging.getLogger, names)]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
