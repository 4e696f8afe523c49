"""A run over tasks and seeds: it learns, starts where it says, goes on where it stopped, and sums up."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.full_disk import writes_end_after
from tiny_glue import classify_data, load, save_base, task_settings, write_task

from m2rag.errors import CheckpointError
from m2rag.models import M2BertForSequenceClassification, load_checkpoint
from m2rag_train.classification import loop
from m2rag_train.classification.loop import build_classifier, tokenise, tokenizer_of
from m2rag_train.classification.recipe import ClassifyRecipe, TaskSettings
from m2rag_train.classification.tasks import TASKS, Example
from m2rag_train.errors import CheckpointWriteError, DivergedError, RecipeError
from m2rag_train.recipe import RunOptions


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    save_base(folder / "base")
    for task in ("mnli", "rte", "stsb", "cola"):
        write_task(folder / "glue", task)
    return folder


def recipe_of(folder: Path, *tasks: dict[str, Any], **changes: Any) -> ClassifyRecipe:
    return load(folder / "recipe.yaml", classify_data(Path("base"), list(tasks), **changes))


def run(recipe: ClassifyRecipe, folder: Path, data: Path, **options: Any) -> Path | None:
    folder.mkdir(exist_ok=True)
    return recipe.run(RunOptions(folder, data, "cpu", **options))


MEAN = {"pooling": "mean_tanh"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """MNLI twice, RTE from it, similarities, and CoLA, whose model is kept."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = recipe_of(
        folder,
        task_settings("mnli", seeds=[1, 2], epochs=5, **MEAN),
        task_settings("rte", start="mnli", epochs=1, **MEAN),
        task_settings("stsb", metrics=["spearman"], **MEAN),
        task_settings("cola", keep=True, **MEAN),
    )
    assert run(recipe, folder / "run", data) == folder / "run" / "results.md"
    return folder / "run"


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_it_learns(finished: Path) -> None:
    scores = {task: each["score"]["mean"] for task, each in results(finished)["tasks"].items()}
    # Measured: 76, 80 or more, 94 and 79; by chance 33, 50, 0 and 0.
    assert scores["mnli"] > 60
    assert scores["rte"] > 65
    assert scores["stsb"] > 80
    assert scores["cola"] > 55


def test_results_are_means_and_medians_of_the_figures(finished: Path) -> None:
    found = results(finished)
    mnli = [json.loads((finished / "figures" / f"mnli-{seed}.json").read_text())["metrics"] for seed in (1, 2)]
    scores = [50 * (each["accuracy_matched"] + each["accuracy_mismatched"]) for each in mnli]
    task = found["tasks"]["mnli"]
    assert task["score"] == pytest.approx({"mean": np.mean(scores), "median": np.median(scores)})
    assert task["seeds"] == pytest.approx({"1": scores[0], "2": scores[1]})
    stsb = json.loads((finished / "figures" / "stsb-0.json").read_text())["metrics"]
    assert set(stsb) == {"pearson", "spearman"}
    assert found["tasks"]["stsb"]["score"]["mean"] == pytest.approx(100 * stsb["spearman"]), "the metric asked for"
    means = [each["score"]["mean"] for each in found["tasks"].values()]
    assert found["average"] == pytest.approx(np.mean(means))
    table = (finished / "results.md").read_text(encoding="utf-8")
    row = f"| rte | {found['tasks']['rte']['score']['mean']:.1f} | "
    assert row in table and "| mnli | accuracy " in table and f"| average of 4 | {found['average']:.1f} |" in table


def test_what_is_kept(finished: Path) -> None:
    assert sorted(path.name for path in (finished / "models").iterdir()) == ["cola-0", "mnli-1"]
    assert list((finished / "runs").iterdir()) == [], "states of finished tasks make room"
    model = M2BertForSequenceClassification.from_pretrained(finished / "models" / "cola-0").eval()
    tokenizer = tokenizer_of(finished / "models" / "cola-0")
    with torch.no_grad():
        texts = ["the river runs past winter houses", "summer the river runs past houses"]
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    assert logits.argmax(1).tolist() == [0, 1]


