"""The hand-written backward against the definition's, and double against float."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import LENGTHS, relative_rms

from m2rag.models import M2BertConfig, M2BertModel
from m2rag_kernels.blockdiag_glu import blockdiag_glu
from m2rag_kernels.long_conv import long_conv
from m2rag_kernels.long_conv.train import fast_fft_size
from m2rag_kernels.short_conv import short_conv


def assert_same_results_and_gradients(operation, *args, tolerance=2e-6):
    """Outputs and gradients of `operation(*args, kernels=...)` on the train path equal those on the naive one."""
    collected = {}
    for kernels in ("naive", "train"):
        inputs = [a.clone().requires_grad_() if torch.is_tensor(a) and a.is_floating_point() else a for a in args]
        outputs = operation(*inputs, kernels=kernels)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator().manual_seed(1)
        sum((y * torch.randn(y.shape, generator=generator)).sum() for y in outputs).backward()
        gradients = [x.grad for x in inputs if torch.is_tensor(x) and x.is_floating_point()]
        collected[kernels] = [y.detach() for y in outputs] + gradients
    for expected, result in zip(collected["naive"], collected["train"], strict=True):
        assert relative_rms(result, expected) < tolerance or torch.allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("gated", [True, False])
def test_long_conv(length, bidirectional, gated):
    torch.manual_seed(length)
    u, gate = torch.randn(2, 6, length), torch.randn(2, 6, length) if gated else None
    kernel, reverse = torch.randn(6, length), torch.randn(6, length) if bidirectional else None
    assert_same_results_and_gradients(long_conv, u, kernel, reverse, torch.randn(6), gate)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("masked", [True, False])
def test_short_conv(length, masked):
    torch.manual_seed(length)
    mask = torch.rand(2, length) > 0.3 if masked else None
    assert_same_results_and_gradients(
        short_conv, torch.randn(2, length, 12), torch.randn(12, 1, 3), torch.randn(12), mask
    )


def test_short_conv_ignores_what_pads_hold():
    x, weight, bias = torch.randn(1, 8, 6), torch.randn(6, 1, 3), torch.randn(6)
    mask = torch.arange(8)[None] < 5
    poisoned = torch.where(mask[..., None], x, float("nan")).requires_grad_()
    v, gate = short_conv(poisoned, weight, bias, mask, kernels="train")
    (v.sum() + gate[..., :5].sum()).backward()
    assert torch.isfinite(v).all()
    assert torch.isfinite(poisoned.grad).all()


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("length", [1, 63, 256])
def test_blockdiag_glu(n_blocks, length):
    torch.manual_seed(length)
    width, inner = 12, 24
    assert_same_results_and_gradients(
        lambda *args, kernels: blockdiag_glu(*args, 1e-12, kernels=kernels),
        torch.randn(2, length, width),
        torch.randn(n_blocks, 2 * inner // n_blocks, width // n_blocks),
        torch.randn(n_blocks, width // n_blocks, inner // n_blocks),
        *torch.randn(3, width),
        tolerance=5e-6,
    )


def test_products_in_half_precision_stay_near():
    torch.manual_seed(0)
    weights = torch.randn(4, 24, 6) / 6**0.5, torch.randn(4, 6, 12) / 12**0.5
    x, (bias, norm_weight, norm_bias) = torch.randn(1, 64, 24), torch.randn(3, 24)
    expected = blockdiag_glu(x, *weights, bias, norm_weight, norm_bias, 1e-12, kernels="naive")
    with torch.autocast("cpu", torch.bfloat16):
        result = blockdiag_glu(x, *weights, bias, norm_weight, norm_bias, 1e-12, kernels="train")
    assert result.dtype == torch.float32
    assert 0 < relative_rms(result, expected) < 1e-2


@pytest.mark.parametrize("filter_kind", ["hyena", "multiscale"])
def test_whole_model_has_the_same_gradients(filter_kind):
    torch.manual_seed(0)
    config = M2BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, intermediate_size=32, max_position_embeddings=64,
        long_conv_l_max=64, hyena_filter_order=8, hidden_dropout_prob=0.0, filter=filter_kind, pooling="mean",
    )  # fmt: skip
    model = M2BertModel(config).train()
    ids = torch.randint(1, 50, (3, 40))
    mask = torch.arange(40)[None] < torch.tensor([40, 17, 3])[:, None]
    gradients = {}
    for kernels in ("naive", "train"):
        model.kernels = kernels
        model.zero_grad()
        model(ids, mask).pooler_output.square().sum().backward()
        gradients[kernels] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert gradients["naive"].keys() == gradients["train"].keys()
    largest = max(float(g.abs().max()) for g in gradients["naive"].values())
    for name, expected in gradients["naive"].items():
        assert torch.allclose(gradients["train"][name], expected, rtol=1e-4, atol=1e-5 * largest), name


@pytest.mark.parametrize("n", [1, 2, 7, 127, 128, 1001, 65_536])
def test_fft_sizes_are_even_and_smooth(n):
    size = fast_fft_size(n)
    assert n <= size and size % 2 == 0
    for prime in (2, 3, 5):
        while size % prime == 0:
            size //= prime
    assert size == 1
