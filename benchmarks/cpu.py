"""Speed and memory on CPUs at the 80M shape, against the reference algorithm and BERT-base on the same machine.

    python benchmarks/cpu.py              about 15 minutes on two cores, when nothing else runs on them
    python benchmarks/cpu.py --show       the tables of the committed results again
    python benchmarks/cpu.py --dry-run    seconds: the same code on toy sizes; not a measurement, writes nothing

- reference: the naive path, which is the reference implementation's algorithm: fp32, filters made again in every call.
- ours: the cpu path in bfloat16. m2rag-mini: the same with the bundled checkpoint.
- bert-base: transformers' BertModel with SDPA attention, fp32. At 32,768 tokens it is left out: its attention alone is
  40 TFLOP there, several minutes on two cores (`--bert-longest` measures it all the same).
- embed_query: `M2Embedder().embed_query` on short questions in one process, as a search does it.

Weights are random except the bundled ones: speed does not depend on them. Every measurement is a fresh process that
builds the model, notes its memory, and runs one document; implementations take turns, so that a slow minute of the
machine hits all of them. "First" is a process's first document at a length, "seconds" the median of its next ones; on
long documents the reference and BERT keep nothing, so their first is their only one. Figures are medians over the
rounds; memory is the largest peak above the loaded model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers
from common import (
    RESULTS,
    Bar,
    Part,
    Row,
    Rows,
    bars_table,
    environment,
    find,
    ratio,
    read_csv,
    run_parts,
    significant,
    table,
    write_csv,
)

from m2rag import M2Embedder
from m2rag.models import M2BertConfig, M2BertModel, load_checkpoint
from m2rag.models.checkpoints import BUNDLED

REFERENCE, OURS, BERT, QUERY = "reference", "ours", "bert-base", "embed_query"
BUNDLED_NAME = "m2rag-mini"
DTYPES = {REFERENCE: "float32", BERT: "float32", QUERY: "float32"}
CELL_SECONDS = 1800
QUESTIONS = (
    "who is liable if the goods arrive late",
    "what was decided about the budget of the remote control",
    "when does a lease end before its term",
    "how large may a packet be after compression",
    "which keys have to be revoked when a server is broken into",
)


@dataclass(frozen=True)
class Sizes:
    """What is measured: four rising lengths, the tokens of a query, and changes to the configurations."""

    lengths: tuple[int, int, int, int] = (512, 2048, 8192, 32768)
    query_tokens: tuple[int, ...] = (12, 16)
    queries: int = 50
    m2_config: tuple[tuple[str, int], ...] = ()
    bert_config: tuple[tuple[str, int], ...] = ()


REAL = Sizes()
TOY_WIDTHS = (("hidden_size", 32), ("num_hidden_layers", 2), ("intermediate_size", 64), ("num_attention_heads", 2))
TOY = Sizes(
    lengths=(8, 16, 32, 64),
    query_tokens=(4, 6),
    queries=3,
    m2_config=(*TOY_WIDTHS, ("long_conv_l_max", 64), ("max_position_embeddings", 64)),
    bert_config=TOY_WIDTHS,
)


@dataclass(frozen=True)
class Cell:
    """One measurement: `repeats` timed documents after the first one; 0: the first one counts."""

    implementation: str
    n_tokens: int
    repeats: int


def build(name: str, sizes: Sizes, max_tokens: int) -> torch.nn.Module:
    """A model ready to run."""
    torch.manual_seed(0)
    if name == BERT:
        changes = dict(sizes.bert_config)
        config = transformers.BertConfig(max_position_embeddings=max_tokens, attn_implementation="sdpa", **changes)
        return transformers.BertModel(config).eval()
    if name == BUNDLED_NAME:
        model = load_checkpoint(BUNDLED / name).eval()
    else:
        model = M2BertModel(M2BertConfig(**dict(sizes.m2_config))).eval()
    model.kernels = "naive" if name == REFERENCE else "cpu"
    model.compute_dtype = torch.float32 if name == REFERENCE else torch.bfloat16
    return model


class PeakMemory:
    """Largest resident size of this process, in bytes, while the block runs; sampled every 2 ms."""

    def __enter__(self) -> PeakMemory:
        self._process, self._stop = psutil.Process(), threading.Event()
        self.before = self.peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()


def run_cell(cell: Cell, sizes: Sizes, vector_file: Path) -> Row:
    """Measure one cell in this process; the document's vector goes to `vector_file`."""
    model = build(cell.implementation, sizes, max(cell.n_tokens, 512))
    ids = torch.from_numpy(np.random.default_rng(cell.n_tokens).integers(1000, 30000, (1, cell.n_tokens)))
    seconds = []
    with torch.inference_mode(), PeakMemory() as memory:
        for _ in range(1 + cell.repeats):
            start = time.perf_counter()
            output = model(ids)
            seconds.append(time.perf_counter() - start)
    np.save(vector_file, output.pooler_output[0].float().numpy())
    timed = seconds[1:] or seconds
    return {"first_s": seconds[0], "s": statistics.median(timed), "memory_bytes": memory.peak - memory.before}


