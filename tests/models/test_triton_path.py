"""The whole model through the Triton kernels, interpreted where there is no GPU."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from m2rag.models import M2BertConfig, M2BertModel  # noqa: E402
from m2rag_kernels import chosen  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def build(**changes) -> M2BertModel:
    torch.manual_seed(0)
    settings = dict(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, intermediate_size=64, monarch_mlp_nblocks=4,
        long_conv_l_max=300, max_position_embeddings=300, use_positional_encodings=False, filter="multiscale",
        padding="masked", pooling="mean", hidden_dropout_prob=0.0,
    )  # fmt: skip
    model = M2BertModel(M2BertConfig(**{**settings, **changes})).to(DEVICE).eval()
    model.kernels = "triton"
    return model


def batch(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(lengths)
    mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 99, mask.shape, generator=torch.Generator().manual_seed(1)) * mask
    return ids.to(DEVICE), mask.to(DEVICE)


@torch.inference_mode()
def encode(model: M2BertModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return model(ids, mask).pooler_output


def test_a_documents_vector_does_not_depend_on_its_batch():
    model = build()
    ids, mask = batch(37, 5, 20)
    together = encode(model, ids, mask)
    assert chosen()["m2_bert"] == "triton"
    for row, length in enumerate((37, 5, 20)):
        alone = encode(model, ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"filter": "hyena", "hyena_training_additions": True}, {"bidirectional": False}]
)
def test_the_naive_paths_vectors(changes):
    model = build(**changes)
    ids, mask = batch(33, 9)
    vectors = encode(model, ids, mask)
    model.kernels = "naive"
    torch.testing.assert_close(vectors, encode(model, ids, mask), rtol=0, atol=1e-5)


def test_bfloat16_is_close_and_leaves_the_parameters_alone():
    model = build()
    ids, mask = batch(40, 12)
    exact = encode(model, ids, mask)
    model.compute_dtype = torch.bfloat16
    vectors = encode(model, ids, mask)
    assert vectors.dtype == torch.float32
    assert torch.cosine_similarity(vectors, exact).min() > 0.999
    assert not torch.equal(vectors, exact)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_an_odd_number_of_blocks_runs_with_its_mlp_the_naive_way():
    model = build(monarch_mlp_nblocks=1)
    ids, mask = batch(10)
    vectors = encode(model, ids, mask)
    assert chosen()["m2_bert"] == "triton" and chosen()["blockdiag_glu"] == "naive"
    model.kernels = "naive"
    torch.testing.assert_close(vectors, encode(model, ids, mask), rtol=0, atol=1e-5)


def test_spectra_are_made_once_and_again_after_a_change():
    model = build()
    ids, mask = batch(10)
    first = encode(model, ids, mask)
    assert len(model.workspace.spectra) == 4
    calls = []
    for layer in model.layers:
        layer.mixer.filter.mlp.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(encode(model, ids, mask), first)
    assert not calls
    with torch.no_grad():
        model.layers[0].mixer.filter.skip.add_(1.0)
    assert not torch.allclose(encode(model, ids, mask), first)
    assert len(calls) == 1


def test_spectra_beyond_their_budget_are_not_kept():
    model = build()
    ids, mask = batch(10)
    expected = encode(model, ids, mask)
    model.workspace.clear()
    model.workspace.spectra.max_bytes = 1000
    assert torch.equal(encode(model, ids, mask), expected)
    assert len(model.workspace.spectra) == 0


def test_gradients_of_every_parameter():
    model = build().train()
    ids, mask = batch(21, 8)
    gradients = {}
    for kernels in ("triton", "naive"):
        model.kernels = kernels
        model.zero_grad()
        model(ids, mask).pooler_output.square().sum().backward()
        assert chosen()["long_conv"] == kernels
        gradients[kernels] = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, expected in gradients["naive"].items():
        error = (gradients["triton"][name] - expected).norm() / expected.norm()
        assert error < 1e-4, f"{name}: relative error {error:.1e}"


def test_a_training_step_under_autocast():
    model = build(hidden_dropout_prob=0.1).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids, mask = batch(16, 16)
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = model(ids, mask).pooler_output.square().sum()
    loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    optimizer.step()


def test_model_longer_than_the_kernels_says_so(caplog):
    model = build(long_conv_l_max=40_000, max_position_embeddings=40_000)
    ids, mask = batch(6)
    vectors = encode(model, ids, mask)
    assert "its kernels take up to 32768 tokens, this model takes 40000" in caplog.text
    model.kernels = "naive"
    torch.testing.assert_close(vectors, encode(model, ids, mask), rtol=0, atol=1e-5)
