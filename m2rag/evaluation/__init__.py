"""Retrieval quality: BEIR-style task folders, systems to compare, NDCG@10 with its confidence interval.

```python
from m2rag import M2Embedder
from m2rag.evaluation import BM25Ranker, DenseRanker, evaluate_tasks, table

reports = evaluate_tasks(["my-task"], [BM25Ranker(), DenseRanker(M2Embedder(), name="m2rag-mini")])
header, rows = table(reports)
```
"""

from m2rag.evaluation.metrics import METRICS, bootstrap_interval, mean_metrics, score_run
from m2rag.evaluation.rankers import BM25Ranker, DenseRanker, FusionRanker, Ranker
from m2rag.evaluation.report import SystemReport, TaskReport, evaluate, evaluate_tasks, table
from m2rag.evaluation.tasks import Task, load_task

__all__ = [
    "METRICS",
    "BM25Ranker",
    "DenseRanker",
    "FusionRanker",
    "Ranker",
    "SystemReport",
    "Task",
    "TaskReport",
    "bootstrap_interval",
    "evaluate",
    "evaluate_tasks",
    "load_task",
    "mean_metrics",
    "score_run",
    "table",
]
