"""Which path is taken, and that the answer can be asked for."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from m2rag_kernels import check_kernels, choose, chosen, dispatch
from m2rag_kernels.short_conv import short_conv

CPU = torch.device("cpu")


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'cuda', must be one of 'auto', 'naive', 'cpu', 'train'"):
        check_kernels("cuda")


@pytest.mark.parametrize(
    ("kernels", "device", "inference", "path"),
    [
        ("auto", "cpu", True, "cpu"),
        ("auto", "cpu", False, "train"),
        ("auto", "meta", True, "naive"),
        ("naive", "cpu", True, "naive"),
        ("cpu", "cpu", True, "cpu"),
    ],
)
def test_path(kernels, device, inference, path):
    assert choose("an_op", kernels, torch.device(device), inference=inference) == path
    assert chosen()["an_op"] == path


def test_cpu_path_by_name_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="gradients"):
        choose("an_op", "cpu", CPU, inference=False)
    with pytest.raises(ValueError, match="meta"):
        choose("an_op", "cpu", torch.device("meta"), inference=True)


def test_gradients_decide():
    x, weight, bias = torch.randn(1, 4, 6), torch.randn(6, 1, 3, requires_grad=True), torch.randn(6)
    assert short_conv(x, weight, bias)[0].requires_grad
    assert chosen()["short_conv"] == "train"
    with torch.no_grad():
        short_conv(x, weight, bias)
    assert chosen()["short_conv"] == "cpu"
    short_conv(x, weight.detach(), bias)
    assert chosen()["short_conv"] == "cpu"


@pytest.fixture
def no_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """As if triton could run on any device, and as if nothing had been warned of."""
    monkeypatch.setattr(dispatch, "no_triton_reason", lambda device: None)
    monkeypatch.setattr(dispatch, "_warned", set())


def test_triton_by_name_says_why_it_cannot(no_interpreter):
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="needs a GPU and triton, and the tensors are on cpu: use kernels='auto'"):
        choose("an_op", "triton", CPU, inference=True)


def test_triton_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"triton is not installed: pip install 'm2rag\[gpu\]'"):
        choose("an_op", "triton", CPU, inference=True)


def test_old_gpu_takes_the_naive_path_after_one_warning_with_the_reason(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "_warned", set())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    dispatch._no_triton_on_gpu.cache_clear()
    try:
        for _ in range(3):
            assert choose("an_op", "auto", torch.device("cuda:0"), inference=True) == "naive"
    finally:
        dispatch._no_triton_on_gpu.cache_clear()
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "an_op takes the slower naive path: Tesla T4 has compute capability 7.5, 8.0 is needed"
    ]


def test_auto_takes_triton_on_a_gpu_and_only_there(on_a_gpu):
    assert choose("an_op", "auto", torch.device("cuda:0"), inference=False) == "triton"
    assert choose("an_op", "auto", CPU, inference=True) == "cpu"
    assert choose("an_op", "auto", torch.device("meta"), inference=True) == "naive"


def test_what_triton_does_not_support_goes_the_naive_way_with_its_reason(on_a_gpu, caplog):
    gpu = torch.device("cuda:0")
    assert choose("an_op", "auto", gpu, inference=True, unsupported=lambda: "three blocks") == "naive"
    assert choose("an_op", "triton", gpu, inference=True, unsupported=lambda: None) == "triton"
    assert "an_op takes the slower naive path: three blocks" in caplog.text


def test_support_is_not_asked_about_where_triton_is_out_of_the_question():
    def refuse():
        raise AssertionError("asked")

    assert choose("an_op", "auto", CPU, inference=True, unsupported=refuse) == "cpu"
    assert choose("an_op", "naive", torch.device("meta"), inference=True, unsupported=refuse) == "naive"


def test_kernels_print_nothing(capfd):
    x, weight, bias = torch.randn(1, 4, 6), torch.randn(6, 1, 3), torch.randn(6)
    short_conv(x, weight, bias)
    assert capfd.readouterr() == ("", "")
