"""The GPU benchmark and check: their whole code at toy sizes through Triton's interpreter, and what they import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu
import gpu_cases
import gpu_correctness
import pytest
import torch
from common import OK, RESULTS, Finished, Part, Rows, read_csv

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """As `gpu_check.sh` runs its scripts: from the checkout, nothing installed of ours needed."""
    variables = {**os.environ, "PYTHONPATH": ".:kernels:train", **environment}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=variables, capture_output=True, text=True)


def test_benchmark_at_toy_sizes():
    before = {file: file.stat().st_mtime_ns for file in RESULTS.iterdir()}
    done = run("benchmarks/gpu.py", "--dry-run", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = done.stdout.splitlines()
    for part in ("long_conv", "short_conv", "blockdiag_glu", "model", "train"):
        assert any(line.split()[:2] == [part, "triton"] for line in lines), part
    assert "none of these figures is a measurement" in lines[-1]
    assert before == {file: file.stat().st_mtime_ns for file in RESULTS.iterdir()}, "a dry run writes no results"


def test_correctness_at_toy_sizes():
    done = run("benchmarks/gpu_correctness.py", "--interpret", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "correctness: all within tolerance" in done.stdout


@pytest.mark.parametrize("script", ["gpu.py", "gpu_correctness.py"])
def test_says_what_is_missing(script, monkeypatch, capsys):
    module = {"gpu.py": gpu, "gpu_correctness.py": gpu_correctness}[script]
    monkeypatch.setattr(sys, "argv", [script])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 2 and "no CUDA device" in capsys.readouterr().err


IMPORTS = """
import json, sys
import torch, transformers, numpy, huggingface_hub, safetensors.torch, tokenizers
from transformers import AutoModel, BertModel, PreTrainedModel
before = set(sys.modules)
import gpu, gpu_correctness, gpu_model_check, m2rag.tokenizer
import m2rag_kernels.long_conv.triton, m2rag_kernels.short_conv.triton, m2rag_kernels.blockdiag_glu.triton
print(json.dumps(sorted({name.partition(".")[0] for name in set(sys.modules) - before})))
"""


def test_needs_nothing_but_torch_triton_transformers_and_numpy():
    done = run("-c", IMPORTS, PYTHONPATH="benchmarks:.:kernels:train")
    assert done.returncode == 0, done.stderr[-3000:]
    new = set(json.loads(done.stdout.splitlines()[-1]))
    ours = {"m2rag", "m2rag_kernels", *(file.stem for file in BENCHMARKS.glob("*.py"))}
    here = {"torch", "triton", "transformers", "numpy", "tokenizers", "safetensors", "huggingface_hub"}
    assert new - ours - here - set(sys.stdlib_module_names) == set()


class Broken(torch.autograd.Function):
    """The input itself, with a gradient that is half of what it should be."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


def wrong_value(u, *args, **kwargs):
    return exact(u, *args, **kwargs) * 1.0001


def wrong_gradient(u, *args, **kwargs):
    return exact(Broken.apply(u), *args, **kwargs)


def unwritten(u, *args, **kwargs):
    """The last row is as it was allocated; gradients are right."""
    y = exact(u, *args, **kwargs)
    with torch.no_grad():
        y[-1, -1] = torch.empty_like(y[-1, -1])
    return y


def raises(*args, **kwargs):
    raise RuntimeError("out of resources\nand more")


def exact(u, kernel, kernel_rev, skip, gate=None, mask=None):
    doubles = [None if t is None else t.double() for t in (u, kernel, kernel_rev, skip, gate)]
    return gpu_cases.long_conv_exact(*doubles, mask).to(u.dtype)


@pytest.mark.parametrize(
    ("function", "status", "worst"),
    [
        (exact, OK, None),
        (wrong_value, "wrong", "output"),
        (wrong_gradient, "wrong", "gradient of u"),
        (unwritten, "wrong", "output"),
        (raises, "RuntimeError: out of resources", None),
    ],
)
def test_what_is_wrong_is_reported(function, status, worst, monkeypatch, capsys):
    monkeypatch.setattr(
        gpu_correctness, "functions", lambda op: (gpu_cases.long_conv_problem, gpu_cases.long_conv_exact, function)
    )
    rows = Rows()
    case = gpu_cases.Case("long_conv", "float32", 30, 2, 5, 0, ("right", "gate", "mask"))
    gpu_correctness.check_cases("long_conv", "float32", [case], "cpu", rows)
    [row] = rows.all
    assert row["status"] == status
    assert worst is None or row["worst"].startswith(worst)
    assert gpu_correctness.show(rows.all) == (status == OK)
    assert ("NOT all" in capsys.readouterr().out) == (status != OK)