def run_queries(sizes: Sizes) -> Row:
    """Latency of `embed_query` in one process, as somebody who searches meets it: the median of many."""
    embedder = M2Embedder()
    seconds, n_tokens = [], []
    with PeakMemory() as memory:
        for turn in range(5 + sizes.queries):
            text = f"{QUESTIONS[turn % len(QUESTIONS)]} {turn}?"
            start = time.perf_counter()
            embedder.embed_query(text)
            seconds.append(time.perf_counter() - start)
            n_tokens.append(int(embedder.embed_documents([text]).n_tokens[0]))
    timed = seconds[5:]
    return {
        "first_s": seconds[0],
        "s": statistics.median(timed),
        "memory_bytes": memory.peak - memory.before,
        "n_tokens": round(statistics.median(n_tokens)),
    }


def measure(cell: Cell, sizes: Sizes, vector_file: Path) -> Row:
    return run_queries(sizes) if cell.implementation == QUERY else run_cell(cell, sizes, vector_file)


def measure_in_fresh_process(cell: Cell, folder: Path) -> Row | None:
    """`measure` at real sizes; None, with a line on standard error, if the process died."""
    vector_file = folder / f"{cell.implementation}-{cell.n_tokens}.npy"
    arguments = ["--cell", json.dumps(asdict(cell)), "--vector", str(vector_file)]
    finished = run_parts(__file__, [Part("cell", arguments, CELL_SECONDS)])["cell"]
    if finished.failure is not None or not finished.rows:
        print(f"{cell}: {finished.failure}", file=sys.stderr)
        return None
    return finished.rows[-1]


def plan(sizes: Sizes, rounds: int, bert_longest: bool) -> list[Cell]:
    """Cells in the order they run; the reference at full length (and BERT, if asked for) runs once, in the middle."""
    short, middle, long, longest = sizes.lengths
    again = {short: 10, middle: 3, long: 1, longest: 1}
    cells = []
    for turn in range(rounds):
        for n_tokens in sizes.lengths:
            slow = 0 if n_tokens >= long else again[n_tokens]
            once = turn == rounds // 2
            if n_tokens < longest or once:
                cells.append(Cell(REFERENCE, n_tokens, slow))
            cells.append(Cell(OURS, n_tokens, again[n_tokens]))
            cells.append(Cell(BUNDLED_NAME, n_tokens, again[n_tokens]))
            if n_tokens < longest or (bert_longest and once):
                cells.append(Cell(BERT, n_tokens, slow))
        cells.extend(Cell(OURS, n_tokens, 30) for n_tokens in sizes.query_tokens)
        cells.append(Cell(QUERY, 0, sizes.queries))
    return cells


def summary(cell: Cell, runs: Sequence[Row], cosine: float | None) -> Row:
    """One row of the CSV: the medians over the rounds, and what they rest on."""
    seconds = [run["s"] for run in runs]
    n_tokens = runs[0].get("n_tokens", cell.n_tokens)
    return {
        "implementation": cell.implementation,
        "dtype": DTYPES.get(cell.implementation, "bfloat16"),
        "n_tokens": n_tokens,
        "seconds": significant(statistics.median(seconds)),
        "tokens_per_s": significant(n_tokens / statistics.median(seconds)),
        "first_seconds": significant(statistics.median(run["first_s"] for run in runs)),
        "min_seconds": significant(min(seconds)),
        "max_seconds": significant(max(seconds)),
        "rounds": len(runs),
        "timed_per_round": max(cell.repeats, 1),
        "peak_mb_above_model": significant(max(run["memory_bytes"] for run in runs) / 1e6),
        "cosine_to_reference": None if cosine is None else round(cosine, 5),
    }


