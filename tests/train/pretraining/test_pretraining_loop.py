"""The loop: the reference's loss and gradients, a loss that falls, and runs in pieces that are one run."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_recipe import reference_state_dict
from support.forked import end_of_a_child
from tiny_models import TOKENIZER
from tiny_pretraining import (
    MODEL,
    UNIGRAM_LOSS,
    assert_same_tensors,
    make_recipe,
    options,
    pretrain_data,
    saved_tensors,
    write_cycles,
    write_recipe,
)
from transformers import AutoModel, AutoModelForMaskedLM

from m2rag import M2Embedder
from m2rag.models import M2BertForMaskedLM, from_reference, load_checkpoint
from m2rag.models.checkpoints import translate_key
from m2rag.models.modeling_m2_bert import HyenaFilter
from m2rag_train.errors import CheckpointWriteError, DivergedError, RecipeError, TrainingDataError
from m2rag_train.pretraining.loop import PretrainTrainer, parameter_groups, training_arguments
from m2rag_train.pretraining.mixture import Mixture
from m2rag_train.recipe import load_recipe
from m2rag_train.trainer import CHECKPOINTS, last_checkpoint

GOLDEN = Path(__file__).parents[2] / "golden" / "tiny_mlm.npz"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--"]
CPU = ["--device", "cpu"]
DROPOUT = {**MODEL, "hidden_dropout_prob": 0.1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_cycles(folder)
    return folder


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A run of 12 steps with dropout, in one piece."""
    folder = tmp_path_factory.mktemp("unbroken")
    make_recipe(folder, model=DROPOUT).run(options(data, folder))
    return folder


def evaluation(run: Path) -> dict[str, float]:
    return json.loads((run / "evaluation.json").read_text(encoding="utf-8"))


def in_a_new_process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


# What is computed


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_the_references(tmp_path: Path, golden_cases: Any, checkpointing: bool) -> None:
    """The golden case through the Trainer's own step, in two parts as gradient accumulation computes them."""
    expected, config = np.load(GOLDEN), {**golden_cases["tiny_mlm"]["config"], "hidden_dropout_prob": 0.0}
    model = from_reference(config, reference_state_dict(config, "mlm"), head="mlm")
    assert isinstance(model, M2BertForMaskedLM)
    recipe = make_recipe(tmp_path, gradient_checkpointing=checkpointing)
    arguments = training_arguments(recipe, options(tmp_path, tmp_path))
    trainer = PretrainTrainer(recipe, model, TOKENIZER, Mixture([[]], [1.0], 0), {}, 256, arguments)  # type: ignore[list-item]

    inputs = {key: torch.tensor(expected[key]) for key in ("input_ids", "attention_mask", "labels")}
    n = int((inputs["labels"] > 0).sum())
    assert len(inputs["labels"]) == 2
    loss = sum(
        trainer.training_step(model, {key: value[row : row + 1] for key, value in inputs.items()}, torch.tensor(n))
        for row in range(2)
    )
    assert float(loss) == pytest.approx(float(expected["loss"]), rel=1e-6)
    parameters = dict(model.named_parameters())
    norms = {key.removeprefix("gradnorm/"): expected[key] for key in expected.files if key.startswith("gradnorm/")}
    assert len(norms) == 10
    for name, norm in norms.items():
        gradient = parameters[f"bert.{translate_key(name)}"].grad
        assert gradient is not None and gradient.norm().item() == pytest.approx(float(norm), rel=1e-4), name


def test_groups_are_the_published_ones(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, lr=8e-4, filter_lr=1e-3, weight_decay=0.0125)
    torch.manual_seed(0)
    model = M2BertForMaskedLM(recipe.model_config())
    groups = parameter_groups(model, recipe)
    members = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())
    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    found = {name: settings[id(parameter)] for name, parameter in model.named_parameters()}
    mixer = "bert.layers.1.mixer."
    assert found[mixer + "filter.mlp.hidden1.weight"] == (1e-3, 0.1)
    assert found[mixer + "residual_filter.mlp_rev.output.weight"] == (1e-3, 0.1)
    assert found[mixer + "filter.freq"] == (1e-3, 0.1)
    assert found[mixer + "filter.z"] == (1e-5, 0.0)
    assert found[mixer + "filter.skip"] == found["bert.embeddings.word_embeddings.weight"] == (8e-4, 0.0125)
    n_filters = sum(isinstance(module, HyenaFilter) for module in model.modules())
    assert sum(value == (1e-5, 0.0) for value in found.values()) == n_filters == 4


