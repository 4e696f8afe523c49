"""Errors of training, in the library's own tree: the command line shows their message and nothing else."""

from __future__ import annotations

from m2rag.errors import M2RagError


class RecipeError(M2RagError, ValueError):
    """A recipe is not readable, or a key of it is unknown, missing or out of range; the message names its path."""


class TrainingDataError(M2RagError, ValueError):
    """Training data is broken: the message names the file, the line or the id, and what is wrong with it."""


class DivergedError(M2RagError, FloatingPointError):
    """A loss or gradient is NaN or infinite. The last saved state is intact; the message names the step and it."""


class CheckpointWriteError(M2RagError, OSError):
    """A state or model could not be written (disk full, no permission). What was saved before is intact."""
