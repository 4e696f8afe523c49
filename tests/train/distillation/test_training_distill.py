"""The loop: losses against plain loops, the student's beginning, resuming, interruption, numbers that run away."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.forked import end_of_a_child
from support.full_disk import writes_end_after
from teachers import character_teacher
from tiny_training import SPAN, WIDTH, MakeRecipe, recipe_data
from torch import nn

from m2rag.tokenizer import TextTokenizer
from m2rag_train.distillation import loop
from m2rag_train.distillation.batches import BatchSampler
from m2rag_train.distillation.cache import build_cache, load_cache, load_shards
from m2rag_train.distillation.loop import (
    DocumentBank,
    build_student,
    step_losses,
    total_loss,
    train,
)
from m2rag_train.distillation.losses import classification_loss, contrastive_loss, cosine_loss
from m2rag_train.distillation.recipe import DistillRecipe
from m2rag_train.distillation.teacher import load_teacher
from m2rag_train.errors import CheckpointWriteError, DivergedError


@pytest.fixture
def recipe(make_recipe: MakeRecipe) -> DistillRecipe:
    return make_recipe()


@pytest.fixture
def words(cache_folder: Path) -> torch.Tensor:
    """(25, WIDTH), the teacher's word embeddings."""
    return torch.from_numpy(load_cache(cache_folder).words)


@pytest.fixture
def sampler(cache_folder: Path) -> BatchSampler:
    return BatchSampler(load_shards(cache_folder), span_tokens=SPAN, cls_id=2, sep_id=3, seed=0)


def run_train(recipe: DistillRecipe, run: Path, **options: Any) -> dict[str, Any]:
    """Train and return the saved state."""
    path = train(recipe, run, cls_id=2, sep_id=3, **options)
    return load_state(path)


def load_state(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def assert_same_state(one: Any, other: Any, where: str = "state") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
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


def test_step_losses_are_those_of_a_loop(recipe: DistillRecipe, sampler: BatchSampler, words: torch.Tensor) -> None:
    model = build_student(recipe, words).train()
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
    recipe: DistillRecipe, sampler: BatchSampler, words: torch.Tensor
) -> None:
    model, bank = build_student(recipe, words), DocumentBank(5, WIDTH)
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


@pytest.mark.parametrize("shape", [(26, WIDTH), (25, WIDTH + 1)])
def test_student_refuses_other_embeddings(recipe: DistillRecipe, shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"\({shape[0]}, {shape[1]}\), the student's are \(25, {WIDTH}\)"):
        build_student(recipe, torch.zeros(shape))


def test_a_vocabulary_may_be_padded(recipe: DistillRecipe, words: torch.Tensor) -> None:
    model = build_student(recipe, words[:24])
    own = model.embeddings.word_embeddings.weight
    torch.testing.assert_close(own[:24], words[:24] * recipe.embedding_scale)
    assert 0 < own[24].norm() < words[24].norm(), "the rest begins small, as the model initialises it"


