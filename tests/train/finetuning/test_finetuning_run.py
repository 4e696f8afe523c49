"""Whole runs on a made-up world: they learn, they resume, they survive, and what they write loads everywhere."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.forked import end_of_a_child
from tiny_finetuning import base_model, make_recipe, options, text, write_base, write_world

from m2rag import M2Embedder
from m2rag_train.errors import CheckpointWriteError, DivergedError, RecipeError, TrainingDataError
from m2rag_train.export import save_embedder
from m2rag_train.finetuning import loop
from m2rag_train.finetuning.loop import FinetuneTrainer, mix_weights
from m2rag_train.trainer import last_checkpoint

TASK = {"tasks": ["task"], "every": 20}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("world"))
    write_base(folder / "base")
    return folder


@pytest.fixture(scope="module")
def learned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learns its world: 40 steps."""
    run = tmp_path_factory.mktemp("learned")
    loss = {"bank": 24, "dimensions": [16], "temperature": 0.1}
    recipe = make_recipe(run, evaluation=TASK, epochs=5, queries_per_document=3, lr=2e-3, embedding_lr=0.03, loss=loss)
    recipe.run(options(run, data))
    return run


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def steps_of(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").glob("*-*"))


def test_ndcg_rises_on_queries_it_has_not_seen(learned: Path) -> None:
    result = json.loads((learned / "result.json").read_text(encoding="utf-8"))
    before, after = result["base"]["ndcg@10"], result["released"]["ndcg@10"]
    assert before < 0.4, "the words of queries and documents have nothing in common at first"
    assert after > before + 0.3
    assert result["best_step"] in (20, 40) and after == pytest.approx(result["best"], abs=0.02)


def test_three_loaders_one_vector(learned: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    texts = [text("river", 20, np.random.default_rng(1)), text("apple", 5, np.random.default_rng(2)), "a"]
    expected = M2Embedder(learned / "model").embed_documents(texts).vectors
    stack = SentenceTransformer(str(learned / "model"), device="cpu")
    np.testing.assert_allclose(stack.encode(texts), expected, atol=1e-5)
    model, tokenizer = (loader.from_pretrained(learned / "model") for loader in (AutoModel, AutoTokenizer))
    with torch.no_grad():
        output = model.eval()(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
    np.testing.assert_allclose(torch.nn.functional.normalize(output, dim=-1).numpy(), expected, atol=1e-5)


def test_trained_dimensions_are_known(learned: Path) -> None:
    short = M2Embedder(learned / "model", dimensions=16)
    assert short.dimension == 16
    with pytest.raises(ValueError, match="was trained for 16, 32"):
        M2Embedder(learned / "model", dimensions=8)


def test_only_the_last_and_the_best_state_stay(learned: Path) -> None:
    best = json.loads((learned / "result.json").read_text(encoding="utf-8"))["best_step"]
    assert steps_of(learned) == sorted({"checkpoint-40", f"checkpoint-{best}"})


def test_a_finished_run_is_not_repeated(learned: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "load_pairs", lambda *_: pytest.fail("nothing is to be read"))
    recipe = make_recipe(learned, evaluation=TASK)
    assert recipe.run(options(learned, data)) == learned / "model"


# Everything that has a state of its own: dropout, bank, accumulated gradients, anchors, the best so far.
FULL: dict[str, Any] = {
    "loss": {"bank": 10, "bank_queries": 2, "anchor_weight": 0.1},
    "negatives": {"per_document": 1},
    "accumulation": 2,
    "evaluation": {"tasks": ["task"], "every": 4},
    "keep": 0.2,
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = tmp_path_factory.mktemp("unbroken")
    make_recipe(run, **FULL).run(options(run, data))
    return weights(run)


def test_pieces_give_the_same_bits(data: Path, unbroken: bytes, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, **FULL)
    assert recipe.run(options(tmp_path, data, stop_after=1)) is None
    assert recipe.run(options(tmp_path, data, stop_after=4)) is None
    assert steps_of(tmp_path) == ["checkpoint-4", "checkpoint-5"], "the best so far and the last"
    assert recipe.run(options(tmp_path, data)) == tmp_path / "model"
    assert weights(tmp_path) == unbroken


def test_a_bank_that_starts_empty_goes_on_where_it_was(data: Path, tmp_path: Path) -> None:
    settings = {"loss": {"bank": 10, "bank_start": "empty", "bank_queries": 2}, "one_source": True, "dtype": "float32"}
    whole, parts = (make_recipe(tmp_path / name, **settings) for name in ("whole", "parts"))
    whole.run(options(tmp_path / "whole", data))
    assert not (tmp_path / "whole" / "base_vectors.pt").exists(), "no document is embedded beforehand"
    assert parts.run(options(tmp_path / "parts", data, stop_after=3)) is None
    parts.run(options(tmp_path / "parts", data))
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


def at_step(step: int, act: Callable[[], None]) -> Callable[..., torch.Tensor]:
    """`training_step` that acts once, when the optimizer has taken `step` steps."""
    original = FinetuneTrainer.training_step
    acted = []

    def training_step(self: FinetuneTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == step and not acted:
            acted.append(True)
            act()
        return original(self, *args, **kwargs)

    return training_step


def test_ctrl_c_saves_and_goes_on(data: Path, unbroken: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path, **FULL)
    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTrainer, "training_step", at_step(5, lambda: os.kill(os.getpid(), signal.SIGINT)))
        with pytest.raises(KeyboardInterrupt):
            recipe.run(options(tmp_path, data))
    assert "checkpoint-6" in steps_of(tmp_path) and not (tmp_path / "model").exists()
    recipe.run(options(tmp_path, data))
    assert weights(tmp_path) == unbroken


def test_a_kill_in_the_middle_of_a_save_leaves_the_last_state(
    data: Path, unbroken: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path, **FULL)
    save = FinetuneTrainer.save_extra

    def killed(self: FinetuneTrainer, folder: Path) -> None:
        if self.state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTrainer, "save_extra", killed)
        assert end_of_a_child(lambda: recipe.run(options(tmp_path, data))) == -signal.SIGKILL
    last = last_checkpoint(tmp_path / "checkpoints")
    assert last is not None and last.name == "checkpoint-4"
    make_recipe(tmp_path, **FULL).run(options(tmp_path, data))
    assert weights(tmp_path) == unbroken
    assert not (tmp_path / "checkpoints" / "being-written").exists()


def test_a_full_disk_leaves_the_last_state(
    data: Path, unbroken: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(tmp_path, **FULL)
    original = FinetuneTrainer.save_extra

    def full(self: FinetuneTrainer, folder: Path) -> None:
        if self.state.global_step == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTrainer, "save_extra", full)
        with pytest.raises(CheckpointWriteError, match="checkpoint-5 could not be written: No space left on device"):
            recipe.run(options(tmp_path, data))
    assert steps_of(tmp_path) == ["checkpoint-4"]
    recipe.run(options(tmp_path, data))
    assert weights(tmp_path) == unbroken


@pytest.mark.parametrize(
    ("place", "message"),
    [
        pytest.param("loss", "tiny: the loss is nan at step 6", id="loss"),
        pytest.param("gradient", "tiny: the gradient norm is nan at step 6", id="gradient"),
    ],
)
def test_nan_ends_the_run(
    place: str, message: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = FinetuneTrainer.compute_loss

    def poisoned(self: FinetuneTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = compute(self, *args, **kwargs)
        if self.state.global_step == 6:
            if place == "loss":
                return loss * float("nan")
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss

    monkeypatch.setattr(FinetuneTrainer, "compute_loss", poisoned)
    with pytest.raises(DivergedError, match=message):
        make_recipe(tmp_path).run(options(tmp_path, data))
    assert steps_of(tmp_path) == ["checkpoint-5"] and not (tmp_path / "model").exists()
    state = load_file(tmp_path / "checkpoints" / "checkpoint-5" / "model.safetensors")
    assert all(bool(value.isfinite().all()) for value in state.values())


@pytest.mark.parametrize("pooling", ["cls_tanh", "mean_tanh"])
def test_published_shape(pooling: str, data: Path, tmp_path: Path) -> None:
    """Padded to full length inside, with a pooler: stock modules around it share its weights while training."""
    from sentence_transformers import SentenceTransformer

    changes: dict[str, Any] = {"pooling": pooling, "padding": "max_length", "filter": "hyena", "hyena_emb_dim": 5}
    write_base(tmp_path / "base", use_positional_encodings=True, **changes)
    recipe = make_recipe(
        tmp_path,
        base=str(tmp_path / "base"),
        loss={"name": "orthogonal"},
        negatives={"per_document": 2},
        documents=1,
        epochs=1,
        gradient_checkpointing=True,
        autocast=True,
    )
    recipe.run(options(tmp_path, data, stop_after=4))
    state = load_file(tmp_path / "checkpoints" / "checkpoint-4" / "model.safetensors")
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert not torch.equal(state["pooler.weight"], base["pooler.weight"])
    stack = loop.stack_of(tmp_path / "base", torch.device("cpu"))
    loop.encoder_of(stack).load_state_dict(state)
    out = save_embedder(loop.encoder_of(stack), tmp_path / "out", dtype=torch.float32)
    texts = ["the cat sat", text("river", 20, np.random.default_rng(1))]
    expected = M2Embedder(out).embed_documents(texts).vectors
    np.testing.assert_allclose(stack.encode(texts), expected, atol=1e-5)
    np.testing.assert_allclose(SentenceTransformer(str(out), device="cpu").encode(texts), expected, atol=1e-5)


@pytest.mark.parametrize("dimensions", [[], [16]], ids=["whole", "matryoshka"])
def test_stock_loss_for_comparison(dimensions: list[int], data: Path, tmp_path: Path) -> None:
    recipe = make_recipe(
        tmp_path,
        loss={"name": "cached_mnrl", "dimensions": dimensions},
        negatives={"by": "bm25", "per_document": 1},
        queries_per_document=1,
    )
    assert recipe.run(options(tmp_path, data, stop_after=1)) is None
    assert steps_of(tmp_path) == ["checkpoint-1"]


def test_mixing_is_the_line_between(data: Path) -> None:
    model, base = base_model(seed=1), base_model(seed=2)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    mix_weights(model, base.state_dict(), 0.25)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, 0.75 * trained[name] + 0.25 * base.state_dict()[name])


def test_patience_ends_the_run(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A learning rate of nearly nothing: no measurement after the first is better."""
    evaluation = {"tasks": ["task"], "every": 1, "patience": 2}
    recipe = make_recipe(tmp_path, evaluation=evaluation, lr=1e-12)
    recipe.run(options(tmp_path, data))
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert (result["best_step"], result["steps"]) == (1, 3)
    assert result["released"] == result["base"]


@pytest.mark.parametrize("patience", [2, None])
def test_a_full_disk_at_the_very_end(
    patience: int | None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last state is there: run again, nothing is trained, the model is written."""
    evaluation = {"tasks": ["task"], "every": 1, "patience": patience}
    recipe = make_recipe(tmp_path, evaluation=evaluation, lr=1e-12, epochs=1, documents=6)
    save = loop.save_embedder

    def full(model: Any, out: Path, **settings: Any) -> Path:
        if out.name.endswith("model"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(model, out, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_embedder", full)
        with pytest.raises(CheckpointWriteError, match="model could not be written: No space left on device"):
            recipe.run(options(tmp_path, data))
    assert not (tmp_path / "model").exists()
    monkeypatch.setattr(FinetuneTrainer, "training_step", lambda *_: pytest.fail("nothing is left to train"))
    assert recipe.run(options(tmp_path, data)) == tmp_path / "model"
    steps = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["steps"]
    assert steps == (3 if patience else 6)


def test_another_recipe_is_another_run(data: Path, tmp_path: Path) -> None:
    make_recipe(tmp_path).run(options(tmp_path, data, stop_after=1))
    with pytest.raises(RecipeError, match=r"holds a run with lr 0\.003, the recipe now says 0\.01: give another --run"):
        make_recipe(tmp_path, lr=0.01).run(options(tmp_path, data))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        pytest.param({"max_tokens": 65}, RecipeError, "max_tokens is 65, base takes at most 64", id="too long"),
        pytest.param({"loss": {"dimensions": [33]}}, RecipeError, "dimensions has 33, the model has 32", id="too wide"),
        pytest.param(
            {"documents": 100, "accumulation": 9}, TrainingDataError, "2 batches, a step takes 9", id="too few"
        ),
        pytest.param({"evaluation": {"tasks": ["nowhere"]}}, TrainingDataError, "nowhere: not a folder", id="no task"),
    ],
)
def test_what_cannot_be_is_told_before_training(
    changes: dict[str, Any], error: type[Exception], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        make_recipe(tmp_path, **changes).run(options(tmp_path, data))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["orthogonal", "mnrl"])
def test_two_processes_are_twice_the_batches(loss: str, data: Path, tmp_path: Path) -> None:
    """Each process takes every second batch; the sum of their gradients is that of one process that takes both."""
    write_base(tmp_path / "base", hidden_dropout_prob=0.0)  # processes draw different dropout
    settings: dict[str, Any] = {"base": str(tmp_path / "base"), "loss": {"name": loss}, "epochs": 1, "dtype": "float32"}
    make_recipe(tmp_path / "one", accumulation=2, **settings).run(options(tmp_path / "one", data))
    make_recipe(tmp_path / "two", **settings)
    command = ["torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "m2rag_train"]
    command += [str(tmp_path / "two" / "recipe.yaml"), "--run", str(tmp_path / "two"), "--data", str(data)]
    subprocess.run(
        [sys.executable, "-m", *command, "--device", "cpu"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert max(float((one[name] - base[name]).abs().max()) for name in base) > 1e-3
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5, msg=name)
