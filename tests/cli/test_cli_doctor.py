"""`m2rag doctor`: what it sees on this machine, and what it says of what is missing."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from m2rag import doctor


def found_by(data, run, *arguments: object) -> tuple[dict[str, dict[str, Any]], int]:
    told = run("doctor", "--json", *arguments)
    report = data(told)
    assert told.exit_code == (1 if report["problems"] else 0)
    return {finding["name"]: finding for finding in report["findings"]}, report["problems"]


def test_a_working_installation(run, data, model: Path, built: Path) -> None:
    findings, problems = found_by(data, run, "--model", model, "--device", "cpu", "--index", built)
    assert problems == 0
    assert list(findings) == ["python", "m2rag", "extras", "torch", "gpu", "keys", "model", "store"]
    assert "tokens/s" in findings["model"]["found"] and "cpu kernels" in findings["model"]["found"]
    assert "3 documents" in findings["store"]["found"]


def test_in_words(run, model: Path) -> None:
    told = run("doctor", "--model", model, "--device", "cpu")
    assert told.exit_code == 0 and "No problems." in told.stdout
    assert "Qdrant's engine writes and finds in a folder" in told.stdout


def test_a_model_that_is_not_there_and_an_index_of_another(
    run, data, model: Path, other_model: Path, built: Path, tmp_path: Path
) -> None:
    findings, problems = found_by(data, run, "--model", tmp_path / "nothing", "--index", tmp_path / "neither")
    assert problems == 2
    assert "no checkpoint at" in findings["model"]["advice"]
    assert "neither" in findings["store"]["advice"]
    findings, problems = found_by(data, run, "--model", other_model, "--device", "cpu", "--index", built)
    assert problems == 1 and str(model) in findings["store"]["advice"]


def test_packages_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    known = metadata.version
    changed = {"transformers": "4.57.0", "fastapi": None}

    def version(name: str) -> str:
        if changed.get(name, "") is None:
            raise metadata.PackageNotFoundError(name)
        return changed.get(name) or known(name)

    monkeypatch.setattr(metadata, "version", version)
    findings = {finding.name: finding for finding in doctor._packages()}
    assert findings["m2rag"].state == "problem"
    assert "transformers is 4.57.0, needs" in findings["m2rag"].found
    assert findings["extras"].state == "note"
    assert "serve (fastapi is missing)" in findings["extras"].found


def test_a_gpu_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    for cuda, advice in ((None, "install a CUDA build"), ("12.8", "update the NVIDIA driver")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        (gpu,) = (finding for finding in doctor._torch() if finding.name == "gpu")
        assert gpu.state == "problem" and advice in gpu.advice


def test_keys_are_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "s3cr3t")
    finding = doctor._keys()
    assert "OPENAI_API_KEY" in finding.found and "s3cr3t" not in repr(finding)