def cosine_to_reference(cell: Cell, folder: Path) -> float | None:
    """Of the same random model's vectors through both paths: tells that they compute the same thing."""
    files = [folder / f"{name}-{cell.n_tokens}.npy" for name in (REFERENCE, OURS)]
    if cell.implementation != OURS or not all(file.exists() for file in files):
        return None
    a, b = (np.load(file) for file in files)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def run(sizes: Sizes, rounds: int, bert_longest: bool) -> list[Row]:
    runs: dict[Cell, list[Row]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for cell in plan(sizes, rounds, bert_longest):
            if sizes is REAL:
                row = measure_in_fresh_process(cell, folder)
            else:
                row = measure(cell, sizes, folder / f"{cell.implementation}-{cell.n_tokens}.npy")
            if row is not None:
                runs.setdefault(cell, []).append(row)
                print(f"{cell.implementation} at {cell.n_tokens:,} tokens: {row['s']:.4f} s", file=sys.stderr)
        order = [REFERENCE, BERT, OURS, BUNDLED_NAME, QUERY]
        cells = sorted(runs, key=lambda cell: (order.index(cell.implementation), cell.n_tokens))
        rows = [summary(cell, runs[cell], cosine_to_reference(cell, folder)) for cell in cells]
    here = environment("cpu")
    return [row | here for row in rows]


def bars(rows: Sequence[Row], sizes: Sizes = REAL) -> list[Bar]:
    """Ratios of the medians of one run, and what they must reach on two cores."""
    _, middle, long, longest = sizes.lengths
    query = max(sizes.query_tokens)

    def value(name: str, n_tokens: int, column: str = "seconds") -> Any:
        return find(rows, implementation=name, n_tokens=n_tokens).get(column)

    def faster_than(name: str, n_tokens: int) -> float | None:
        return ratio(value(name, n_tokens), value(OURS, n_tokens))

    growth = ratio(value(OURS, longest), value(OURS, long))
    share = ratio(value(OURS, query), value(OURS, longest))
    peak = value(OURS, longest, "peak_mb_above_model")
    latency = find(rows, implementation=QUERY).get("seconds")
    return [
        Bar(f"speed at {longest:,} tokens, times the reference's", faster_than(REFERENCE, longest), ">=", 5),
        Bar(f"speed at {long:,} tokens, times the reference's", faster_than(REFERENCE, long)),
        Bar(f"speed at {middle:,} tokens, times the reference's", faster_than(REFERENCE, middle)),
        Bar(f"speed at {long:,} tokens, times BERT-base's", faster_than(BERT, long), ">=", 6),
        Bar(f"time at {longest:,} tokens over time at {long:,}", growth, "<=", 5),
        Bar(f"time of a query of {query} tokens over time of {longest:,}", share, "<=", 0.01),
        Bar(f"MB above the loaded model at {longest:,} tokens", peak, "<=", 700),
        Bar(f"ms of embed_query, {BUNDLED_NAME}, median", None if latency is None else 1000 * latency, "<=", 30),
    ]


def show(rows: Sequence[Row], sizes: Sizes = REAL) -> None:
    columns = (
        "implementation", "dtype", "n_tokens", "tokens_per_s", "seconds", "first_seconds", "min_seconds",
        "max_seconds", "peak_mb_above_model", "cosine_to_reference",
    )  # fmt: skip
    named = ("device", "cores", "threads", "instructions", "torch", "transformers", "python")
    print(", ".join(f"{name} {rows[0][name]}" for name in named), end="\n\n")
    print(table(rows, columns), bars_table(bars(rows, sizes)), sep="\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each cell (default: 3)")
    parser.add_argument("--bert-longest", action="store_true", help="measure BERT-base at full length too, once")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.csv", help="where the CSV goes, or is")
    parser.add_argument("--show", action="store_true", help="measure nothing, print the tables of the CSV")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes in this process; not a measurement")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--vector", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        Rows(args.rows).add(measure(Cell(**json.loads(args.cell)), REAL, args.vector))
    elif args.show:
        show(read_csv(args.out))
    elif args.dry_run:
        show(run(TOY, rounds=1, bert_longest=False), TOY)
        print("\nDry run on toy sizes: none of these figures is a measurement.")
    else:
        rows = run(REAL, args.rounds, args.bert_longest)
        write_csv(args.out, rows)
        show(rows)


if __name__ == "__main__":
    main()
