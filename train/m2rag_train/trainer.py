"""What every Trainer of ours does besides training: refuse NaN, save whole checkpoints or none, stop where asked.

`GuardedTrainer` is a `transformers.Trainer` and works as a mixin in front of trainers made from one:
`class Ours(GuardedTrainer, SentenceTransformerTrainer)`.
"""

from __future__ import annotations

import logging
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from m2rag_train.errors import DivergedError, RecipeError
from m2rag_train.files import replacing
from m2rag_train.progress import Meter

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
STAGING = "being-written"

_NAME = re.compile(r"checkpoint-(\d+)")


class GuardedTrainer(Trainer):
    """A Trainer whose checkpoints are whole, and which stops at the first loss or gradient that is not finite.

    A checkpoint is written under another name and renamed when all of it is there; only then older ones are removed.
    The last one and the best one stay. What a subclass must keep beside weights, optimizer and random states it writes
    in `save_extra`, and reads in its own `_load_from_checkpoint`.

    Attributes:
        run_name: what messages call the run.
        step_loss: () of the last batch, as the optimizer sees it: divided by the accumulation steps.
    """

    run_name: str = "training"
    step_loss: torch.Tensor | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Both write to the terminal on their own; `StepCallback` logs.
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(_GradientCheck(self))

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.step_loss = loss.detach()
        self.check_finite("loss", self.step_loss)
        return loss

    def check_finite(self, what: str, value: torch.Tensor) -> None:
        """Refuse a number that training cannot go on from.

        Raises:
            DivergedError: `value` () is NaN or infinite.
        """
        if not torch.isfinite(value):
            raise DivergedError(f"{self.run_name}: the {what} is {value.item()} at step {self.state.global_step}")

    def save_extra(self, folder: Path) -> None:
        """Write what else belongs to a checkpoint into its folder."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        runs, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        staging, writes = runs / STAGING, self.is_world_process_zero()
        with replacing(runs / name) if writes else nullcontext() as whole:
            try:
                self.args.output_dir = str(staging)
                super()._save_checkpoint(model, trial)
                self.args.output_dir = str(runs)
                self.accelerator.wait_for_everyone()
                if whole is not None:
                    self._finish(staging / name, runs)
                    (staging / name).rename(whole)
            finally:
                self.args.output_dir = str(runs)
                if writes:
                    shutil.rmtree(staging, ignore_errors=True)
        if writes:
            self._remove_older(runs)
        self.accelerator.wait_for_everyone()

    def _finish(self, folder: Path, runs: Path) -> None:
        self.save_extra(folder)
        if self.state.best_global_step:
            # The Trainer has seen the temporary name.
            self.state.best_model_checkpoint = str(runs / f"checkpoint-{self.state.best_global_step}")
            self.state.save_to_json(str(folder / "trainer_state.json"))

    def _remove_older(self, runs: Path) -> None:
        kept = {self.state.global_step, self.state.best_global_step}
        for step, path in _checkpoints(runs):
            if step not in kept:
                shutil.rmtree(path, ignore_errors=True)


class StepCallback(TrainerCallback):
    """Stops after `stop_after` steps or Ctrl-C with everything saved, and logs speed, loss and time left.

    Args:
        trainer: whose losses are logged.
        interrupted: tells whether Ctrl-C was pressed, see `deferred_interrupt`.
        stop_after: steps of this call; None: to the end.
        step_tokens: tokens of step i (from 0).
        total_steps: of the whole run.
        log_every: steps between two lines.

    Attributes:
        stopped: whether `stop_after` or Ctrl-C ended training before its last step.
    """

    def __init__(
        self,
        trainer: GuardedTrainer,
        interrupted: Callable[[], bool],
        *,
        stop_after: int | None,
        step_tokens: Callable[[int], int],
        total_steps: int,
        log_every: int = 20,
    ) -> None:
        self._trainer = trainer
        self._interrupted = interrupted
        self._stop_after = stop_after
        self._step_tokens = step_tokens
        self._total_steps = total_steps
        self._first: int | None = None
        self.stopped = False
        left = [0]
        for step in reversed(range(total_steps)):
            left.append(left[-1] + step_tokens(step))
        self._meter = Meter(total_steps, lambda done: left[max(total_steps - done, 0)], every=log_every)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._first is None:
            self._first = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = self._trainer.step_loss
        assert self._first is not None and loss is not None
        step = state.global_step - 1
        self._meter.add(step, self._step_tokens(step), {"loss": loss * args.gradient_accumulation_steps})
        enough = self._stop_after is not None and state.global_step - self._first >= self._stop_after
        if enough or self._interrupted():
            control.should_save = control.should_training_stop = True
            self.stopped = state.global_step < self._total_steps


class StepSeed(TrainerCallback):
    """Dropout is the only chance inside a step: seeded here, it does not depend on where a run was resumed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # 2^20 processes at most, and seeds apart from each other by more steps than a run has.
        torch.manual_seed((self._seed << 44) + (state.global_step << 20) + args.process_index)


class _GradientCheck(TrainerCallback):
    """One NaN in a gradient would be in every weight after the step."""

    def __init__(self, trainer: GuardedTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self._trainer.check_finite("gradient norm", torch.nn.utils.get_total_norm(gradients))


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C lets the running step end: an optimizer step cut in half could not be saved.

    Gives a function that tells whether it was pressed. A second Ctrl-C interrupts at once. Outside the main thread,
    where Python delivers no signals, nothing changes.
    """
    pressed = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, previous)
        logger.info("interrupted: saving after this step")

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def last_checkpoint(runs: Path) -> Path | None:
    """The checkpoint of the highest step in a folder of checkpoints; None if there is none."""
    return max(_checkpoints(runs), default=(0, None))[1]


def compute_layers_twice(model: PreTrainedModel) -> None:
    """Gradient checkpointing: keep only the layers' inputs. transformers gives it a new name in a release we take."""
    enable: Any = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})


def on_cpu(device: str | None) -> bool:
    """Whether a run on `device` (None: a GPU where there is one) is on the CPU, which the Trainer wants to be told."""
    return device == "cpu" or not torch.cuda.is_available()


def one_device(arguments: TrainingArguments, device: str | None) -> TrainingArguments:
    """Keep training on one device per process: transformers would spread a single process over all GPUs it sees.

    Raises:
        RecipeError: a GPU by number, which the Trainer cannot be told.
    """
    if device is not None and re.fullmatch(r"cuda:[1-9]\d*", device):
        raise RecipeError(f"device is {device!r}: choose the GPU by CUDA_VISIBLE_DEVICES={device[5:]} and 'cuda'")
    if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
        raise RecipeError(f"device is {device!r}, and this torch sees no GPU: use 'cpu'")
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def _checkpoints(runs: Path) -> list[tuple[int, Path]]:
    found = [(_NAME.fullmatch(path.name), path) for path in runs.iterdir()] if runs.is_dir() else []
    return [(int(match[1]), path) for match, path in found if match]