def test_a_finished_run_trains_nothing(finished: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "ClassifyTrainer", None)
    recipe = recipe_of(
        finished.parent,
        task_settings("mnli", seeds=[1, 2], epochs=5, **MEAN),
        task_settings("rte", start="mnli", epochs=1, **MEAN),
        task_settings("stsb", metrics=["spearman"], **MEAN),
        task_settings("cola", keep=True, **MEAN),
    )
    before = results(finished)
    assert run(recipe, finished, data) == finished / "results.md"
    assert results(finished) == before


def test_a_task_starts_from_another(finished: Path, data: Path) -> None:
    settings = TaskSettings("rte", lr=1e-3, epochs=1, batch_size=4, pooling="mean_tanh")
    encoder = load_checkpoint(finished / "models" / "mnli-1", pooling="mean_tanh")
    model = build_classifier(finished / "models" / "mnli-1", settings, seed=3, keep_pooler=True)
    for name, value in encoder.state_dict().items():
        assert torch.equal(model.bert.state_dict()[name], value), name
    assert model.classifier.out_features == 2, "three classes before"
    again = build_classifier(finished / "models" / "mnli-1", settings, seed=3, keep_pooler=True)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    other = build_classifier(finished / "models" / "mnli-1", settings, seed=4, keep_pooler=True)
    assert not torch.equal(other.classifier.weight, model.classifier.weight)

    fresh = build_classifier(data / "base", settings, seed=3, keep_pooler=False)
    base = load_checkpoint(data / "base")
    assert torch.equal(fresh.bert.embeddings.word_embeddings.weight, base.embeddings.word_embeddings.weight)
    assert fresh.bert.pooler.weight.std() > 0 and fresh.config.problem_type == "single_label_classification"


def test_a_base_without_a_configuration(data: Path, tmp_path: Path) -> None:
    settings = TaskSettings("rte", lr=1e-3, epochs=1, batch_size=4)
    shutil.copy(data / "base" / "model.safetensors", tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        build_classifier(tmp_path, settings, seed=0, keep_pooler=False)
    told = json.loads((data / "base" / "config.json").read_text(encoding="utf-8"))
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "long_conv_l_max")
    others = ("max_position_embeddings", "hyena_filter_order", "use_positional_encodings", "filter", "padding")
    keys = {key: told[key] for key in sizes + others}
    model = build_classifier(tmp_path, settings, seed=0, keep_pooler=False, keys=keys)
    assert model.config.hidden_size == 32 and model.config.filter == "multiscale"
    # A base that describes itself is believed.
    model = build_classifier(data / "base", settings, seed=0, keep_pooler=False, keys={"filter": "hyena"})
    assert model.config.filter == "multiscale"


def test_one_epoch_from_the_base_learns_less(finished: Path, data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, task_settings("rte", epochs=1, **MEAN))
    run(recipe, tmp_path / "run", data)
    alone = results(tmp_path / "run")["tasks"]["rte"]["score"]["mean"]
    assert results(finished)["tasks"]["rte"]["score"]["mean"] > alone + 10


