"""The loop: losses against plain loops, the student's beginning, resuming, interruption, numbers that run away."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tiny_training import SPAN, WIDTH, MakeRecipe, recipe_data
from torch import nn

from m2rag_train.distillation import loop
from m2rag_train.distillation.batches import BatchSampler
from m2rag_train.distillation.loop import (
    DocumentBank,
    build_student,
    lr_factor,
    parameter_groups,
    step_losses,
    total_loss,
    train,
)
from m2rag_train.distillation.losses import classification_loss, contrastive_loss, cosine_loss
from m2rag_train.distillation.recipe import DistillRecipe
from m2rag_train.distillation.teacher import Teacher, load_shards


@pytest.fixture
def recipe(make_recipe: MakeRecipe) -> DistillRecipe:
    return make_recipe()


@pytest.fixture
def sampler(cache_folder: Path) -> BatchSampler:
    return BatchSampler(load_shards(cache_folder), span_tokens=SPAN, cls_id=2, sep_id=3, seed=0)


def run_train(recipe: DistillRecipe, run: Path, teacher: Teacher, **options: Any) -> dict[str, Any]:
    """Train and return the saved state."""
    path = train(recipe, run, teacher.word_embeddings, cls_id=teacher.cls_id, sep_id=teacher.sep_id, **options)
    return load_state(path)


def load_state(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def assert_same_state(one: Any, other: Any, where: str = "state") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=lambda m: f"{where}: {m}")
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_state(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same_state(*pair, f"{where}/{number}")
    else:
        assert one == other, where


class LossLog:
    """Every loss of every step, taken from the meter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[int] = []
        self.losses: list[dict[str, float]] = []
        add = loop.Meter.add

        def spy(meter: Any, step: int, n_tokens: int, losses: dict[str, torch.Tensor]) -> None:
            self.steps.append(step)
            self.losses.append({name: float(value.detach()) for name, value in losses.items()})
            add(meter, step, n_tokens, losses)

        monkeypatch.setattr(loop.Meter, "add", spy)


@pytest.fixture
def loss_log(monkeypatch: pytest.MonkeyPatch) -> LossLog:
    return LossLog(monkeypatch)


# Losses of a step