def test_learning_rate_rises_and_falls(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, steps=100)
    torch.manual_seed(0)
    model = M2BertForMaskedLM(recipe.model_config())
    arguments = training_arguments(recipe, options(tmp_path, tmp_path))
    trainer = PretrainTrainer(recipe, model, TOKENIZER, Mixture([[]], [1.0], 0), {}, 32, arguments)  # type: ignore[list-item]
    factor = trainer.lr_scheduler.lr_lambdas[0]
    assert [factor(step) for step in (0, 2, 5)] == pytest.approx([1 / 6, 0.5, 1.0])
    assert [factor(step) for step in (6, 53, 100)] == pytest.approx([1.0, 0.51, 0.02])


# What is learned, and what is left behind


def test_it_learns_from_the_neighbours(tmp_path: Path, data: Path) -> None:
    """Every word is as frequent as any other: only neighbours bring the loss below that of guessing by frequency."""
    recipe = make_recipe(tmp_path, steps=70, batch_size=16, micro_batch_size=16, save_every=1000, weight_decay=0.0)
    assert recipe.run(options(data, tmp_path)) == tmp_path / "model"
    losses = evaluation(tmp_path)
    assert losses["eval_loss"] < UNIGRAM_LOSS - 1.5, losses
    assert {"eval_short_loss", "eval_long_loss"} <= losses.keys()


def test_the_finished_model_loads_everywhere(unbroken: Path) -> None:
    folder = unbroken / "model"
    ids = torch.tensor([[101, 2028, 103, 2093, 102]])
    with torch.no_grad():
        ours = load_checkpoint(folder, head="mlm")(ids).logits
        stock = AutoModelForMaskedLM.from_pretrained(folder).eval()(ids).logits
        pooled = AutoModel.from_pretrained(folder).eval()(ids).pooler_output[0]
    torch.testing.assert_close(stock, ours, rtol=0, atol=1e-5)
    result = M2Embedder(folder).embed_documents(["one [MASK] three"])
    assert result.vectors.shape == (1, 32)
    np.testing.assert_allclose(result.vectors[0], torch.nn.functional.normalize(pooled, dim=0).numpy(), atol=1e-5)


def test_training_goes_on_from_a_checkpoint(tmp_path: Path, data: Path, unbroken: Path) -> None:
    recipe = make_recipe(
        tmp_path, model=None, base=str(unbroken / "model"), steps=2, packing="packed", bf16=True, workers=1
    )
    recipe.run(options(data, tmp_path))
    before = load_checkpoint(unbroken / "model", head="mlm").state_dict()
    after = load_checkpoint(tmp_path / "model", head="mlm").state_dict()
    changes = [float((after[name] - before[name]).abs().max()) for name in before if name.endswith("proj.weight")]
    # Two steps of at most the learning rate each.
    assert 0 < min(changes) and max(changes) < 0.03


# Pieces of a run


def test_a_run_in_pieces_is_the_same_run(tmp_path: Path, data: Path, unbroken: Path) -> None:
    """Stopped where nothing would have been saved anyway, and with other micro-batches' worth of checkpoints."""
    recipe = make_recipe(tmp_path, model=DROPOUT)
    assert recipe.run(options(data, tmp_path, stop_after=5)) is None
    assert not (tmp_path / "model").exists()
    assert recipe.run(options(data, tmp_path, stop_after=1)) is None
    assert recipe.run(options(data, tmp_path)) == tmp_path / "model"
    assert_same_tensors(saved_tensors(tmp_path), saved_tensors(unbroken))
    assert evaluation(tmp_path)["eval_loss"] == evaluation(unbroken)["eval_loss"]
    # Once more: nothing is left to do.
    assert recipe.run(options(data, tmp_path)) == tmp_path / "model"


