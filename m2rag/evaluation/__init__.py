"""Retrieval quality: tasks by name or from folders, systems to compare, NDCG@10 with its confidence interval.

```python
from m2rag import M2Embedder
from m2rag.evaluation import BM25Ranker, DenseRanker, as_markdown, evaluate_tasks, find_tasks

rankers = [BM25Ranker(), DenseRanker(M2Embedder(), name="m2rag-mini")]
reports = evaluate_tasks(find_tasks(["my-task", "needle"], lengths=[512, 8192]), rankers)
table = as_markdown(reports, rankers)
```

`m2rag.evaluation.mteb` lets mteb run our models.
"""

from m2rag.evaluation.catalogue import find_tasks
from m2rag.evaluation.chunks import ChunkRanker, M2Encoder, SentenceTransformerEncoder
from m2rag.evaluation.generated import LENGTHS, needle_task, passkey_task
from m2rag.evaluation.loco import LOCO_V0, LOCO_V1, load_loco_v0, load_loco_v1
from m2rag.evaluation.metrics import METRICS, bootstrap_interval, mean_metrics, score_run
from m2rag.evaluation.rankers import BM25Ranker, DenseRanker, FusionRanker, Ranker
from m2rag.evaluation.report import SystemReport, TaskReport, evaluate, evaluate_tasks, length_table, table
from m2rag.evaluation.results import as_json, as_markdown
from m2rag.evaluation.tasks import Task, load_task

__all__ = [
    "LENGTHS",
    "LOCO_V0",
    "LOCO_V1",
    "METRICS",
    "BM25Ranker",
    "ChunkRanker",
    "DenseRanker",
    "FusionRanker",
    "M2Encoder",
    "Ranker",
    "SentenceTransformerEncoder",
    "SystemReport",
    "Task",
    "TaskReport",
    "as_json",
    "as_markdown",
    "bootstrap_interval",
    "evaluate",
    "evaluate_tasks",
    "find_tasks",
    "length_table",
    "load_loco_v0",
    "load_loco_v1",
    "load_task",
    "mean_metrics",
    "needle_task",
    "passkey_task",
    "score_run",
    "table",
]
