"""Which path is taken, and that the answer can be asked for."""

from __future__ import annotations

import pytest
import torch

from m2rag_kernels import check_kernels, choose, chosen
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