def test_a_killed_run_is_the_same_run(
    tmp_path: Path, data: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 in the seventh step: the state of the fourth is there, and what follows is bit-equal."""
    recipe = make_recipe(tmp_path, model=DROPOUT)
    run = tmp_path / "run"
    step = PretrainTrainer.training_step

    def dying(self: PretrainTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "training_step", dying)
        assert end_of_a_child(lambda: recipe.run(options(data, run))) == -signal.SIGKILL
    checkpoint = last_checkpoint(run / CHECKPOINTS)
    assert checkpoint is not None and checkpoint.name == "checkpoint-4"
    load_recipe(tmp_path / "recipe.yaml").run(options(data, run))
    assert_same_tensors(saved_tensors(run), saved_tensors(unbroken))


def test_ctrl_c_saves_and_stops(tmp_path: Path, data: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = PretrainTrainer.training_step
    presses: list[int] = []

    def pressed(self: PretrainTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == 5 and not presses:
            presses.append(5)
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    recipe = make_recipe(tmp_path, model=DROPOUT)
    with monkeypatch.context() as patch:
        patch.setattr(PretrainTrainer, "training_step", pressed)
        with pytest.raises(KeyboardInterrupt):
            recipe.run(options(data, tmp_path))
    checkpoint = last_checkpoint(tmp_path / CHECKPOINTS)
    assert checkpoint is not None and checkpoint.name == "checkpoint-6"
    recipe.run(options(data, tmp_path))
    assert_same_tensors(saved_tensors(tmp_path), saved_tensors(unbroken))


def test_a_full_disk_leaves_the_last_state(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path)
    recipe.run(options(data, tmp_path, stop_after=4))
    before = saved_tensors(tmp_path)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(CheckpointWriteError, match="checkpoint-8.*No space left"):
            recipe.run(options(data, tmp_path))
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["checkpoint-4"]
    assert_same_tensors(saved_tensors(tmp_path), before)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute = PretrainTrainer.compute_loss

    def diverging(self: PretrainTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, *args, **kwargs)
        return loss * (float("nan") if self.state.global_step == 6 else 1.0)

    monkeypatch.setattr(PretrainTrainer, "compute_loss", diverging)
    with pytest.raises(DivergedError, match=r"tiny: the loss is nan at step 6; .*checkpoint-4"):
        make_recipe(tmp_path).run(options(data, tmp_path))
    assert all(torch.isfinite(tensor).all() for tensor in saved_tensors(tmp_path).values())


def test_another_recipe_does_not_go_on(tmp_path: Path, data: Path) -> None:
    make_recipe(tmp_path).run(options(data, tmp_path, stop_after=1))
    with pytest.raises(RecipeError, match=r"a run with mask 0\.3, the recipe now says 0\.2"):
        make_recipe(tmp_path, mask=0.2, seed=3).run(options(data, tmp_path))
    # What this machine can hold is no part of what is learned.
    make_recipe(tmp_path, micro_batch_size=2, gradient_checkpointing=True, save_every=3).run(
        options(data, tmp_path, stop_after=1)
    )


def test_a_run_that_could_not_begin_may_begin_with_another_recipe(tmp_path: Path, data: Path) -> None:
    with pytest.raises(TrainingDataError, match="no file matches"):
        make_recipe(tmp_path, sources=[{"name": "a", "files": ["missing.jsonl"]}]).run(options(data, tmp_path))
    assert make_recipe(tmp_path, steps=1).run(options(data, tmp_path)) is not None


def test_batch_and_processes_must_fit(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"batch_size \(8\) must be a multiple of micro_batch_size \(3\)"):
        make_recipe(tmp_path, micro_batch_size=3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"base": "somewhere"}, "give either model"),
        ({"model": None}, "give either model"),
        ({"max_tokens": 64}, "max_tokens is 64, the model takes 32"),
        ({"model": {**MODEL, "pooling": "cls_tanh"}}, "trains 'mean' only"),
        ({"sources": []}, "sources is empty"),
        ({"sources": [{"name": "a"}]}, "give either files or dataset"),
        ({"sources": [{"name": "a", "files": ["x"]}] * 2}, "two sources have the same name"),
        ({"mask": 1.5}, "mask is 1.5"),
        ({"evaluation": {"every": 0}}, "every is 0"),
    ],
)
def test_recipes_that_cannot_run(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        make_recipe(tmp_path, **changes)


def test_micro_batches_do_not_change_what_is_learned(tmp_path: Path, data: Path) -> None:
    """Rows of unequal length, one at a time and all at once: the loss is the mean over the tokens of the step."""
    tensors = []
    for size in (2, 8):
        run = tmp_path / str(size)
        recipe = make_recipe(options(data, run).run, micro_batch_size=size, steps=2, lr=1e-3)
        recipe.run(options(data, run))
        tensors.append(load_checkpoint(run / "model", head="mlm").state_dict())
    for name, tensor in tensors[0].items():
        # AdamW divides small gradients by themselves, and with them their rounding.
        assert (tensor - tensors[1][name]).abs().mean() < 2e-5, name


@pytest.mark.slow
def test_two_processes_learn_the_same(tmp_path: Path, data: Path) -> None:
    """torchrun with gloo: each sample is read by one process, and the step's gradient is that of one process."""
    recipe = write_recipe(tmp_path, pretrain_data(steps=4, micro_batch_size=2, lr=1e-3))
    for name, launcher in (("one", ["-m"]), ("two", TORCHRUN)):
        # Behind the two dashes: torchrun takes every --run it sees for a short form of its own options.
        done = in_a_new_process(*launcher, "m2rag_train", recipe, "--run", tmp_path / name, "--data", data, *CPU)
        assert done.returncode == 0, done.stderr
    one, two = (load_checkpoint(tmp_path / name / "model", head="mlm").state_dict() for name in ("one", "two"))
    for name, tensor in one.items():
        assert (tensor - two[name]).abs().mean() < 2e-5, name
    losses = [evaluation(tmp_path / name)["eval_loss"] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
