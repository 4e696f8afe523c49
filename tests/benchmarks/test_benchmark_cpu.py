"""The CPU benchmark: its whole path at toy sizes, one real cell in a process of its own, and its bars."""

from __future__ import annotations

import cpu
import pytest
from common import RESULTS, read_csv
from cpu import BERT, BUNDLED, BUNDLED_NAME, OURS, QUERY, REFERENCE, TOY, Cell

bundled = pytest.mark.skipif(not (BUNDLED / BUNDLED_NAME).is_dir(), reason="the bundled checkpoint is not here")


@bundled
def test_a_run_at_toy_sizes_fills_every_cell(capsys):
    rows = cpu.run(TOY, rounds=1, bert_longest=False)
    measured = {(row["implementation"], row["n_tokens"]) for row in rows if row["implementation"] != QUERY}
    lengths = set(TOY.lengths)
    assert measured == (
        {(name, n) for name in (REFERENCE, BUNDLED_NAME) for n in lengths}
        | {(OURS, n) for n in lengths | set(TOY.query_tokens)}
        | {(BERT, n) for n in lengths - {max(lengths)}}
    )
    assert all(row["seconds"] > 0 and row["device"] and row["peak_mb_above_model"] >= 0 for row in rows)
    # Random weights in bf16 against fp32: the same computation.
    assert all(row["cosine_to_reference"] > 0.99 for row in rows if (row["implementation"], row["n_tokens"]) in
               {(OURS, n) for n in lengths})  # fmt: skip
    assert all(bar.value is not None for bar in cpu.bars(rows, TOY))
    cpu.show(rows, TOY)
    assert capsys.readouterr().out.rstrip().splitlines()[-1].startswith("ms of embed_query")


@bundled
def test_a_cell_in_a_process_of_its_own(tmp_path):
    row = cpu.measure_in_fresh_process(Cell(BUNDLED_NAME, 16, 2), tmp_path)
    assert row is not None and 0 < row["s"] < row["first_s"]
    assert (tmp_path / f"{BUNDLED_NAME}-16.npy").exists()


def test_slow_cells_run_once():
    cells = cpu.plan(cpu.REAL, rounds=3, bert_longest=True)
    assert cells.count(Cell(REFERENCE, 32768, 0)) == cells.count(Cell(BERT, 32768, 0)) == 1
    assert cells.count(Cell(OURS, 32768, 1)) == 3
    assert Cell(BERT, 32768, 0) not in cpu.plan(cpu.REAL, rounds=3, bert_longest=False)


def test_bars_follow_from_the_rows():
    seconds = {(REFERENCE, 32768): 80, (OURS, 32768): 10, (OURS, 8192): 2.5, (BERT, 8192): 14, (OURS, 16): 0.02}
    rows = [
        {"implementation": name, "n_tokens": n, "seconds": s, "peak_mb_above_model": 650}
        for (name, n), s in seconds.items()
    ]
    rows.append({"implementation": QUERY, "n_tokens": 11, "seconds": 0.031})
    assert [bar.row()["met"] for bar in cpu.bars(rows)] == ["yes", "", "", "no", "yes", "yes", "yes", "no"]
    assert [bar.value for bar in cpu.bars(rows)] == [8, None, None, 5.6, 4, 0.002, 650, 31]


@pytest.mark.skipif(not (RESULTS / "cpu.csv").exists(), reason="no committed results yet")
def test_committed_results_are_of_one_machine_and_complete(capsys):
    rows = read_csv(RESULTS / "cpu.csv")
    assert len({(row["device"], row["cores"], row["torch"]) for row in rows}) == 1
    assert all(bar.value is not None for bar in cpu.bars(rows))
