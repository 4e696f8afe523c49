"""Memory and time of one fine-tuning step on a CPU, with the orthogonal loss: one document in memory at a time.

    python benchmarks/train_memory.py              about half an hour on one core
    python benchmarks/train_memory.py --show       the table of the committed results again
    python benchmarks/train_memory.py --dry-run    seconds: the same code on toy sizes; no measurement, writes nothing

- negatives: the bundled checkpoint's shape, one query, a document and 1, 4 or 16 negatives of 4,096 tokens each; beside
  it "dense", the same loss with the graphs of all documents at once, as autograd does it.
- 32k: the 80M shape, one query, a document and a negative of 32,768 tokens each, layers computed twice (gradient
  checkpointing); at 2,048 tokens with and without it.

Every case is a fresh process: forward, backward, gradient norm, one AdamW step, products in bfloat16. Weights and
tokens are random: neither speed nor memory depends on them. "Model" is the process with weights and the optimizer's
state, "peak" the largest resident size of the whole process. Time is the processor's, in s, so that other work on the
machine does not count; on one thread and an idle machine a clock shows the same.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from common import RESULTS, Part, Row, Rows, environment, read_csv, run_parts, significant, table, write_csv
from torch import nn

from m2rag.models import M2BertConfig, M2BertModel
from m2rag_train.finetuning.gradients import chunks
from m2rag_train.finetuning.losses import OrthogonalLoss, right_documents
from m2rag_train.finetuning.schedule import padded

RESULT = RESULTS / "train-memory.csv"
COLUMNS = ("shape", "loss", "checkpointing", "n_tokens", "negatives", "cpu_seconds", "model_mb", "peak_mb", "step_mb")
SHAPES = {
    "80M": {"padding": "masked", "pooling": "mean"},
    "mini": {
        "vocab_size": 30522, "hidden_size": 384, "num_hidden_layers": 3, "intermediate_size": 1536,
        "hyena_emb_dim": 9, "hyena_filter_order": 32, "hyena_w": 3, "use_positional_encodings": False,
        "filter": "multiscale", "padding": "masked", "pooling": "mean",
    },
    "toy": {
        "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "long_conv_l_max": 256,
        "max_position_embeddings": 256, "hyena_filter_order": 8, "padding": "masked", "pooling": "mean",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One step.

    Attributes:
        shape: of the model, by name.
        loss: "orthogonal" or "dense".
        n_tokens: of the document and of each negative.
        negatives: their number.
        checkpointing: 1: layers are computed twice.
    """

    shape: str
    loss: str
    n_tokens: int
    negatives: int
    checkpointing: int


CASES = [
    *(Case("mini", "orthogonal", 4096, count, 0) for count in (1, 4, 16)),
    *(Case("mini", "dense", 4096, count, 0) for count in (1, 4)),
    Case("80M", "orthogonal", 2048, 1, 0),
    Case("80M", "orthogonal", 2048, 1, 1),
    Case("80M", "orthogonal", 32768, 1, 1),
]
DRY_CASES = [Case("toy", loss, 64, 2, twice) for loss in ("orthogonal", "dense") for twice in (0, 1)]


class Encoder(nn.Module):
    """What a `SentenceTransformer` is to a loss."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = M2BertModel(M2BertConfig(**SHAPES[shape])).train()

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return {"sentence_embedding": self.model(**features).pooler_output}


def dense_loss(encoder: Encoder, features: list[dict[str, torch.Tensor]], right: torch.Tensor) -> torch.Tensor:
    """The orthogonal loss with all graphs at once."""
    queries, documents = (
        torch.cat([encoder(some)["sentence_embedding"].float() for _, some in chunks(texts, 1)]) for texts in features
    )
    cosines = nn.functional.cosine_similarity(queries[:, None], documents[None], dim=-1)
    return (1 - cosines[right]).square().mean() + cosines[~right].square().mean()


def measure(case: Case) -> dict[str, float]:
    """Seconds of the processor that a step takes, and memory of this process in MB before it and at its peak."""
    encoder = Encoder(case.shape)
    vocabulary = encoder.model.config.vocab_size
    if case.checkpointing:
        encoder.model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-5)
    for parameter in encoder.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    model_mb = psutil.Process().memory_info().rss / 2**20

    rng = np.random.default_rng(0)
    queries = padded([rng.integers(1000 % vocabulary, vocabulary, 16)])
    documents = padded([rng.integers(1000 % vocabulary, vocabulary, case.n_tokens) for _ in range(1 + case.negatives)])
    labels = {"documents": torch.arange(1 + case.negatives), "relevant": torch.tensor([[0]])}
    start = time.process_time()
    if case.loss == "dense":
        loss = dense_loss(encoder, [queries, documents], right_documents(labels))
    else:
        loss = OrthogonalLoss(encoder)([queries, documents], labels)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
    optimizer.step()
    seconds = time.process_time() - start
    if not torch.isfinite(norm):
        raise FloatingPointError(f"the gradient norm is {norm}")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "cpu_seconds": significant(seconds, 3),
        "model_mb": round(model_mb),
        "peak_mb": round(peak_mb),
        "step_mb": round(peak_mb - model_mb),
    }


def merged(new: list[Row], old: list[Row]) -> list[Row]:
    """Rows in the order of the cases, a new one before an old one of the same case."""
    found = [next((row for row in [*new, *old] if row.items() >= asdict(case).items()), None) for case in CASES]
    return [row for row in found if row is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--only", type=int, action="append", help="number of a case, from 0; repeatable")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.show:
        print(table(read_csv(RESULT), COLUMNS))
        return
    if arguments.case:
        case = Case(**json.loads(arguments.case))
        Rows(arguments.rows).add({**asdict(case), **measure(case), **environment("cpu")})
        return
    cases = DRY_CASES if arguments.dry_run else CASES
    if arguments.only:
        cases = [cases[number] for number in arguments.only]
    parts = [Part(str(case), ["--case", json.dumps(asdict(case))], seconds=7200) for case in cases]
    done = run_parts(__file__, parts, report=lambda part, _: print(f"done: {part.name}", file=sys.stderr))
    rows = [row for finished in done.values() for row in finished.rows]
    print(table(rows, COLUMNS))
    failures = [f"{name}: {finished.failure}" for name, finished in done.items() if finished.failure]
    if failures:
        sys.exit("\n".join(failures))
    if not arguments.dry_run:
        write_csv(RESULT, merged(rows, read_csv(RESULT) if RESULT.exists() else []))


if __name__ == "__main__":
    main()
