"""The whole encoder on the cpu path: the naive path's numbers, whatever the padding, the weights' history or the form
of the batch."""

from __future__ import annotations

import copy
import io
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kernel_checks import relative_rms
from safetensors.torch import load_file

from m2rag.models import M2BertConfig, M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel
from m2rag_kernels import chosen

VOCAB = 97


def config(**changes) -> M2BertConfig:
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "monarch_mlp_nblocks": 4,
        "long_conv_l_max": 300,
        "max_position_embeddings": 300,
        "hyena_filter_order": 16,
        "initializer_range": 0.2,
        "padding": "masked",
        "pooling": "mean",
    }
    return M2BertConfig(**{**settings, **changes})


def model(head: type = M2BertModel, **changes) -> M2BertModel:
    torch.manual_seed(0)
    made = head(config(**changes))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith((".skip", "bias")):
                parameter.add_(torch.randn_like(parameter) / 2)
    return made.eval()


def batch(lengths: list[int], width: int | None = None) -> dict[str, torch.Tensor]:
    """Random documents (the same for a given length) padded to the longest or to `width`."""
    width = max(lengths) if width is None else width
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = torch.randint(1, VOCAB, (length,), generator=torch.Generator().manual_seed(length))
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@torch.no_grad()
def run(a_model, kernels, inputs, dtype=torch.float32):
    a_model.kernels, a_model.compute_dtype = kernels, dtype
    return a_model(**inputs)


def pooled(a_model, inputs, kernels="cpu"):
    return run(a_model, kernels, inputs).pooler_output


@pytest.mark.parametrize("pooling", ["cls_tanh", "mean_tanh", "mean"])
@pytest.mark.parametrize("padding", ["masked", "as_given", "max_length"])
@pytest.mark.parametrize("filter", ["hyena", "multiscale"])
def test_is_the_naive_path(filter, padding, pooling):
    a_model = model(filter=filter, padding=padding, pooling=pooling)
    inputs = batch([131, 64, 5])
    naive, fast = run(a_model, "naive", inputs), run(a_model, "cpu", inputs)
    kept = inputs["attention_mask"].bool()
    assert fast.last_hidden_state.dtype == torch.float32
    assert relative_rms(fast.last_hidden_state[kept], naive.last_hidden_state[kept]) < 1e-5
    assert relative_rms(fast.pooler_output, naive.pooler_output) < 1e-5
    half = run(a_model, "cpu", inputs, torch.bfloat16)
    assert half.last_hidden_state.dtype == torch.float32
    assert relative_rms(half.pooler_output, naive.pooler_output) < 5e-2
    assert torch.cosine_similarity(half.pooler_output, naive.pooler_output).min() > 0.998


