"""All stages in a row, each by the command a user types: pretrain, extend, fine-tune, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_finetuning import recipe_data, write_world
from tiny_pretraining import MODEL, UNIGRAM_LOSS, pretrain_data, write_cycles
from typer.testing import CliRunner

from m2rag.cli.app import app


def run(*arguments: str | Path) -> str:
    """Standard output of `m2rag ...`."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def train(folder: Path, recipe: dict[str, Any]) -> Path:
    """`m2rag train` of a recipe named like its run; the folder of the model, which is what the command prints."""
    path = folder / f"{recipe['name']}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    out = folder / "runs" / recipe["name"]
    # As a user types it: no device, and the recipe's default of bf16.
    printed = run("train", path, "--run", out, "--data", folder)
    assert printed.strip() == str(out / "model")
    return out / "model"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pretrain_extend_fine_tune_evaluate(tmp_path: Path) -> None:
    write_cycles(tmp_path)
    write_world(tmp_path, n_words=48)  # longer than the pretrained model reads, so that the extended one is needed

    pretrained = train(tmp_path, pretrain_data(name="pretrain", steps=60, save_every=60, model=MODEL, bf16=True))
    losses = json.loads((pretrained.parent / "evaluation.json").read_text(encoding="utf-8"))
    learned = losses["eval_loss"]
    assert learned < 0.7 * UNIGRAM_LOSS, f"{learned}: words are told from their neighbours no better than by frequency"

    sources = [{"name": "long", "files": ["cycles.jsonl"], "mode": "concatenated"}]
    extended = train(
        tmp_path,
        {"kind": "extend", "name": "extend", "base": str(pretrained), "max_tokens": 64, "sources": sources}
        | {"rows": 8, "held_out": 0.1},
    )
    report = json.loads((extended.parent / "extension.json").read_text(encoding="utf-8"))
    kept = next(way for way in report["after"] if way["positions"] == "tile" and way["filters"] == "keep")
    assert kept["long_loss"] < report["before"]["long_loss"] + 0.3, "twice as long, and what was learned is still there"

    recipe = recipe_data(name="finetune", base=str(extended), pooling="mean", epochs=6, every_query=True, autocast=True)
    adapted = train(tmp_path, recipe)

    printed = run(
        "eval", tmp_path / "task", "--model", adapted, "--baseline", f"before={extended}", "--no-bm25", "--json"
    )
    (task,) = json.loads(printed)["tasks"]
    ndcg = {system["system"]: system["metrics"]["ndcg@10"] for system in task["systems"]}
    assert ndcg["model"] > ndcg["before"] + 0.2, ndcg
