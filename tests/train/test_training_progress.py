"""What the log says, by a clock that the test turns."""

from __future__ import annotations

import logging

import pytest
import torch

from m2rag_train.progress import Meter, format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (3600, "1 h 0 min"), (90_000, "25 h 0 min")],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_meter_logs_means_speed_and_time_left(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "m2rag_train")
    now = 100.0
    meter = Meter(10, lambda done: 1000.0 * (10 - done), every=2, clock=lambda: now)
    for step, (tokens, loss) in enumerate([(300, 1.0), (100, 2.0), (500, 5.0), (500, 7.0), (1, 9.0)]):
        now += 2
        losses = {"cosine": torch.tensor(loss, requires_grad=True)}
        if step == 1:
            losses["contrastive"] = torch.tensor(4.0)  # not every step has queries
        meter.add(step, tokens, losses)
    assert caplog.messages == [
        # 400 tokens in 4 s; 8 steps of 1000 tokens to go
        "step 2 of 10: cosine 1.5000 contrastive 4.0000, 0.50 steps/s, 100 tokens/s, 1 min 20 s left",
        "step 4 of 10: cosine 6.0000, 0.50 steps/s, 250 tokens/s, 24 s left",
    ]


def test_a_resumed_run_counts_its_own_steps(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "m2rag_train")
    now = 0.0
    meter = Meter(10, lambda done: 0.0, every=4, clock=lambda: now)
    for step in (7,):
        now += 2
        meter.add(step, 10, {"cosine": torch.tensor(0.0)})
    assert caplog.messages == ["step 8 of 10: cosine 0.0000, 0.50 steps/s, 5 tokens/s, 0 s left"]
