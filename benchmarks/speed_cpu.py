"""Speed and memory on CPUs at the 80M shape, against the reference algorithm on the same machine.

    python benchmarks/speed_cpu.py            about ten minutes on two cores, when nothing else runs on them
    python benchmarks/speed_cpu.py --bert     adds BERT-base (SDPA, fp32) at 8,192 tokens

The reference algorithm is the naive path: fp32, filters made again in every call. Ours is the cpu path in bfloat16.
Weights are random: speed does not depend on them. Every measurement is a fresh process that builds the model, notes
its memory, and runs one document; implementations take turns, so that a slow minute of the machine hits all of them.
"First" is a process's first document at a length, "tokens/s" comes from its next one; the reference and BERT keep
nothing, so on long documents their first is their only one. Memory is the peak above the loaded model over both.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers

from m2rag.models import M2BertConfig, M2BertModel, load_checkpoint
from m2rag.models.checkpoints import BUNDLED

RESULTS = Path(__file__).parent / "results" / "speed_cpu.json"
LENGTHS = (2048, 8192, 32768)
QUERY_TOKENS = 12
REFERENCE, OURS, BERT = "reference", "ours", "bert-base"


def build(name: str) -> torch.nn.Module:
    """A model ready to run; names other than the three constants are folders of bundled checkpoints."""
    torch.manual_seed(0)
    if name == BERT:
        config = transformers.BertConfig(max_position_embeddings=8192, attn_implementation="sdpa")
        return transformers.BertModel(config).eval()
    if name in (REFERENCE, OURS):
        model = M2BertModel(M2BertConfig()).eval()
        model.kernels = "naive" if name == REFERENCE else "cpu"
    else:
        model = load_checkpoint(BUNDLED / name).eval()
        model.kernels = "cpu"
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


def run_cell(name: str, n_tokens: int, only_first: bool, vector_file: str) -> dict[str, float]:
    """Measure one implementation at one length in this process."""
    model = build(name)
    ids = torch.from_numpy(np.random.default_rng(n_tokens).integers(1000, 30000, (1, n_tokens)))
    seconds = []
    with torch.inference_mode(), PeakMemory() as memory:
        for _ in range(1 if only_first else 2):
            start = time.perf_counter()
            output = model(ids)
            seconds.append(time.perf_counter() - start)
    np.save(vector_file, output.pooler_output[0].float().numpy())
    return {"first_s": seconds[0], "s": seconds[-1], "memory_bytes": memory.peak - memory.before}


def measure(name: str, n_tokens: int, only_first: bool, folder: str) -> dict[str, Any]:
    """`run_cell` in a fresh process, and the vector it found."""
    vector_file = str(Path(folder) / "vector.npy")
    cell = json.dumps([name, n_tokens, only_first, vector_file])
    done = subprocess.run([sys.executable, __file__, "--cell", cell], check=True, capture_output=True, text=True)
    return {**json.loads(done.stdout.splitlines()[-1]), "vector": np.load(vector_file)}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def summary(name: str, n_tokens: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = statistics.median(run["s"] for run in runs)
    return {
        "implementation": name,
        "n_tokens": n_tokens,
        "seconds": round(seconds, 4),
        "first_seconds": round(statistics.median(run["first_s"] for run in runs), 4),
        "tokens_per_s": round(n_tokens / seconds, 1),
        "peak_mb_above_model": round(max(run["memory_bytes"] for run in runs) / 1e6, 1),
        "runs_s": [round(run["s"], 4) for run in runs],
    }


def plan(rounds: int, with_bert: bool) -> list[tuple[str, int, bool]]:
    """Cells in the order they run; the reference at full length runs once, in the middle."""
    minis = [folder.name for folder in sorted(BUNDLED.glob("*")) if (folder / "config.json").is_file()]
    cells: list[tuple[str, int, bool]] = []
    for turn in range(rounds):
        for n_tokens in LENGTHS:
            if n_tokens < max(LENGTHS) or turn == rounds // 2:
                cells.append((REFERENCE, n_tokens, n_tokens > min(LENGTHS)))
            cells.append((OURS, n_tokens, False))
            cells.extend((mini, n_tokens, False) for mini in minis)
        cells.append((OURS, QUERY_TOKENS, False))
        if with_bert:
            cells.append((BERT, 8192, True))
    return cells


def report(rounds: int, with_bert: bool) -> dict[str, Any]:
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, n_tokens, only_first in plan(rounds, with_bert):
            run = measure(name, n_tokens, only_first, folder)
            print(f"{name} at {n_tokens:,} tokens: {run['s']:.3f} s", file=sys.stderr, flush=True)
            runs.setdefault((name, n_tokens), []).append(run)
    rows = {key: summary(*key, of) for key, of in sorted(runs.items(), key=lambda item: (item[0][0], item[0][1]))}
    longest, ratios = max(LENGTHS), {}
    for n_tokens in LENGTHS:
        vectors = [runs[name, n_tokens][0]["vector"] for name in (REFERENCE, OURS)]
        cosine = np.dot(*vectors) / np.prod([np.linalg.norm(vector) for vector in vectors])
        ratios[f"speedup_at_{n_tokens}"] = rows[REFERENCE, n_tokens]["seconds"] / rows[OURS, n_tokens]["seconds"]
        ratios[f"cosine_distance_at_{n_tokens}"] = float(1 - cosine)
    ratios["time_32k_over_8k"] = rows[OURS, longest]["seconds"] / rows[OURS, 8192]["seconds"]
    ratios["time_32k_over_short_query"] = rows[OURS, longest]["seconds"] / rows[OURS, QUERY_TOKENS]["seconds"]
    if with_bert:
        ratios["speedup_over_bert_at_8192"] = rows[BERT, 8192]["seconds"] / rows[OURS, 8192]["seconds"]
    ratios = {name: float(f"{value:.4g}") for name, value in ratios.items()}
    return {"machine": machine(), "rows": list(rows.values()), "ratios": ratios}


def show(result: dict[str, Any]) -> None:
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    print(f"\n{'implementation':16} {'tokens':>7} {'tokens/s':>10} {'s':>9} {'first s':>9} {'peak MB':>8}")
    for row in result["rows"]:
        print(
            f"{row['implementation']:16} {row['n_tokens']:7,} {row['tokens_per_s']:10,.0f} {row['seconds']:9.3f} "
            f"{row['first_seconds']:9.3f} {row['peak_mb_above_model']:8,.0f}"
        )
    print()
    for name, value in result["ratios"].items():
        print(f"{name:32} {value:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bert", action="store_true", help="measure BERT-base at 8,192 tokens too")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each cell (default: 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON goes")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        print(json.dumps(run_cell(*json.loads(arguments.cell))))
        return
    result = report(arguments.rounds, arguments.bert)
    show(result)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