def test_student_begins_near_the_identity(make_recipe: MakeRecipe, words: torch.Tensor) -> None:
    model_section = {**recipe_data()["model"], "num_hidden_layers": 3}
    recipe = make_recipe(model=model_section)
    model = build_student(recipe, words).eval()
    ids = torch.randint(5, 25, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(ids).last_hidden_state[0]
    expected = nn.functional.layer_norm(words[ids[0]], (WIDTH,))
    cosines = nn.functional.cosine_similarity(output, expected)
    assert cosines.min() > 0.95
    # Without the identity, layers of random weights leave nothing of the input.
    torch.manual_seed(0)
    random_model = type(model)(recipe.model_config()).eval()
    random_model.embeddings.load_state_dict(model.embeddings.state_dict())
    with torch.no_grad():
        random_output = random_model(ids).last_hidden_state[0]
    assert nn.functional.cosine_similarity(random_output, expected).mean() < 0.3


def test_student_is_the_same_for_the_same_seed(recipe: DistillRecipe, words: torch.Tensor) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        return build_student(dataclasses.replace(recipe, seed=seed), words).state_dict()

    assert_same_state(dict(weights(0)), dict(weights(0)))
    assert not torch.equal(weights(0)["layers.0.mixer.out_proj.weight"], weights(1)["layers.0.mixer.out_proj.weight"])


# The run


def test_training_lowers_the_loss(
    recipe: DistillRecipe, run_folder: Path, loss_log: LossLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "m2rag_train")
    state = run_train(recipe, run_folder)
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


@pytest.mark.parametrize("dimension", [8, 24], ids=["narrower than the student", "wider"])
def test_a_teacher_of_another_kind_lowers_the_loss_and_resumes(
    recipe: DistillRecipe,
    data: Path,
    tokenizer: TextTokenizer,
    tmp_path: Path,
    loss_log: LossLog,
    dimension: int,
) -> None:
    recipe = dataclasses.replace(recipe, stages=[dataclasses.replace(recipe.stages[0], steps=40)])
    other = load_teacher(str(character_teacher(tmp_path / "other", dimension)), tokenizer)
    for run in ("whole", "pieces"):
        build_cache(recipe, data, other, tmp_path / run / "teacher")
    whole = run_train(recipe, tmp_path / "whole")
    losses = [losses["cosine"] for losses in loss_log.losses]
    # Measured: 0.46 and 0.54 of the first.
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    run_train(recipe, tmp_path / "pieces", stop_after=9)
    assert_same_state(run_train(recipe, tmp_path / "pieces"), whole)


def test_a_run_in_pieces_is_the_same_run(
    recipe: DistillRecipe, run_folder: Path, tmp_path: Path, loss_log: LossLog
) -> None:
    whole = run_train(recipe, run_folder)
    losses, loss_log.losses, loss_log.steps = loss_log.losses, [], []
    pieces = tmp_path / "pieces"
    pieces.mkdir()
    (pieces / "teacher").symlink_to((run_folder / "teacher").resolve(), target_is_directory=True)
    # Stopped inside the first stage, inside the second (the bank is full by then), and run to the end.
    for steps, saved in ((11, 11), (14, 25), (None, 30)):
        torch.manual_seed(int(time.time()))
        state = run_train(recipe, pieces, stop_after=steps)
        assert state["step"] == saved
    assert loss_log.steps == list(range(30))
    for one, other in zip(losses, loss_log.losses, strict=True):
        assert other == one
    assert_same_state(state, whole)


def test_dropout_resumes_exactly(make_recipe: MakeRecipe, run_folder: Path, loss_log: LossLog) -> None:
    recipe = make_recipe(
        model={**recipe_data()["model"], "hidden_dropout_prob": 0.2},
        stages=[{"steps": 6, "window_tokens": 32, "short_texts": 4}],
    )
    whole = run_train(recipe, run_folder)
    losses = list(loss_log.losses)
    (run_folder / "state.pt").unlink()
    run_train(recipe, run_folder, stop_after=4)
    torch.randn(5)  # something else draws in between
    assert_same_state(run_train(recipe, run_folder), whole)
    assert loss_log.losses[6:] == losses
    without = dataclasses.replace(recipe, model={**recipe.model, "hidden_dropout_prob": 0.0})
    (run_folder / "state.pt").unlink()
    run_train(without, run_folder, stop_after=1)
    assert loss_log.losses[-1] != losses[0], "there should be dropout to resume"


def test_a_finished_run_does_nothing(make_recipe: MakeRecipe, run_folder: Path, loss_log: LossLog) -> None:
    recipe = make_recipe(stages=[{"steps": 2, "window_tokens": 16, "short_texts": 2}])
    run_train(recipe, run_folder)
    before = (run_folder / "state.pt").stat().st_mtime_ns
    run_train(recipe, run_folder)
    assert (run_folder / "state.pt").stat().st_mtime_ns == before
    assert loss_log.steps == [0, 1]


def test_state_is_saved_in_between(make_recipe: MakeRecipe, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    save = loop._save
    monkeypatch.setattr(loop, "_save", lambda path, step, *rest: (saved.append(step), save(path, step, *rest)))
    recipe = make_recipe(save_every=3, stages=[{"steps": 8, "window_tokens": 16, "short_texts": 2}])
    run_train(recipe, run_folder)
    assert saved == [3, 6, 8]
    assert sorted(path.name for path in run_folder.iterdir()) == ["state.pt", "teacher"], "nothing half-written is left"


def test_ctrl_c_saves_and_says_how_to_go_on(
    recipe: DistillRecipe,
    run_folder: Path,
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
        run_train(recipe, run_folder)
    assert signal.getsignal(signal.SIGINT) is handler
    assert load_state(run_folder / "state.pt")["step"] == 5, "the step that ran was finished"
    assert f"stopped after step 5; saved to {run_folder / 'state.pt'}: run again to resume" in caplog.text

    monkeypatch.setattr(loop, "step_losses", losses)
    resumed = run_train(recipe, run_folder, stop_after=3)
    (run_folder / "state.pt").unlink()
    assert_same_state(resumed, run_train(recipe, run_folder, stop_after=8))


@pytest.mark.parametrize("what", ["loss", "gradient norm"])
def test_numbers_that_run_away_never_reach_the_saved_state(
    recipe: DistillRecipe, run_folder: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    # Step 6 would be followed by a save.
    run_train(recipe, run_folder, stop_after=6)
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
    with pytest.raises(DivergedError, match=f"tiny: {what} is nan at step 6"):
        run_train(recipe, run_folder)
    assert (run_folder / "state.pt").read_bytes() == before


def test_state_holds_no_code(make_recipe: MakeRecipe, run_folder: Path) -> None:
    recipe = make_recipe(stages=[{"steps": 1, "window_tokens": 16, "short_texts": 2}])
    state = run_train(recipe, run_folder)  # loads with weights_only=True
    assert set(state) == {"step", "model", "optimizer", "bank"}


def test_without_teacher_vectors(recipe: DistillRecipe, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no teacher vectors"):
        run_train(recipe, tmp_path)


def test_killed_run_resumes_from_its_last_save(
    recipe: DistillRecipe, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = loop.step_losses
    calls = 0

    def dying(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 10:
            os.kill(os.getpid(), signal.SIGKILL)
        return losses(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step_losses", dying)
        assert end_of_a_child(lambda: run_train(recipe, run_folder)) == -signal.SIGKILL
    assert load_state(run_folder / "state.pt")["step"] == 7, "saved every 7 steps, killed in step 9"
    resumed = run_train(recipe, run_folder)
    (run_folder / "state.pt").unlink()
    assert_same_state(resumed, run_train(recipe, run_folder))


def test_a_write_cut_short_leaves_the_old_state(recipe: DistillRecipe, run_folder: Path) -> None:
    run_train(recipe, run_folder, stop_after=2)
    before = (run_folder / "state.pt").read_bytes()

    # A disk that is full after half of the file, for real: the system refuses the write.
    with writes_end_after(len(before) // 2), pytest.raises(CheckpointWriteError, match="state.pt could not be written"):
        run_train(recipe, run_folder, stop_after=2)
    assert (run_folder / "state.pt").read_bytes() == before
    assert sorted(path.name for path in run_folder.iterdir()) == ["state.pt", "teacher"], "room is given back"
    assert run_train(recipe, run_folder, stop_after=1)["step"] == 3
