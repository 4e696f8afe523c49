"""NDCG@10 of a model in training, on the same weights, by the fast path of inference."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from m2rag import M2Embedder
from m2rag.backends.local import LocalBackend
from m2rag.errors import TaskError
from m2rag.evaluation import DenseRanker, Task, evaluate, load_task
from m2rag.models import M2BertModel
from m2rag.tokenizer import TextTokenizer
from m2rag_train.errors import TrainingDataError

logger = logging.getLogger(__name__)

METRIC = "ndcg@10"


class TaskEvaluator(SentenceEvaluator):
    """Mean NDCG@10 over retrieval tasks; documents longer than the model takes are embedded in windows.

    Args:
        tasks: what is measured.
        tokenizer: of the model.
        max_tokens: window of the documents.
    """

    def __init__(self, tasks: Sequence[Task], tokenizer: TextTokenizer, max_tokens: int) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.primary_metric = METRIC
        self.greater_is_better = True
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def __call__(
        self, model: SentenceTransformer, output_path: str | None = None, epoch: float = -1, steps: int = -1, **_: Any
    ) -> dict[str, float]:
        """`ndcg@10`, and `TASK_ndcg@10` of each task, 0 to 1. The model is in the mode it was in afterwards."""
        encoder = encoder_of(model)
        training = encoder.training
        try:
            backend = LocalBackend(encoder, tokenizer=self._tokenizer, device=encoder.device, dtype="auto")
            embedder = M2Embedder(backend=backend, max_tokens=self._max_tokens)
            with torch.inference_mode():
                found = {
                    task.name: evaluate(task, [DenseRanker(embedder)]).systems[0].metrics[METRIC] for task in self.tasks
                }
        finally:
            encoder.train(training)
        mean = sum(found.values()) / len(found)
        shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in found.items())
        logger.info("NDCG@10 %.1f (%s)", 100 * mean, shown)
        return {METRIC: mean, **{f"{name}_{METRIC}": value for name, value in found.items()}}


def load_tasks(folders: Sequence[str], data: Path) -> list[Task]:
    """Tasks by folder, relative to the data folder.

    Raises:
        TrainingDataError: a folder is not a task, or a line of it is broken.
    """
    try:
        return [load_task(data / folder) for folder in folders]
    except TaskError as error:
        raise TrainingDataError(str(error)) from error


def encoder_of(model: torch.nn.Module) -> M2BertModel:
    """The M2-BERT inside a `SentenceTransformer`."""
    return next(module for module in model.modules() if isinstance(module, M2BertModel))
