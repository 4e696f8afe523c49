"""The reference's own numbers, and an independent float64 implementation for the cases it did not cover."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plain_m2_bert as plain
import pytest
import torch
from golden_recipe import reference_state_dict
from safetensors.torch import load_file

from m2rag.models import from_reference
from m2rag.models.checkpoints import translate_key
from m2rag_kernels import chosen

GOLDEN = Path(__file__).parents[1] / "golden"
POOLED_ATOL = 2e-4
LOSS_RTOL = 1e-3

TINY = [
    "tiny",
    "tiny_short_input",
    "tiny_padded",
    "tiny_pool_all",
    "tiny_causal",
    "tiny_dense_mlp",
    "tiny_training_additions",
]
FULL_SIZE = ["m2bert_260m_128", "m2bert_80m_2k", "m2bert_80m_32k"]

HAS_TRITON = importlib.util.find_spec("triton") is not None
TRITON = pytest.param("triton", marks=pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed"))
KERNELS = ["naive", "cpu", TRITON]


def full_size_cases() -> Iterator[Any]:
    """Those that take minutes are slow: 32k tokens, and Triton's interpreter on anything of this size."""
    for name in FULL_SIZE:
        for kernels in ("naive", "cpu", "triton"):
            interpreted = kernels == "triton" and not torch.cuda.is_available()
            slow = name == "m2bert_80m_32k" or interpreted
            yield pytest.param(name, kernels, marks=pytest.mark.slow if slow else ())


@pytest.fixture(scope="module")
def full_size_models():
    """At most one full-size model in memory, shared by the kernel paths."""
    return {}


def build(name: str, config: dict[str, Any], cache: dict[str, Any]):
    if name not in cache:
        cache.clear()
        cache[name] = from_reference(config, reference_state_dict(config))
    return cache[name]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", TINY)
def test_encoder_gives_the_references_numbers(name, kernels, golden_cases):
    check_encoder(name, kernels, golden_cases, {})


@pytest.mark.parametrize(("name", "kernels"), list(full_size_cases()))
def test_encoder_of_full_size_gives_the_references_numbers(name, kernels, golden_cases, full_size_models):
    check_encoder(name, kernels, golden_cases, full_size_models)


def check_encoder(name, kernels, golden_cases, cache):
    expected = np.load(GOLDEN / f"{name}.npz")
    model = build(name, golden_cases[name]["config"], cache)
    model.kernels = kernels
    device = "cuda" if kernels == "triton" and torch.cuda.is_available() else "cpu"
    model.to(device)
    with torch.no_grad():
        output = model(
            torch.tensor(expected["input_ids"], device=device), torch.tensor(expected["attention_mask"], device=device)
        )
    assert chosen()["m2_bert"] == kernels
    pooled, first8 = output.pooler_output.cpu().numpy(), output.last_hidden_state[:, :8].cpu().numpy()
    assert pooled.shape == expected["pooled"].shape
    np.testing.assert_allclose(pooled, expected["pooled"], rtol=0, atol=POOLED_ATOL)
    # Hidden states are LayerNorm outputs, about three times as large as pooled values.
    np.testing.assert_allclose(first8, expected["last_hidden_first8"], rtol=0, atol=3 * POOLED_ATOL)


def masked_lm(golden_cases, kernels):
    case, expected = golden_cases["tiny_mlm"], np.load(GOLDEN / "tiny_mlm.npz")
    model = from_reference(case["config"], reference_state_dict(case["config"], "mlm"), head="mlm")
    model.kernels = kernels
    device = "cuda" if kernels == "triton" and torch.cuda.is_available() else "cpu"
    model.to(device)
    ids, mask, labels = (
        torch.tensor(expected[key], device=device) for key in ("input_ids", "attention_mask", "labels")
    )
    return expected, model, model(ids, mask, labels=labels)