def test_a_run_in_pieces_is_the_same_run(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tasks = (
        task_settings("cola", epochs=2, keep=True, **MEAN),
        task_settings("rte", epochs=1, seeds=[0, 5], keep=True, **MEAN),
    )
    recipe = recipe_of(tmp_path, *tasks, save_every=4)
    run(recipe, tmp_path / "whole", data)
    # 12 steps, then 6 and 6: stopped inside the first, at a border, inside the last.
    caplog.set_level(logging.INFO, "m2rag_train")
    for steps in (7, 5, 9):
        torch.manual_seed(steps)
        assert run(recipe, tmp_path / "pieces", data, stop_after=steps) is None
    assert "cola, seed 0: stopped after step 7; saved: run again to go on" in caplog.text
    assert run(recipe, tmp_path / "pieces", data) is not None
    assert "cola, seed 0: finished already" in caplog.text
    assert results(tmp_path / "pieces") == results(tmp_path / "whole")
    for model in ("cola-0", "rte-0", "rte-5"):
        one, other = (load_file(tmp_path / at / "models" / model / "model.safetensors") for at in ("whole", "pieces"))
        assert all(torch.equal(one[name], other[name]) for name in one), model


def test_dropout_resumes_exactly(data: Path, tmp_path: Path) -> None:
    save_base(tmp_path / "base", hidden_dropout_prob=0.2)
    shutil.copytree(data / "glue", tmp_path / "glue")
    recipe = recipe_of(tmp_path, task_settings("cola", epochs=1, keep=True, **MEAN))
    for name, pieces in (("whole", [None]), ("pieces", [3, None])):
        for steps in pieces:
            torch.manual_seed(len(name))
            run(recipe, tmp_path / name, tmp_path, stop_after=steps)
    one, other = (load_file(tmp_path / at / "models/cola-0/model.safetensors") for at in ("whole", "pieces"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_ctrl_c_saves_and_says_how_to_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "m2rag_train")
    recipe = recipe_of(tmp_path, task_settings("cola", epochs=1, **MEAN))
    step = loop.ClassifyTrainer.training_step

    def interrupted_in_step_3(trainer: Any, *args: Any) -> torch.Tensor:
        if trainer.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(trainer, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.ClassifyTrainer, "training_step", interrupted_in_step_3)
        run(recipe, tmp_path / "run", data)
    assert "cola, seed 0: stopped after step 3; saved: run again to go on" in caplog.text
    run(recipe, tmp_path / "run", data)
    assert "cola, seed 0: 6 steps, from checkpoint-3" in caplog.text
    run(recipe, tmp_path / "whole", data)
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_another_recipe_needs_another_folder(finished: Path, data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, task_settings("cola", **MEAN))
    with pytest.raises(RecipeError, match="holds a run with tasks .*, the recipe now says .*: give another --run"):
        run(recipe, finished, data)


def test_numbers_that_run_away(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, task_settings("cola", lr=1e30, **MEAN))
    with pytest.raises(DivergedError, match=r"tiny-glue: cola, seed 0: the (loss|gradient norm) is \w+ at step \d"):
        run(recipe, tmp_path / "run", data)
    assert not (tmp_path / "run" / "figures").exists()


def test_a_full_disk_leaves_the_last_state(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, task_settings("cola", epochs=1, **MEAN))
    run(recipe, tmp_path / "run", data, stop_after=2)
    message = "checkpoint-4 could not be written: .* File too large"
    with writes_end_after(10_000), pytest.raises(CheckpointWriteError, match=message):
        run(recipe, tmp_path / "run", data, stop_after=2)
    run(recipe, tmp_path / "whole", data)
    run(recipe, tmp_path / "run", data)
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_longer_texts_than_the_base_takes(data: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, task_settings("cola"), max_tokens=33)
    with pytest.raises(RecipeError, match="max_tokens is 33, base takes 32"):
        run(recipe, tmp_path / "run", data)


def test_rows_are_pairs_with_types_cut_from_the_longer(data: Path) -> None:
    tokenizer = tokenizer_of(data / "base")
    long, short = " ".join(["river"] * 9), "garden town"
    rows = tokenise([Example((long, short), 1.0), Example((short, short), 0.0)], TASKS["rte"], tokenizer, 10)
    words = [tokenizer.convert_ids_to_tokens(row["input_ids"]) for row in rows]
    assert words[0] == ["[CLS]", *["river"] * 5, "[SEP]", "garden", "town", "[SEP]"]
    assert rows[0]["token_type_ids"] == [0] * 7 + [1] * 3
    assert words[1] == ["[CLS]", "garden", "town", "[SEP]", "garden", "town", "[SEP]"]
    assert [row["labels"] for row in rows] == [1, 0] and isinstance(rows[0]["labels"], int)
    similarity = tokenise([Example((short, short), 2.5)], TASKS["stsb"], tokenizer, 10)
    assert similarity[0]["labels"] == 2.5


def test_without_a_tokenizer_of_its_own_it_is_bert_base_uncased(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    tokenizer = tokenizer_of(tmp_path / "weights.pt")
    assert tokenizer("The wheels")["input_ids"] == [101, 1996, 7787, 102]
