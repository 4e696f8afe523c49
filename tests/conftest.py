"""Shared by all tests: no network but loopback, and where the golden data lies."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from support.network import no_network  # noqa: F401

os.environ["HF_HUB_OFFLINE"] = "1"
if not torch.cuda.is_available():
    # Before any kernel is defined: Triton's interpreter then runs it on a CPU.
    os.environ["TRITON_INTERPRET"] = "1"

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module", autouse=True)
def quick_collection() -> None:
    """What was imported stays: a garbage collection over all the modules of torch and transformers takes a second."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or libraries tell at the end what they take for leaks


@pytest.fixture(scope="session")
def golden_cases() -> dict[str, dict[str, Any]]:
    """Name of a golden case -> its configuration, shape and lengths."""
    return json.loads((GOLDEN / "index.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tiny_config(golden_cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Keys of a published `config.json` with the sizes of a toy: 2 layers, width 64, 256 positions."""
    return golden_cases["tiny"]["config"]