def test_step_losses_are_those_of_a_loop(recipe: DistillRecipe, sampler: BatchSampler, teacher: Teacher) -> None:
    model = build_student(recipe, teacher.word_embeddings).train()
    stage, bank = recipe.stages[1], DocumentBank(5, WIDTH)
    bank.push(torch.randn(4, WIDTH), torch.tensor([0, 1, 2, 3]))
    batch = sampler.batch(3, stage)
    before, numbers = bank.vectors, bank.documents
    with torch.no_grad():
        losses = step_losses(model, batch, stage, recipe, bank)

        students, teachers, documents, means = [], [], [], []
        for window in batch.windows:
            hidden = model(window.input_ids).last_hidden_state[0]
            bounds = window.span_starts.tolist()
            for span, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
                students.append(torch.stack([hidden[i] for i in range(start, end)]).mean(0))
                teachers.append(window.targets[span])
            documents.append(hidden.mean(0))
            means.append(window.targets.mean(0))
        queries, positives = [], []
        for row, owner in enumerate(batch.short_texts.windows.tolist()):
            n = int(batch.short_texts.attention_mask[row].sum())
            vector = model(batch.short_texts.input_ids[row : row + 1, :n]).last_hidden_state[0].mean(0)
            students.append(vector)
            teachers.append(batch.short_texts.targets[row])
            if owner >= 0:
                queries.append(vector)
                positives.append(owner)

    assert len(positives) >= 2, "the step should hold queries"
    s, t, d = torch.stack(students), torch.stack(teachers), torch.stack(documents)
    excluded = torch.tensor([[window.document == int(n) for n in numbers] for window in batch.windows])
    expected = {
        "cosine": cosine_loss(s, t),
        "classification": classification_loss(s, t, recipe.classification_temperature),
        "document": cosine_loss(d, torch.stack(means)),
        "contrastive": contrastive_loss(
            torch.stack(queries), d, torch.tensor(positives), before, excluded, recipe.contrastive_temperature
        ),
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(float(value), rel=1e-4), name
    total = losses["cosine"] + 0.3 * losses["classification"] + 0.5 * losses["document"] + 0.2 * losses["contrastive"]
    assert float(total_loss(losses, stage, recipe)) == pytest.approx(float(total), rel=1e-6)

    torch.testing.assert_close(bank.vectors, torch.cat([d, before])[:5])
    assert bank.documents.tolist() == [*(w.document for w in batch.windows), *numbers.tolist()][:5]


def test_a_stage_has_only_the_losses_it_asks_for(
    recipe: DistillRecipe, sampler: BatchSampler, teacher: Teacher
) -> None:
    model, bank = build_student(recipe, teacher.word_embeddings), DocumentBank(5, WIDTH)
    losses = step_losses(model, sampler.batch(0, recipe.stages[0]), recipe.stages[0], recipe, bank)
    assert set(losses) == {"cosine", "classification"}
    assert len(bank.vectors) == 0


def test_bank_forgets_the_oldest() -> None:
    bank = DocumentBank(3, 2)
    for number in range(4):
        bank.push(torch.full((1, 2), float(number), requires_grad=True), torch.tensor([number]))
    assert bank.documents.tolist() == [3, 2, 1]
    assert bank.vectors[:, 0].tolist() == [3, 2, 1]
    assert not bank.vectors.requires_grad


# The student and the optimizer


@pytest.mark.parametrize("shape", [(24, WIDTH), (25, WIDTH + 1)])
def test_student_refuses_other_embeddings(recipe: DistillRecipe, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"\({shape[0]}, {shape[1]}\), the student's \(25, {WIDTH}\)"):
        build_student(recipe, torch.zeros(shape))


def test_student_begins_near_the_identity(make_recipe: MakeRecipe, teacher: Teacher) -> None:
    model_section = {**recipe_data()["model"], "num_hidden_layers": 3}
    recipe = make_recipe(model=model_section)
    model = build_student(recipe, teacher.word_embeddings).eval()
    ids = torch.randint(5, 25, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(ids).last_hidden_state[0]
    expected = nn.functional.layer_norm(teacher.word_embeddings[ids[0]], (WIDTH,))
    cosines = nn.functional.cosine_similarity(output, expected)
    assert cosines.min() > 0.95
    # Without the identity, layers of random weights leave nothing of the input.
    torch.manual_seed(0)
    random_model = type(model)(recipe.model_config()).eval()
    random_model.embeddings.load_state_dict(model.embeddings.state_dict())
    with torch.no_grad():
        random_output = random_model(ids).last_hidden_state[0]
    assert nn.functional.cosine_similarity(random_output, expected).mean() < 0.3


def test_student_is_the_same_for_the_same_seed(recipe: DistillRecipe, teacher: Teacher) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        return build_student(dataclasses.replace(recipe, seed=seed), teacher.word_embeddings).state_dict()

    assert_same_state(dict(weights(0)), dict(weights(0)))
    assert not torch.equal(weights(0)["layers.0.mixer.out_proj.weight"], weights(1)["layers.0.mixer.out_proj.weight"])


def test_every_parameter_is_in_one_group(recipe: DistillRecipe, teacher: Teacher) -> None:
    recipe = dataclasses.replace(recipe, lr=1.0, embedding_lr=2.0, filter_lr=3.0, weight_decay=0.1)
    model = build_student(recipe, teacher.word_embeddings)
    groups = parameter_groups(model, recipe)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())

    settings = {id(p): (group["peak_lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    of = {name: settings[id(parameter)] for name, parameter in model.named_parameters()}
    assert of["embeddings.word_embeddings.weight"] == (2.0, 0.0)
    assert of["layers.0.mixer.filter.mlp.input.weight"] == (3.0, 0.0)
    assert of["layers.0.mixer.residual_filter.skip"] == (3.0, 0.0)
    assert of["layers.0.mixer.in_proj.weight"] == (1.0, 0.1)
    assert of["layers.0.mlp.gate_proj.weight"] == (1.0, 0.1)
    assert of["layers.0.mixer.in_proj.bias"] == (1.0, 0.0)
    assert of["layers.0.mlp.norm.weight"] == (1.0, 0.0)


def test_learning_rate_rises_and_falls(recipe: DistillRecipe) -> None:
    recipe = dataclasses.replace(recipe, warmup_steps=4, final_lr=0.1)
    factors = [lr_factor(step, recipe) for step in range(recipe.total_steps + 5)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert factors[4 + 13] == pytest.approx((1 + 0.1) / 2), "half way between peak and end, half way down"
    assert all(a >= b for a, b in zip(factors[4:], factors[5:], strict=False))
    assert factors[30:] == pytest.approx([0.1] * 5)
    assert lr_factor(0, dataclasses.replace(recipe, warmup_steps=0)) == 1.0


# The run


def test_training_lowers_the_loss(
    recipe: DistillRecipe, run_folder: Path, teacher: Teacher, loss_log: LossLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "m2rag_train")
    state = run_train(recipe, run_folder, teacher)
    assert loss_log.steps == list(range(30))
    assert state["step"] == 30
    for name in ("cosine", "classification"):
        values = [losses[name] for losses in loss_log.losses]
        assert np.mean(values[15:20]) < 0.7 * np.mean(values[:5]), name
    assert {"document", "contrastive"} <= set(loss_log.losses[-1])
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("tiny: steps 0 to 30, ") for line in lines)
    (line,) = (line for line in lines if line.startswith("step 20 of 30: cosine 0."))
    assert "steps/s" in line and "tokens/s" in line and line.endswith("left")


def test_a_run_in_pieces_is_the_same_run(
    recipe: DistillRecipe, run_folder: Path, teacher: Teacher, tmp_path: Path, loss_log: LossLog
) -> None:
    whole = run_train(recipe, run_folder, teacher)
    losses, loss_log.losses, loss_log.steps = loss_log.losses, [], []
    pieces = tmp_path / "pieces"
    pieces.mkdir()
    (pieces / "teacher").symlink_to((run_folder / "teacher").resolve(), target_is_directory=True)
    # Stopped inside the first stage, inside the second (the bank is full by then), and run to the end.
    for steps, saved in ((11, 11), (14, 25), (None, 30)):
        torch.manual_seed(int(time.time()))
        state = run_train(recipe, pieces, teacher, stop_after=steps)
        assert state["step"] == saved
    assert loss_log.steps == list(range(30))
    for one, other in zip(losses, loss_log.losses, strict=True):
        assert other == pytest.approx(one, abs=1e-6)
    assert_same_state(state, whole)


def test_dropout_resumes_exactly(
    make_recipe: MakeRecipe, run_folder: Path, teacher: Teacher, loss_log: LossLog
) -> None:
    recipe = make_recipe(
        model={**recipe_data()["model"], "hidden_dropout_prob": 0.2},
        stages=[{"steps": 6, "window_tokens": 32, "short_texts": 4}],
    )
    whole = run_train(recipe, run_folder, teacher)
    losses = list(loss_log.losses)
    (run_folder / "state.pt").unlink()
    run_train(recipe, run_folder, teacher, stop_after=4)
    torch.randn(5)  # something else draws in between
    assert_same_state(run_train(recipe, run_folder, teacher), whole)
    assert loss_log.losses[6:] == losses
    without = dataclasses.replace(recipe, model={**recipe.model, "hidden_dropout_prob": 0.0})
    (run_folder / "state.pt").unlink()
    run_train(without, run_folder, teacher, stop_after=1)
    assert loss_log.losses[-1] != losses[0], "there should be dropout to resume"


def test_a_finished_run_does_nothing(
    make_recipe: MakeRecipe, run_folder: Path, teacher: Teacher, loss_log: LossLog
) -> None:
    recipe = make_recipe(stages=[{"steps": 2, "window_tokens": 16, "short_texts": 2}])
    run_train(recipe, run_folder, teacher)
    before = (run_folder / "state.pt").stat().st_mtime_ns
    run_train(recipe, run_folder, teacher)
    assert (run_folder / "state.pt").stat().st_mtime_ns == before
    assert loss_log.steps == [0, 1]


def test_state_is_saved_in_between(
    make_recipe: MakeRecipe, run_folder: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []
    save = loop._save
    monkeypatch.setattr(loop, "_save", lambda path, step, *rest: (saved.append(step), save(path, step, *rest)))
    recipe = make_recipe(save_every=3, stages=[{"steps": 8, "window_tokens": 16, "short_texts": 2}])
    run_train(recipe, run_folder, teacher)
    assert saved == [3, 6, 8]
    assert sorted(path.name for path in run_folder.iterdir()) == ["state.pt", "teacher"], "nothing half-written is left"


def test_ctrl_c_saves_and_says_how_to_go_on(
    recipe: DistillRecipe,
    run_folder: Path,
    teacher: Teacher,
    tmp_path: Path,
    loss_log: LossLog,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "m2rag_train")
    recipe = dataclasses.replace(recipe, save_every=1000)
    handler = signal.getsignal(signal.SIGINT)
    losses = loop.step_losses

    def interrupted_in_step_4(*args: Any) -> dict[str, torch.Tensor]:
        if len(loss_log.steps) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return losses(*args)

    monkeypatch.setattr(loop, "step_losses", interrupted_in_step_4)
    with pytest.raises(KeyboardInterrupt):
        run_train(recipe, run_folder, teacher)
    assert signal.getsignal(signal.SIGINT) is handler
    assert load_state(run_folder / "state.pt")["step"] == 5, "the step that ran was finished"
    assert f"stopped after step 5; saved to {run_folder / 'state.pt'}: run again to resume" in caplog.text

    monkeypatch.setattr(loop, "step_losses", losses)
    resumed = run_train(recipe, run_folder, teacher, stop_after=3)
    (run_folder / "state.pt").unlink()
    assert_same_state(resumed, run_train(recipe, run_folder, teacher, stop_after=8))


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_numbers_that_run_away_never_reach_the_saved_state(
    recipe: DistillRecipe, run_folder: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    # Step 6 would be followed by a save.
    run_train(recipe, run_folder, teacher, stop_after=6)
    before = (run_folder / "state.pt").read_bytes()

    class Poison(torch.autograd.Function):
        """The value itself, and no number as its gradient."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * float("nan")

    def poisoned(losses: dict[str, torch.Tensor], *rest: Any) -> torch.Tensor:
        total = total_loss(losses, *rest)
        return total * float("nan") if what == "loss" else Poison.apply(total)

    monkeypatch.setattr(loop, "total_loss", poisoned)
    with pytest.raises(FloatingPointError, match=f"tiny: {what} is nan at step 6"):
        run_train(recipe, run_folder, teacher)
    assert (run_folder / "state.pt").read_bytes() == before


def test_state_holds_no_code(make_recipe: MakeRecipe, run_folder: Path, teacher: Teacher) -> None:
    recipe = make_recipe(stages=[{"steps": 1, "window_tokens": 16, "short_texts": 2}])
    state = run_train(recipe, run_folder, teacher)  # loads with weights_only=True
    assert set(state) == {"step", "model", "optimizer", "bank"}


def test_without_teacher_vectors(recipe: DistillRecipe, tmp_path: Path, teacher: Teacher) -> None:
    with pytest.raises(FileNotFoundError, match="no teacher vectors"):
        run_train(recipe, tmp_path, teacher)


KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from m2rag_train.distillation import loop
from m2rag_train.recipe import load_recipe

losses = loop.step_losses
calls = 0
def slow(*args):
    global calls
    calls += 1
    if calls == 10:
        Path(sys.argv[3]).touch()
        time.sleep(600)
    return losses(*args)
loop.step_losses = slow
vectors = torch.load(sys.argv[4])
loop.train(load_recipe(sys.argv[1]), Path(sys.argv[2]), vectors, cls_id=2, sep_id=3)
"""


def test_killed_run_resumes_from_its_last_save(
    recipe: DistillRecipe, run_folder: Path, teacher: Teacher, tmp_path: Path
) -> None:
    path, reached, vectors = tmp_path / "killed.yaml", tmp_path / "reached", tmp_path / "vectors.pt"
    path.write_text(yaml.safe_dump(recipe_data()), encoding="utf-8")
    torch.save(teacher.word_embeddings, vectors)
    process = subprocess.Popen([sys.executable, "-c", KILLED, *map(str, (path, run_folder, reached, vectors))])
    try:
        deadline = time.monotonic() + 300
        while not reached.exists():
            assert process.poll() is None, "the run ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert load_state(run_folder / "state.pt")["step"] == 7, "saved every 7 steps, killed in step 9"
    resumed = run_train(recipe, run_folder, teacher)
    (run_folder / "state.pt").unlink()
    assert_same_state(resumed, run_train(recipe, run_folder, teacher))


def test_a_write_cut_short_leaves_the_old_state(
    recipe: DistillRecipe, run_folder: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_train(recipe, run_folder, teacher, stop_after=2)
    before = (run_folder / "state.pt").read_bytes()

    def half(state: Any, path: Path) -> None:
        path.write_bytes(before[: len(before) // 2])
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space"):
        run_train(recipe, run_folder, teacher, stop_after=2)
    monkeypatch.undo()
    assert (run_folder / "state.pt").read_bytes() == before
    assert run_train(recipe, run_folder, teacher, stop_after=1)["step"] == 3