def test_what_did_not_run_is_not_ok(capsys):
    part = Part("long_conv bfloat16 2/5", [], 1)
    rows = gpu_correctness.missing(part, Finished([], "ended: out of time"))
    assert not gpu_correctness.show(rows) and "out of time" in capsys.readouterr().out
    assert gpu_correctness.missing(part, Finished([], None)) == []
    assert not gpu_correctness.show([])


@pytest.mark.parametrize("op", gpu_correctness.OPS[:-1])
@pytest.mark.parametrize("n", [1, 5])
def test_every_case_is_in_one_share(op, n):
    every = list(gpu_cases.cases(op, "float32", interpret=False))
    shares = [gpu_correctness.share(every, i, n) for i in range(n)]
    assert [case for some in shares for case in some] == every
    lengths = {case.length for case in every}
    assert {1, 63, 1000, 32767, 32768} <= lengths
    assert op == "blockdiag_glu" or any("mask" in case.options for case in every if case.length == 32768)


def test_bars_follow_from_the_rows():
    model = {"part": "model", "n_tokens": 32768, "batch": 1, "status": OK}
    rows = [
        {**model, "implementation": "triton", "dtype": "bfloat16", "seconds": 0.03, "tokens_per_ms": 1092.0},
        {**model, "implementation": "naive", "dtype": "bfloat16", "seconds": 0.12},
        {**model, "implementation": "naive", "dtype": "float32", "seconds": 0.3, "status": "out of memory"},
        {"part": "long_conv", "implementation": gpu.KEPT, "n_tokens": 32768, "direction": "forward",
         "times_floor": 1.8, "status": OK},
    ]  # fmt: skip
    bars = {bar.what.strip(): bar.row() for bar in gpu.bars(rows)}
    first = list(gpu.bars(rows))[:4]
    assert [bar.row()["met"] for bar in first] == ["yes", "no", "-", ""]
    assert bars["long_conv (triton, spectrum kept) at 32,768 tokens, times its copy floor"]["met"] == "yes"


@pytest.mark.parametrize(
    ("implementation", "status", "good"),
    [
        ("triton", OK, True),
        ("triton", gpu.OUT_OF_MEMORY, False),
        ("naive", gpu.OUT_OF_MEMORY, True),
        ("naive", "ended: out of time", False),
        ("triton", "took {'long_conv': 'naive'}", False),
    ],
)
def test_what_we_are_compared_with_may_not_fit(implementation, status, good, capsys):
    row = {"part": "train", "implementation": implementation, "status": status}
    assert gpu.show_last([row]) == good
    assert ("1 not measured" in capsys.readouterr().out) == (status != OK)


@pytest.mark.parametrize(("correct", "measured", "status"), [(0, 0, 0), (1, 0, 1), (0, 1, 2), (2, 2, 1)])
def test_check_says_by_its_status_what_failed(correct, measured, status, tmp_path):
    """The shell script alone: an interpreter that only notes what it is to run and ends as it is told to."""
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {tmp_path}/calls\n'
        'case "$*" in *--show*) exit 0;; esac\n'
        "sleep 0.1  # a file's time has a resolution of some milliseconds\n"
        f'case "$*" in *correctness.py*) touch {tmp_path}/gpu_correctness.csv; exit {correct};; esac\n'
        f"exit {measured}\n"
    )
    python.chmod(0o755)
    (tmp_path / "gpu.csv").touch()
    environment = {**os.environ, "PYTHON": str(python), "OUT": str(tmp_path)}
    done = subprocess.run([str(BENCHMARKS / "gpu_check.sh")], env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    calls = (tmp_path / "calls").read_text()
    assert calls.count("--show") == 1, "the table of an earlier run is not shown as one of this"
    assert calls.index("gpu_correctness.py --seconds 285") < calls.index("gpu.py --seconds")


@pytest.mark.skipif(not (RESULTS / "gpu.csv").exists(), reason="no committed results yet")
def test_committed_results_are_of_one_gpu():
    rows = read_csv(RESULTS / "gpu.csv")
    assert len({(row["device"], row["torch"]) for row in rows}) == 1
    assert all(bar.limit is None or bar.value is not None for bar in gpu.bars(rows))
