"""Block-diagonal GLU MLP against its matrices written out in full."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import blockdiag_glu_by_sums, relative_rms

from m2rag_kernels.blockdiag_glu import blockdiag_glu

KERNELS = ["naive", "cpu"]
EPS = 1e-12


def inputs(n_blocks: int, tokens: int = 10, batch: int = 2, width: int = 24, inner: int = 48):
    torch.manual_seed(n_blocks)
    return (
        torch.randn(batch, tokens, width),
        torch.randn(n_blocks, 2 * inner // n_blocks, width // n_blocks) / 3,
        torch.randn(n_blocks, width // n_blocks, inner // n_blocks) / 3,
        torch.randn(width),
        torch.rand(width) + 0.5,
        torch.randn(width),
    )


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("n_blocks", [1, 2, 3, 4])
def test_is_the_full_matrix_product(n_blocks, kernels):
    """An odd number of blocks has one that holds both gates and values."""
    tensors = inputs(n_blocks)
    before = [t.clone() for t in tensors]
    result = blockdiag_glu(*tensors, EPS, kernels=kernels)
    assert relative_rms(result, blockdiag_glu_by_sums(*(t.double() for t in tensors), EPS)) < 1e-6
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("n_blocks", [1, 3, 4])
def test_half_precision_products(n_blocks):
    tensors = inputs(n_blocks)
    result = blockdiag_glu(tensors[0].bfloat16(), *tensors[1:], EPS, kernels="cpu")
    assert result.dtype == torch.bfloat16
    assert relative_rms(result, blockdiag_glu_by_sums(*(t.double() for t in tensors), EPS)) < 1e-2


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 30])
def test_any_number_of_chunks(tokens, monkeypatch):
    monkeypatch.setattr("m2rag_kernels.blockdiag_glu.cpu.CHUNK_TOKENS", 8)
    tensors = inputs(4, tokens=tokens)
    result = blockdiag_glu(*tensors, EPS, kernels="cpu")
    assert relative_rms(result, blockdiag_glu(*tensors, EPS, kernels="naive")) < 1e-6


@pytest.mark.parametrize("kernels", ["naive", "train"])
def test_gradients(kernels):
    tensors = [t.double().requires_grad_() for t in inputs(2, tokens=2, width=4, inner=4)]
    assert torch.autograd.gradcheck(lambda *args: blockdiag_glu(*args, EPS, kernels=kernels), tensors)


def test_dropout_is_for_training():
    tensors = inputs(4)
    torch.manual_seed(0)
    dropped = blockdiag_glu(*tensors, EPS, dropout=0.5)
    assert not torch.allclose(dropped, blockdiag_glu(*tensors, EPS))
    with pytest.raises(ValueError, match="dropout"):
        blockdiag_glu(*tensors, EPS, dropout=0.5, kernels="cpu")
