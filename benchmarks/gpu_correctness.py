"""Every Triton kernel against its definition in double precision, forward and backward, at real sizes on the GPU.

    python benchmarks/gpu_correctness.py               some minutes: most of it is Triton compiling
    python benchmarks/gpu_correctness.py --show        the table of the results again
    TRITON_INTERPRET=1 python benchmarks/gpu_correctness.py --interpret     toy sizes on a CPU; writes nothing

Needs torch, triton, transformers and numpy. Every kernel and precision is checked in a process of its own, so that a
crash or an endless compilation hides nothing else. Memory that was never written holds NaN, and so do the pads of
masked inputs. The error is the RMS of the difference over the RMS of the reference; every output and every gradient
counts, and of a whole model its vectors and gradients do. Exit status: 0 all within tolerance, 1 something was not, or
did not run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import (
    OK,
    RESULTS,
    Finished,
    Part,
    Row,
    Rows,
    check_cuda,
    check_interpreted,
    environment,
    in_one_line,
    read_csv,
    run_parts,
    table,
    write_csv,
)
from gpu_cases import DTYPES, Case, Problem, cases, functions

OPS = ("long_conv", "short_conv", "blockdiag_glu", "model")
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
# Processes per precision: most of the time is compiling, and the long convolution compiles anew for many lengths.
PROCESSES = {"long_conv": 5}
MAX_SHOWN = 16


def at_kept(x: torch.Tensor, kept: torch.Tensor, channels_first: bool, value: float) -> torch.Tensor:
    """`x` with `value` at the pads."""
    return torch.where(kept[:, None, :] if channels_first else kept[..., None], x, value)


class PoisonedMemory:
    """While the block runs, memory that torch allocates without writing to it holds NaN."""

    OWNERS = ((torch, "empty"), (torch, "empty_like"), (torch, "empty_strided"), (torch.Tensor, "new_empty"))

    def __enter__(self) -> None:
        self._usual = [getattr(owner, name) for owner, name in self.OWNERS]
        for (owner, name), allocate in zip(self.OWNERS, self._usual, strict=True):
            setattr(owner, name, self._poisoned(allocate))

    def __exit__(self, *exception: object) -> None:
        for (owner, name), allocate in zip(self.OWNERS, self._usual, strict=True):
            setattr(owner, name, allocate)

    @staticmethod
    def _poisoned(allocate: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() or tensor.is_complex() else tensor

        return wrapper


def relative_rms(result: torch.Tensor, expected: torch.Tensor) -> float:
    """RMS of the difference over RMS of the expected values; infinite if anything is not finite."""
    result, expected = result.detach().double(), expected.detach().double()
    difference = (result - expected).square().mean().sqrt()
    error = float(difference / expected.square().mean().sqrt().clamp_min(1e-30))
    return error if error == error else float("inf")


def check(case: Case, device: str) -> dict[str, float]:
    """Error of every output and every gradient of one call, by name."""
    make, exact, kernel = functions(case.op)
    torch.manual_seed(case.length)
    problem: Problem = make(case, device)
    channels_first = case.op == "long_conv"
    leaves: dict[str, Any] = {}
    doubles: dict[str, Any] = {}
    for name, tensor in problem.tensors.items():
        doubles[name] = None if tensor is None else tensor.double().requires_grad_()
        if tensor is not None and problem.kept is not None and name == problem.poison:
            tensor = at_kept(tensor, problem.kept, channels_first, float("nan"))
        leaves[name] = None if tensor is None else tensor.requires_grad_()

    def call(function: Any, tensors: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        result = function(**tensors, **problem.fixed)
        return result if isinstance(result, tuple) else (result,)

    expected = call(exact, doubles)
    dtype = DTYPES[case.dtype]
    directions = [torch.randn_like(tensor, dtype=dtype) for tensor in expected]
    if problem.kept is not None:
        directions = [at_kept(direction, problem.kept, True, 0.0) for direction in directions]
    torch.autograd.backward(expected, [direction.double() for direction in directions])
    with PoisonedMemory():
        with torch.no_grad():
            again = call(kernel, leaves)
        results = call(kernel, leaves)
        torch.autograd.backward(results, directions)

    errors = {}
    for i, reference in enumerate(expected):
        for name, result in ((f"output {i}", results[i]), (f"output {i} without gradients", again[i])):
            finite = bool(result.isfinite().all())  # at pads too, where the value itself is nobody's business
            if problem.kept is not None:
                result, reference = (at_kept(tensor, problem.kept, True, 0.0) for tensor in (result, reference))
            errors[name] = relative_rms(result, reference) if finite else float("inf")
    for name, leaf in leaves.items():
        if leaf is not None:
            exact_gradient = doubles[name].grad
            # Where it is zero there is nothing to be relative to: at length 1 a tap to the right reaches no position.
            is_zero = not exact_gradient.any()
            error = float(leaf.grad.abs().max()) if is_zero else relative_rms(leaf.grad, exact_gradient)
            errors[f"gradient of {name}"] = error
    return errors


def check_cases(op: str, dtype: str, some: Sequence[Case], device: str, rows: Rows) -> None:
    """One row per case; a case that raises is a row too, and after a lost device the rest cannot run."""
    tolerance = TOLERANCE[dtype]
    for case in some:
        row: Row = {"kernel": op, "dtype": dtype, "case": str(case), "tolerance": tolerance}
        try:
            errors = check(case, device)
        except Exception as error:  # whatever a kernel does wrong is what this script reports
            rows.add(row | {"status": in_one_line(error)})
            if device_is_lost(device):
                return
            continue
        worst = max(errors, key=errors.__getitem__)
        status = OK if errors[worst] <= tolerance else "wrong"
        rows.add(row | {"worst": worst, "error": errors[worst], "status": status})
        if device == "cuda":
            torch.cuda.empty_cache()


def device_is_lost(device: str) -> bool:
    """After an illegal access every further call of the process fails."""
    if device != "cuda":
        return False
    try:
        torch.cuda.synchronize()
        torch.ones(1, device=device).sum().item()
    except RuntimeError:
        return True
    return False


def parts(ops: Sequence[str], seconds: float) -> list[Part]:
    """Longest first."""
    result = []
    for op in ops:
        for dtype in DTYPES:
            n = PROCESSES.get(op, 1)
            for i in range(n):
                arguments = ["--op", op, "--dtype", dtype, "--share", str(i), str(n)]
                result.append(Part(f"{op} {dtype} {i + 1}/{n}", arguments, seconds))
    return result


def share(items: Sequence[Case], i: int, n: int) -> Sequence[Case]:
    """The i-th of n runs of neighbours, which are alike and share what was compiled."""
    return items[len(items) * i // n : len(items) * (i + 1) // n]


def run_part(op: str, dtype: str, interpret: bool, rows: Rows, i: int = 0, n: int = 1) -> None:
    device = "cpu" if interpret else "cuda"
    if op == "model":
        from gpu_model_check import check_model  # here, so that the kernels are checked if the model cannot be imported

        check_model(dtype, interpret, rows)
        return
    check_cases(op, dtype, share(list(cases(op, dtype, interpret)), i, n), device, rows)


def missing(part: Part, finished: Finished) -> list[Row]:
    """A row that says what of a part did not run."""
    if finished.failure is None:
        return []
    op, dtype, _ = part.name.split()
    return [{"kernel": op, "dtype": dtype, "case": "the rest", "status": finished.failure}]


def run(ops: Sequence[str], seconds: float, at_once: int) -> list[Row]:
    def report(part: Part, finished: Finished) -> None:
        good = sum(row["status"] == OK for row in finished.rows)
        spent = f"{time.monotonic() - start:.0f} s"
        print(
            f"[{spent}] {part.name}: {good} of {len(finished.rows)} ok, {finished.failure or 'done'}", file=sys.stderr
        )

    start = time.monotonic()
    done = run_parts(__file__, parts(ops, seconds), at_once, report, seconds)
    here = environment("cuda")
    rows = [row for part in parts(ops, seconds) for row in done[part.name].rows + missing(part, done[part.name])]
    return [row | here for row in rows]


def show(rows: Sequence[Row]) -> bool:
    """One line per kernel and precision, and one for everything that was not right. Whether all was."""
    bad = [row for row in rows if row["status"] != OK]
    lines = []
    for kernel, dtype in dict.fromkeys((row["kernel"], row["dtype"]) for row in rows):
        mine = [row for row in rows if (row["kernel"], row["dtype"]) == (kernel, dtype)]
        good = [row for row in mine if row["status"] == OK]
        worst = max(good, key=lambda row: row["error"] / row["tolerance"], default={})
        lines.append(
            {
                "kernel": kernel,
                "dtype": dtype,
                "ok": len(good),
                "not ok": len(mine) - len(good),
                "largest error": worst.get("error"),
                "tolerance": worst.get("tolerance"),
                "of": worst.get("worst", ""),
                "in": worst.get("case", ""),
            }
        )
    if bad:
        print(table(bad[:MAX_SHOWN], ("kernel", "dtype", "case", "worst", "error", "tolerance", "status")))
        print(f"{len(bad)} not ok; all of them are in the CSV\n")
    print(table(lines, ("kernel", "dtype", "ok", "not ok", "largest error", "tolerance", "of", "in")))
    print(f"\ncorrectness: {'all' if rows and not bad else 'NOT all'} within tolerance")
    return bool(rows) and not bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", choices=OPS, default=OPS)
    parser.add_argument("--seconds", type=float, default=270, help="for everything together (default: 270)")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), help="processes side by side")
    parser.add_argument("--interpret", action="store_true", help="toy sizes on a CPU, in this process")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_correctness.csv")
    parser.add_argument("--show", action="store_true", help="check nothing, print the table of the CSV")
    parser.add_argument("--op", choices=OPS, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=DTYPES, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, nargs=2, default=(0, 1), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.op:
        run_part(args.op, args.dtype, False, Rows(args.rows), *args.share)
        return 0
    if args.show:
        return 0 if show(read_csv(args.out)) else 1
    if args.interpret:
        check_interpreted(parser)
        return 0 if show(interpret(args.ops)) else 1
    check_cuda(parser)
    rows = run(args.ops, args.seconds, args.at_once)
    write_csv(args.out, rows)
    return 0 if show(rows) else 1


def interpret(ops: Sequence[str]) -> list[Row]:
    """The same checks at toy sizes on a CPU."""
    rows = Rows()
    for op in ops:
        for dtype in DTYPES:
            run_part(op, dtype, True, rows)
    return rows.all


if __name__ == "__main__":
    sys.exit(main())
