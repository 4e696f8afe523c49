"""Cost against length, from the committed results: benchmarks/results/{cpu,gpu}.csv -> cpu.svg, gpu.svg beside them.

    python benchmarks/plot.py

Needs matplotlib (`pip install 'm2rag[bench]'`). The same CSV gives the same file, byte for byte.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from common import OK, RESULTS, Row, read_csv

matplotlib.use("svg")

from matplotlib import pyplot as plt  # noqa: E402 - after the backend is chosen

# Per figure: implementation and dtype of each line, its label, its colour and marker.
LINES = {
    "cpu": [
        (("reference", "float32"), "reference algorithm, 80M, fp32", "#888888", "s"),
        (("bert-base", "float32"), "BERT-base (SDPA), 110M, fp32", "#d1495b", "^"),
        (("ours", "bfloat16"), "m2rag, 80M, bf16", "#00798c", "o"),
        (("m2rag-mini", "bfloat16"), "m2rag-mini, bf16", "#edae49", "D"),
    ],
    "gpu": [
        (("naive", "float32"), "torch.fft, 80M, fp32", "#888888", "s"),
        (("naive", "bfloat16"), "torch.fft, 80M, bf16 autocast", "#555555", "v"),
        (("bert-base", "bfloat16"), "BERT-base (SDPA), 110M, bf16", "#d1495b", "^"),
        (("triton", "bfloat16"), "m2rag (Triton), 80M, bf16", "#00798c", "o"),
    ],
}
SHORTEST = 512  # queries are in the table; here they would only squeeze the documents together


def points(rows: Sequence[Row], implementation: str, dtype: str) -> list[tuple[int, float]]:
    """(tokens, seconds per document) by rising length; of several batch sizes the one that is cheapest per document."""
    best: dict[int, float] = {}
    for row in rows:
        wanted = (row["implementation"], row["dtype"]) == (implementation, dtype)
        measured = row.get("part", "model") == "model" and row.get("status", OK) == OK
        if wanted and measured and row["n_tokens"] >= SHORTEST:
            n_tokens, seconds = row["n_tokens"], row["seconds"] / (row.get("batch") or 1)
            best[n_tokens] = min(seconds, best.get(n_tokens, seconds))
    return sorted(best.items())


def draw(which: str, rows: Sequence[Row], out: Path) -> None:
    """One figure: seconds per document against its tokens, both logarithmic."""
    style: dict[Any, Any] = {
        "svg.hashsalt": "m2rag",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
    }
    with matplotlib.rc_context(style):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        lengths: set[int] = set()
        for (implementation, dtype), label, colour, marker in LINES[which]:
            line = points(rows, implementation, dtype)
            if line:
                x, y = zip(*line, strict=True)
                lengths.update(x)
                axes.plot(x, y, color=colour, marker=marker, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sorted(lengths), [f"{n:,}" for n in sorted(lengths)])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_xlabel("tokens in the document")
        axes.set_ylabel("seconds per document")
        threads = f", {rows[0]['threads']} threads" if rows[0].get("threads") else ""
        axes.set_title(f"{rows[0]['device']}{threads}, torch {rows[0]['torch']}", fontsize=10)
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.legend(frameon=False)
        figure.savefig(out, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSVs, and of the figures")
    args = parser.parse_args()
    found = [which for which in LINES if (args.results / f"{which}.csv").exists()]
    if not found:
        parser.error(f"{args.results} has neither cpu.csv nor gpu.csv: run benchmarks/cpu.py or benchmarks/gpu.py")
    for which in found:
        out = args.results / f"{which}.svg"
        draw(which, read_csv(args.results / f"{which}.csv"), out)
        print(out)


if __name__ == "__main__":
    main()