@pytest.mark.parametrize("kernels", KERNELS)
def test_masked_lm_loss_and_logits(golden_cases, kernels):
    with torch.no_grad():
        expected, _, output = masked_lm(golden_cases, kernels)
    assert output.loss.item() == pytest.approx(float(expected["loss"]), rel=LOSS_RTOL)
    # The reference fills logits only where a label asks for one.
    first16 = output.logits[:, :16].cpu().numpy()
    asked = expected["logits_first16"].any(axis=-1)
    assert asked.any()
    np.testing.assert_allclose(first16[asked], expected["logits_first16"][asked], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kernels", ["naive", "train", TRITON])
def test_masked_lm_gradient_norms(kernels, golden_cases):
    expected, model, output = masked_lm(golden_cases, kernels)
    output.loss.backward()
    parameters = dict(model.named_parameters())
    checked = 0
    for key in expected.files:
        if not key.startswith("gradnorm/"):
            continue
        name = "bert." + translate_key(key.removeprefix("gradnorm/"))
        assert parameters[name].grad.norm().item() == pytest.approx(float(expected[key]), rel=LOSS_RTOL), name
        checked += 1
    assert checked == 10


def test_every_golden_case_is_covered(golden_cases):
    assert {*TINY, *FULL_SIZE, "tiny_mlm"} == set(golden_cases)


# What else a reviewer of the maths would try: (changes of the tiny configuration, batch, length, real lengths).
VARIATIONS = {
    "as_golden": ({}, [256, 31, 7], 256),
    "causal_padded_pool_all": ({"bidirectional": False, "pool_all": True}, [256, 31, 7], 256),
    "dense_mlp_training_additions": ({"use_monarch_mlp": False, "hyena_training_additions": True}, [200, 3], 200),
    "no_positions": ({"use_positional_encodings": False}, [100, 40], 100),
    "emb_dim_3": ({"hyena_emb_dim": 3}, [64], 64),
    "emb_dim_9_causal": ({"hyena_emb_dim": 9, "bidirectional": False}, [255], 255),
    "no_residual": ({"residual_long_conv": False}, [129], 129),
    "one_block": ({"monarch_mlp_nblocks": 1}, [50], 50),
    "two_blocks": ({"monarch_mlp_nblocks": 2, "intermediate_size": 192}, [50, 50], 50),
    "eight_blocks": ({"monarch_mlp_nblocks": 8, "pool_all": True}, [63, 1], 63),
    "one_token": ({}, [1], 1),
    "two_tokens_causal": ({"bidirectional": False}, [2, 2], 2),
    "long_filters": ({"long_conv_l_max": 512}, [256, 20], 256),
    # Below 1: three nested sines of a larger factor amplify rounding, in the reference too.
    "w_mod": ({"hyena_w_mod": 0.5, "hyena_filter_order": 24}, [77], 77),
    "three_layers_wide": ({"num_hidden_layers": 3, "hidden_size": 96, "num_attention_heads": 12}, [40, 17], 40),
    "everything": (
        {
            "bidirectional": False,
            "residual_long_conv": False,
            "hyena_training_additions": True,
            "use_monarch_mlp": False,
            "use_positional_encodings": False,
            "pool_all": True,
            "hyena_emb_dim": 7,
            "layer_norm_eps": 1e-5,
        },
        [90, 11],
        90,
    ),
}


def tokens(config: dict[str, Any], lengths: list[int], width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(lengths) * 1000 + width)
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    return torch.randint(1, config["vocab_size"], mask.shape, generator=generator) * mask, mask


@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_agrees_with_an_independent_implementation(variation, kernels, tiny_config):
    changes, lengths, width = VARIATIONS[variation]
    config = {**tiny_config, **changes}
    state_dict = reference_state_dict(config)
    ids, mask = tokens(config, lengths, width)
    double = plain.in_float64(state_dict)
    hidden = plain.encode(config, double, ids)
    model = from_reference(config, state_dict)
    model.kernels = kernels
    device = "cuda" if kernels == "triton" and torch.cuda.is_available() else "cpu"
    model.to(device)
    with torch.no_grad():
        output = model(ids.to(device), mask.to(device))
    torch.testing.assert_close(output.last_hidden_state.cpu().double(), hidden, rtol=0, atol=3 * POOLED_ATOL)
    pooled = plain.pool(config, double, hidden, mask)
    torch.testing.assert_close(output.pooler_output.cpu().double(), pooled, rtol=0, atol=POOLED_ATOL)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bidirectional": False},
        {"hyena_training_additions": True, "residual_long_conv": False},
        {"layer_norm_eps": 1e-3, "use_monarch_mlp": False},
        {"use_positional_encodings": False, "monarch_mlp_nblocks": 2},
    ],
    ids=lambda changes: "-".join(changes) or "published",
)
def test_masked_lm_loss_and_every_gradient_agree(changes, tiny_config):
    """Every parameter's gradient, through the key map: a part that is wired wrongly shows up here."""
    config = {**tiny_config, **changes}
    state_dict = reference_state_dict(config, "mlm")
    ids, _ = tokens(config, [60, 20], 60)
    labels = torch.where(torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.3, ids, -100)
    double = plain.in_float64(state_dict, trainable=False)
    # One leaf per tensor of ours: aliases of the frequency must add up, as they do in the model.
    leaves: dict[str, torch.Tensor] = {}
    for name in double:
        ours = translate_key(name)
        if ours is not None:
            shared = "embeddings.word_embeddings.weight" if ours == "head.decoder.weight" else ours
            double[name] = leaves.setdefault(shared, double[name].clone().requires_grad_())
    loss = plain.masked_lm_loss(config, double, ids, labels)
    loss.backward()

    model = from_reference(config, state_dict, head="mlm")
    output = model(ids, labels=labels)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(loss.item(), rel=LOSS_RTOL)
    for name, parameter in model.named_parameters():
        expected = leaves[name.removeprefix("bert.")].grad.reshape(parameter.shape)
        if name.endswith("word_embeddings.weight"):
            # The pad's row gets no gradient through the embedding (padding_idx), but it does through the decoder.
            expected, got = expected[1:], parameter.grad[1:]
        else:
            got = parameter.grad
        error = (got.double() - expected).norm() / expected.norm()
        assert error < LOSS_RTOL, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("name", ["tiny", "tiny_causal", "tiny_dense_mlp", "tiny_training_additions", "tiny_mlm"])
def test_recipe_rebuilds_the_given_weights(name, golden_cases):
    """The generator against the files that came with the golden numbers, where those are at hand."""
    data = os.environ.get("M2RAG_DATA")
    path = Path(data or "") / "golden" / f"{name}.weights.safetensors"
    if not path.is_file():
        pytest.skip("set M2RAG_DATA to the folder that holds golden/*.weights.safetensors")
    case = golden_cases[name]
    rebuilt = reference_state_dict(case["config"], "mlm" if case["mlm"] else None)
    given = load_file(path)
    assert set(rebuilt) == set(given)
    for key, value in given.items():
        torch.testing.assert_close(rebuilt[key], value, rtol=0, atol=1e-7, msg=lambda m, key=key: f"{key}: {m}")
