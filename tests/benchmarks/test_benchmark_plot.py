"""The figures: made from a CSV, the same every time, up to date with what is committed."""

from __future__ import annotations

import sys

import pytest
from common import OK, RESULTS, read_csv, write_csv

pytest.importorskip("matplotlib", reason="the plots need matplotlib: pip install 'm2rag[bench]'")

import plot


def results(folder):
    here = {"device": "a processor", "threads": 2, "torch": "2.0"}
    write_csv(
        folder / "cpu.csv",
        [
            {"implementation": name, "dtype": dtype, "n_tokens": n, "seconds": n * cost / 1e6, **here}
            for (name, dtype), _, _, _ in plot.LINES["cpu"]
            for n, cost in ((16, 50), (512, 100), (2048, 110))
        ],
    )


def test_one_figure_per_csv(tmp_path, monkeypatch, capsys):
    results(tmp_path)
    monkeypatch.setattr(sys, "argv", ["plot.py", "--results", str(tmp_path)])
    plot.main()
    first = (tmp_path / "cpu.svg").read_bytes()
    plot.main()
    assert (tmp_path / "cpu.svg").read_bytes() == first, "the same figures give the same file"
    assert capsys.readouterr().out.split() == [str(tmp_path / "cpu.svg")] * 2
    text = first.decode()
    assert all(label in text for _, label, _, _ in plot.LINES["cpu"]) and "a processor, 2 threads" in text


def test_without_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plot.py", "--results", str(tmp_path)])
    with pytest.raises(SystemExit):
        plot.main()
    assert "run benchmarks/cpu.py" in capsys.readouterr().err


def test_points_are_of_models_that_ran():
    row = {"part": "model", "implementation": "triton", "dtype": "bfloat16", "n_tokens": 512, "status": OK}
    rows = [
        {**row, "seconds": 0.4, "batch": 4},
        {**row, "seconds": 0.2, "batch": 1},
        {**row, "seconds": 0.01, "batch": 1, "status": "out of memory"},
        {**row, "part": "train", "seconds": 0.01, "batch": 1},
    ]
    assert plot.points(rows, "triton", "bfloat16") == [(512, 0.1)]


@pytest.mark.parametrize("which", plot.LINES)
def test_committed_figures_show_the_committed_results(which, tmp_path):
    if not (RESULTS / f"{which}.csv").exists():
        pytest.skip("no committed results yet")
    rows = read_csv(RESULTS / f"{which}.csv")
    plot.draw(which, rows, tmp_path / "new.svg")
    committed = (RESULTS / f"{which}.svg").read_text()
    assert f"{rows[0]['device']}" in committed
    for names, label, _, _ in plot.LINES[which]:
        assert (label in committed) == bool(plot.points(rows, *names))
