"""Speed and memory on a GPU at the 80M shape: the Triton path, torch.fft, BERT-base, and what copying would cost.

    python benchmarks/gpu.py              about five minutes
    python benchmarks/gpu.py --show       the tables of the results again
    TRITON_INTERPRET=1 python benchmarks/gpu.py --dry-run     toy sizes on a CPU; not a measurement, writes nothing

- model: inference, at batches of a constant number of tokens. "triton" computes in bf16 with the filters' spectra kept;
  "naive" is plain PyTorch with torch.fft and filters made again in every call, in fp32 (the reference algorithm) and
  under bf16 autocast; "bert-base" is transformers' BertModel in bf16 with SDPA attention.
- kernels: each at 131,072 tokens, forward and with backward, beside the naive form and the time in which the device
  copies as many bytes as the call must read and write.
- train: one forward and backward at full length on one sample, under bf16 autocast, dropout on.

Weights are random: speed does not depend on them. Every part is a process of its own with a time limit; medians of CUDA
events after warm-up. Memory is the peak above what is allocated before the call: above the loaded model, or above a
kernel's arguments; `peak_total_mb` counts these too.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from common import (
    OK,
    RESULTS,
    Bar,
    Finished,
    Part,
    Row,
    Rows,
    bars_table,
    check_cuda,
    check_interpreted,
    environment,
    find,
    in_one_line,
    ratio,
    read_csv,
    run_parts,
    significant,
    table,
    write_csv,
)
from gpu_kernels import IMPLEMENTATIONS, KEPT, Shape, stepped_aside, time_kernel
from gpu_timing import Meter

from m2rag.models import M2BertConfig, M2BertForMaskedLM, M2BertModel

OBJECTIVES = ("one vector", "masked LM")
# Most important first: what the time limit cuts off are the last ones.
PARTS = (
    "kernels long_conv",
    "model triton bfloat16",
    "train triton",
    "model naive bfloat16",
    "kernels short_conv",
    "kernels blockdiag_glu",
    "model bert-base bfloat16",
    "model naive float32",
    "train naive",
)
PART_SECONDS = 90
MAX_SHOWN = 12
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Sizes:
    """What is measured, and on what."""

    device: str = "cuda"
    lengths: tuple[int, ...] = (512, 2048, 8192, 32768)
    batch_tokens: tuple[int, ...] = (32768, 131072)
    kernel_tokens: int = 131072  # one (B, L, 768) tensor in bf16 is 200 MB, far above the caches
    width: int = 768
    inner: int = 3072
    config: tuple[tuple[str, int], ...] = ()
    seconds: float = 1.0  # about how long each call is repeated for

    def meter(self) -> Meter:
        return Meter(self.device, self.seconds)


REAL = Sizes()
# Interpreting takes a second per row: few rows, short ones.
TOY_WIDTHS = (("hidden_size", 8), ("intermediate_size", 16), ("num_hidden_layers", 1), ("num_attention_heads", 2))
TOY = Sizes(
    device="cpu",
    lengths=(8, 16),
    batch_tokens=(16,),
    kernel_tokens=16,
    width=8,
    inner=16,
    config=(*TOY_WIDTHS, ("max_position_embeddings", 16), ("vocab_size", 100)),
)


def m2_config(sizes: Sizes) -> M2BertConfig:
    return M2BertConfig(**{**dict(sizes.config), "long_conv_l_max": max(sizes.lengths)})


def ids_of(batch: int, length: int, vocabulary: int, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(1, vocabulary, (batch, length), generator=generator).to(device)


def status_of(implementation: str, inference: bool) -> Row:
    """That of a model that just ran: not "ok" if it went another way than it was told to."""
    return {"status": (implementation == "triton" and stepped_aside(inference)) or OK}


def why(error: Exception) -> str:
    return OUT_OF_MEMORY if isinstance(error, torch.OutOfMemoryError) else in_one_line(error)


def failed(row: Row) -> bool:
    """Whether the run is not good for this row: what we are compared with may not fit, ours must."""
    fits_not = row["status"] == OUT_OF_MEMORY and not row["implementation"].startswith("triton")
    return row["status"] != OK and not fits_not


def attempt(rows: Rows, row: Row, measure: Callable[[], Row]) -> None:
    """Add a row with what `measure` finds, or with why it found nothing; the next measurement goes on."""
    try:
        rows.add({**row, "status": OK, **measure()})
    except Exception as error:  # a kernel that does not compile is part of the report
        rows.add({**row, "status": why(error)})
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def model_part(implementation: str, dtype: str, sizes: Sizes, rows: Rows) -> None:
    torch.manual_seed(0)
    half = dtype == "bfloat16"
    model: Any
    if implementation == "bert-base":
        sized = {"max_position_embeddings": max(sizes.lengths), **dict(sizes.config)}
        config = transformers.BertConfig(attn_implementation="sdpa", **sized)
        model = transformers.BertModel(config).to(sizes.device, torch.bfloat16).eval()
    else:
        config = m2_config(sizes)
        model = M2BertModel(config).to(sizes.device).eval()
        model.kernels = implementation
        if implementation == "triton" and half:
            model.compute_dtype = torch.bfloat16
    autocast = implementation == "naive" and half

    def run(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(sizes.device, dtype=torch.bfloat16, enabled=autocast):
            return model(ids).pooler_output

    for length in sizes.lengths:
        for tokens in sizes.batch_tokens:
            batch = tokens // length
            ids = ids_of(batch, length, config.vocab_size, sizes.device)

            def measure(ids: torch.Tensor = ids, tokens: int = tokens) -> Row:
                row = sizes.meter().measure(lambda: run(ids))
                row["tokens_per_ms"] = significant(tokens / row["seconds"] / 1e3)
                return row | status_of(implementation, inference=True)

            row = {"part": "model", "implementation": implementation, "dtype": dtype, "n_tokens": length}
            attempt(rows, row | {"batch": batch}, measure)


def kernels_part(op: str, sizes: Sizes, rows: Rows) -> None:
    meter = sizes.meter()
    implementations, copy_rate = IMPLEMENTATIONS[op], 1.0
    if sizes.seconds:
        copy_rate = meter.copy_bytes_per_second()
    else:
        implementations = implementations[:-1]  # the naive one has nothing to compile
    for length in sizes.lengths:
        shape = Shape(sizes.kernel_tokens // length, length, sizes.width, sizes.inner)
        for implementation in implementations:
            row: Row = {"part": op, "implementation": implementation, "dtype": "bfloat16"}
            row |= {"n_tokens": length, "batch": shape.batch, "copy_gb_per_s": significant(copy_rate / 1e9)}
            try:
                for found in time_kernel(op, implementation, shape, meter, copy_rate):
                    rows.add({**row, "status": OK, **found})
            except Exception as error:  # as in `attempt`
                rows.add({**row, "status": why(error)})
            if sizes.device == "cuda":
                torch.cuda.empty_cache()


def train_part(implementation: str, sizes: Sizes, rows: Rows) -> None:
    length = max(sizes.lengths)
    for objective in OBJECTIVES:
        torch.manual_seed(0)
        config = m2_config(sizes)
        made = M2BertModel(config) if objective == "one vector" else M2BertForMaskedLM(config)
        model: Any = made.to(sizes.device).train()
        model.kernels = implementation
        ids = ids_of(1, length, config.vocab_size, sizes.device)

        def step(model: Any = model, ids: torch.Tensor = ids, objective: str = objective) -> None:
            with torch.autocast(sizes.device, dtype=torch.bfloat16):
                if objective == "one vector":
                    loss = model(ids).pooler_output.float().square().sum()
                else:
                    loss = model(ids, labels=ids).loss
            loss.backward()
            model.zero_grad()

        def measure(step: Callable[[], None] = step) -> Row:
            row = sizes.meter().measure(step)
            row["tokens_per_ms"] = significant(length / row["seconds"] / 1e3)
            return row | status_of(implementation, inference=False)

        row = {"part": "train", "implementation": implementation, "dtype": "bfloat16", "n_tokens": length, "batch": 1}
        attempt(rows, row | {"direction": objective}, measure)
        del made, model, step, measure


def run_part(name: str, sizes: Sizes, rows: Rows) -> None:
    kind, what, *dtype = name.split()
    if kind == "model":
        model_part(what, dtype[0], sizes, rows)
    elif kind == "kernels":
        kernels_part(what, sizes, rows)
    else:
        train_part(what, sizes, rows)


def warm_up(seconds: float) -> None:
    """Let Triton compile all that will be timed, by many processes at once: it keeps what it compiled on disk."""
    parts = []
    for name in PARTS:
        if "naive" not in name and "bert" not in name:
            for length in REAL.lengths[-1:] if name.startswith("train") else REAL.lengths:
                parts.append(Part(f"{name} {length}", ["--part", name, "--compile-for", str(length)], seconds))
    done = run_parts(__file__, parts, os.cpu_count() or 1, seconds=seconds)
    failures = [name for name, finished in done.items() if finished.failure is not None]
    print(f"not compiled: {failures}" if failures else "compiled", file=sys.stderr)


def run(seconds: float) -> list[Row]:
    def report(part: Part, finished: Finished) -> None:
        print(f"{part.name}: {len(finished.rows)} rows, {finished.failure or 'done'}", file=sys.stderr)

    end = time.monotonic() + seconds
    warm_up(seconds / 2)
    parts = [Part(name, ["--part", name], PART_SECONDS) for name in PARTS]
    done = run_parts(__file__, parts, report=report, seconds=end - time.monotonic())
    here = environment("cuda")
    rows = []
    for name, finished in done.items():
        rows += finished.rows
        if finished.failure is not None:
            kind, what, *_ = name.split()
            part, implementation = (what, "the rest") if kind == "kernels" else (kind, what)
            rows.append({"part": part, "implementation": implementation, "status": finished.failure})
    return [row | here for row in rows]


def bars(rows: Sequence[Row], sizes: Sizes = REAL) -> Iterator[Bar]:
    """What one run must reach on an H100, from its medians."""
    longest = max(sizes.lengths)

    def model(name: str, dtype: str, batch: int, column: str = "seconds") -> Any:
        wanted = {"implementation": name, "dtype": dtype, "n_tokens": longest, "batch": batch}
        return find(rows, part="model", **wanted).get(column)

    for tokens in sizes.batch_tokens:
        batch = tokens // longest
        ours = model("triton", "bfloat16", batch)
        rate = model("triton", "bfloat16", batch, "tokens_per_ms")
        yield Bar(f"tokens/ms at {longest:,} tokens, batch {batch}", rate, ">=", 1000)
        for name, dtype in (("naive", "bfloat16"), ("naive", "float32"), ("bert-base", "bfloat16")):
            other = ratio(model(name, dtype, batch), ours)
            what = "torch.fft" if name == "naive" else name
            yield Bar(f"    times the speed of {what}, {dtype}", other, ">=", 5 if name == "naive" else None)
    for op in IMPLEMENTATIONS:
        for implementation in IMPLEMENTATIONS[op][:-1]:
            kept = find(rows, part=op, implementation=implementation, n_tokens=longest, direction="forward")
            limit = 2 if implementation == KEPT else None
            what = f"{op} ({implementation}) at {longest:,} tokens, times its copy floor"
            yield Bar(what, kept.get("times_floor"), "<=", limit)
    for objective in OBJECTIVES:
        step = find(rows, part="train", implementation="triton", direction=objective)
        yield Bar(f"seconds of a training step on {longest:,} tokens, {objective}", step.get("seconds"))
        yield Bar("    its peak memory, MB", step.get("peak_total_mb"))


def show(rows: Sequence[Row], sizes: Sizes = REAL) -> bool:
    """All that was measured, then as `show_last`."""
    columns = (
        "part", "implementation", "dtype", "n_tokens", "batch", "direction", "seconds", "first_seconds",
        "tokens_per_ms", "times_floor", "peak_mb",
    )  # fmt: skip
    print(table((row for row in rows if row["status"] == OK), columns), end="\n\n")
    return show_last(rows, sizes)


def show_last(rows: Sequence[Row], sizes: Sizes = REAL) -> bool:
    """What was not measured, the machine, and last the bars. Whether all that must run did."""
    bad = [row for row in rows if row["status"] != OK]
    if bad:
        print(table(bad[:MAX_SHOWN], ("part", "implementation", "dtype", "n_tokens", "batch", "direction", "status")))
        print(f"{len(bad)} not measured; all of them are in the CSV\n")
    print(", ".join(f"{name} {rows[0].get(name)}" for name in ("device", "torch", "triton", "cuda", "python")))
    print(bars_table(bars(rows, sizes)))
    return bool(rows) and not any(map(failed, rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480, help="limit for everything together (default: 480)")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.csv", help="where the CSV goes, or is")
    parser.add_argument("--show", action="store_true", help="measure nothing, print the tables of the CSV")
    parser.add_argument("--show-last", action="store_true", help="the last of these tables only")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on a CPU; not a measurement")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--compile-for", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        sizes = REAL
        if args.compile_for:
            sizes = replace(REAL, lengths=(args.compile_for,), seconds=0)
        run_part(args.part, sizes, Rows(args.rows))
        return 0
    if args.show:
        return 0 if show(read_csv(args.out)) else 1
    if args.show_last:
        return 0 if show_last(read_csv(args.out)) else 1
    if args.dry_run:
        check_interpreted(parser)
        return 0 if dry_run() else 1
    check_cuda(parser)
    rows = run(args.seconds)
    write_csv(args.out, rows)
    return 0 if show(rows) else 1


def dry_run() -> bool:
    """Every part at toy sizes in this process."""
    rows = Rows()
    for name in PARTS:
        run_part(name, TOY, rows)
    here = environment("cpu")
    good = show([row | here for row in rows.all], TOY)
    print("\nDry run on toy sizes, interpreted: none of these figures is a measurement.")
    return good


if __name__ == "__main__":
    sys.exit(main())