@pytest.mark.parametrize(
    "changes",
    [
        {"bidirectional": False},
        {"residual_long_conv": False},
        {"hyena_training_additions": True},
        {"use_monarch_mlp": False},
        {"monarch_mlp_nblocks": 3},
        {"use_positional_encodings": False},
        {"hyena_w_mod": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_variant_is_the_naive_path(changes):
    a_model = model(**changes)
    inputs = batch([100, 33])
    assert relative_rms(pooled(a_model, inputs), pooled(a_model, inputs, "naive")) < 1e-5


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 127, 256, 300])
def test_every_length(length):
    a_model = model(filter="multiscale")
    inputs = batch([length])
    assert relative_rms(pooled(a_model, inputs), pooled(a_model, inputs, "naive")) < 1e-5


@pytest.mark.parametrize("filter", ["hyena", "multiscale"])
def test_masked_vector_depends_on_nothing_but_its_document(filter):
    a_model = model(filter=filter)
    alone = {length: pooled(a_model, batch([length]))[0] for length in (150, 64, 7)}
    forms = {
        "padded": {length: pooled(a_model, batch([length], 290))[0] for length in alone},
        "batched": dict(zip(alone, pooled(a_model, batch(list(alone))), strict=True)),
        "shuffled": dict(zip([7, 150, 64], pooled(a_model, batch([7, 150, 64])), strict=True)),
    }
    for form, vectors in forms.items():
        for length, vector in vectors.items():
            assert (vector - alone[length]).abs().max() < 1e-5, (form, length)


def test_pads_may_hold_anything():
    a_model = model()
    inputs = batch([90, 20])
    expected = pooled(a_model, inputs)
    with torch.no_grad():
        a_model.embeddings.word_embeddings.weight[0] = float("nan")
    assert torch.equal(pooled(a_model, inputs), expected)


def test_blocks_do_not_change_the_result(monkeypatch):
    a_model, inputs = model(), batch([120, 40, 9])
    expected = pooled(a_model, inputs)
    monkeypatch.setattr("m2rag_kernels.long_conv.cpu.BLOCK_POINTS", 1024)
    monkeypatch.setattr("m2rag_kernels.long_conv.cpu.MIN_CHANNELS", 5)
    monkeypatch.setattr("m2rag_kernels.long_conv.cpu.TRANSFORM_POINTS", 512)
    monkeypatch.setattr("m2rag_kernels.mixer.cpu.CHUNK_TOKENS", 50)
    a_model.workspace.clear()
    for _ in range(2):
        assert relative_rms(pooled(a_model, inputs), expected) < 1e-6


def test_calls_of_several_threads_do_not_meet():
    a_model, lengths = model(), [30, 90, 150, 210]
    a_model.kernels = "cpu"

    @torch.no_grad()
    def embed(length):
        return a_model(**batch([length])).pooler_output

    expected = [embed(length) for length in lengths]
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(lambda _: [embed(length) for length in lengths], range(8)):
            assert all(torch.equal(a, b) for a, b in zip(vectors, expected, strict=True))


def test_outer_autocast_leaves_the_filters_alone():
    a_model, inputs = model(), batch([50])
    expected = pooled(a_model, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        a_model.workspace.clear()
        with torch.no_grad():
            hidden = a_model(**inputs).last_hidden_state
    assert relative_rms(hidden.mean(1), expected) < 1e-5


def scale_in_place(a_model):
    with torch.no_grad():
        for parameter in a_model.parameters():
            parameter.mul_(1.3)


def load_others(a_model):
    a_model.load_state_dict({name: value * 1.3 for name, value in a_model.state_dict().items()})


def replace_parameters(a_model):
    for module in a_model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(parameter.detach() * 1.3))


def a_training_step_on_data(a_model):
    """`.data` hides in-place changes from version counters; training mode gives them away."""
    a_model.train()
    for parameter in a_model.parameters():
        parameter.data.mul_(1.3)
    a_model.eval()


@pytest.mark.parametrize("change", [scale_in_place, load_others, replace_parameters, a_training_step_on_data])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_new_weights_are_seen(change, dtype):
    a_model, inputs = model(), batch([70])
    before = run(a_model, "cpu", inputs, dtype).pooler_output
    assert len(a_model.workspace.spectra) == 6
    change(a_model)
    after = run(a_model, "cpu", inputs, dtype).pooler_output
    assert relative_rms(after, before) > 0.05
    assert relative_rms(after, run(a_model, "naive", inputs).pooler_output) < (1e-5 if dtype == torch.float32 else 5e-2)


def test_spectra_are_reused_across_nearby_lengths():
    a_model = model()
    for length in (65, 70, 80):
        pooled(a_model, batch([length]))
    assert len(a_model.workspace.spectra) == 6
    a_model.workspace.spectra.max_bytes = 1000
    assert len(a_model.workspace.spectra) == 0
    expected = pooled(a_model, batch([70]), "naive")
    assert relative_rms(pooled(a_model, batch([70])), expected) < 1e-5
    assert a_model.workspace.spectra.nbytes == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("max_bytes", [80_000, 400_000], ids=["some fit", "all fit"])
def test_what_spectra_are_made_from_is_kept_instead(max_bytes, dtype):
    """Where the spectra exceed their budget, the activations they come from stay, and serve shorter inputs too."""
    a_model, lengths = model(filter="hyena"), [290, 200, 300, 290]
    expected = [run(a_model, "cpu", batch([length]), dtype).pooler_output for length in lengths]
    a_model.workspace.spectra.max_bytes = 0
    a_model.workspace.spectra.max_bytes = max_bytes
    for length, vector in zip(lengths, expected, strict=True):
        assert relative_rms(run(a_model, "cpu", batch([length]), dtype).pooler_output, vector) < 1e-5
        assert 0 < a_model.workspace.spectra.nbytes <= max_bytes // 3
    # Both sides of six filters, 300 positions, 16 activations each.
    everything = 12 * 300 * 16 * dtype.itemsize
    assert (a_model.workspace.spectra.nbytes == everything) == (everything <= max_bytes // 3)
    scale_in_place(a_model)
    changed = run(a_model, "cpu", batch([290]), dtype).pooler_output
    assert relative_rms(changed, run(a_model, "naive", batch([290])).pooler_output) < (
        1e-5 if dtype == torch.float32 else 5e-2
    )


def test_inference_leaves_no_trace_in_what_is_saved(tmp_path):
    a_model, inputs = model(), batch([70])
    names, expected = set(a_model.state_dict()), run(a_model, "cpu", inputs, torch.bfloat16).pooler_output
    assert a_model.workspace.spectra.nbytes and a_model.workspace.weights.nbytes

    a_model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == names
    loaded = M2BertModel.from_pretrained(tmp_path).eval()
    assert torch.equal(run(loaded, "cpu", inputs, torch.bfloat16).pooler_output, expected)

    buffer = io.BytesIO()
    torch.save(a_model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(a_model), torch.load(buffer, weights_only=False)):
        assert twin.workspace is not a_model.workspace
        assert twin.workspace.spectra.nbytes == twin.workspace.weights.nbytes == 0
        assert twin.compute_dtype == torch.bfloat16 and twin.kernels == "cpu"
        scale_in_place(twin)
        assert not torch.equal(run(twin, "cpu", inputs, torch.bfloat16).pooler_output, expected)
    assert torch.equal(run(a_model, "cpu", inputs, torch.bfloat16).pooler_output, expected)


def test_path_follows_gradients_and_training(caplog):
    a_model, inputs = model(), batch([20])
    assert a_model.kernels == "auto"
    with caplog.at_level(logging.DEBUG, logger="m2rag_kernels"):
        assert a_model(**inputs).pooler_output.requires_grad
        assert chosen()["m2_bert"] == "train"
        with torch.no_grad():
            a_model(**inputs)
            assert chosen()["m2_bert"] == "cpu"
            a_model.train()(**inputs)
            assert chosen()["m2_bert"] == "train"
    assert "m2_bert takes the cpu path" in caplog.text
    a_model.eval().requires_grad_(False)
    a_model(**inputs)
    assert chosen()["m2_bert"] == "cpu"


def test_cpu_path_by_name_needs_inference():
    a_model, inputs = model(), batch([20])
    a_model.kernels = "cpu"
    with pytest.raises(ValueError, match="no_grad"):
        a_model(**inputs)
    with pytest.raises(ValueError, match="dropout"), torch.no_grad():
        a_model.train()(**inputs)


@pytest.mark.parametrize("head", [M2BertForMaskedLM, M2BertForSequenceClassification])
def test_heads_pass_the_choice_on(head):
    a_model, inputs = model(head), batch([33, 12])
    assert a_model.kernels == "auto" and a_model.compute_dtype == torch.float32
    kept = inputs["attention_mask"].bool()
    naive, fast = (run(a_model, kernels, inputs).logits for kernels in ("naive", "cpu"))
    assert a_model.bert.kernels == "cpu"
    if head is M2BertForMaskedLM:
        naive, fast = naive[kept], fast[kept]
    assert relative_rms(fast, naive) < 1e-5


def test_bad_settings():
    a_model = model()
    with pytest.raises(ValueError, match="'fast', must be one of 'auto', 'naive', 'cpu'"):
        a_model.kernels = "fast"
    with pytest.raises(ValueError, match="float16"):
        a_model.compute_dtype = torch.float16
    assert a_model.kernels == "auto" and a_model.compute_dtype == torch.float32


def test_weights_in_half_precision_run():
    """A model stored in bf16 keeps its filters in fp32 and returns its own dtype."""
    a_model, inputs = model(), batch([40, 11])
    expected = pooled(a_model, inputs)
    for name, parameter in a_model.named_parameters():
        if "filter" not in name:
            parameter.data = parameter.data.bfloat16()
    output = run(a_model, "cpu", inputs, torch.bfloat16)
    assert output.last_hidden_state.dtype == torch.bfloat16
    assert relative_rms(output.pooler_output, expected) < 5e-2
