"""Files of the published families, as they are and as they break."""

from __future__ import annotations

import datetime
import json
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_recipe import reference_state_dict
from safetensors.torch import save_file

from m2rag.errors import CheckpointError, M2RagError, NonFiniteError
from m2rag.models import M2BertConfig, M2BertModel, checkpoints, from_reference, load_checkpoint

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "long_conv_l_max": 64,
    "hyena_filter_order": 8,
}
IDS = torch.tensor([[2, 45, 17, 99, 3, 0, 0], [2, 8, 3, 0, 0, 0, 0]])
MASK = (IDS != 0).long()


@pytest.fixture(scope="session")
def config(tiny_config) -> dict[str, Any]:
    return {**tiny_config, **SMALL}


@pytest.fixture(scope="session")
def weights(config) -> dict[str, torch.Tensor]:
    return reference_state_dict(config)


@pytest.fixture(scope="session")
def mlm_weights(config) -> dict[str, torch.Tensor]:
    return reference_state_dict(config, "mlm")


@pytest.fixture(scope="session")
def expected(config, weights) -> torch.Tensor:
    """The vectors of the untouched state dict under raw reference behaviour."""
    return vectors(from_reference(config, weights))


def vectors(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, MASK).pooler_output


def same(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for rounding: equal tensors at other addresses are added up in another order by vectorised code."""
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def write(folder: Path, config: dict[str, Any] | None, tensors: Any, name: str = "pytorch_model.bin") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if name.endswith(".safetensors"):
        save_file({key: value.clone() for key, value in tensors.items()}, folder / name)
    else:
        torch.save(tensors, folder / name)
    return folder


def load_raw(path: Path, **overrides: Any):
    return load_checkpoint(path, padding="as_given", **overrides)


# Where the tensors come from.


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "bert.", "model.bert.", "state.model.module.bert."])
def test_prefixes_mean_nothing(prefix, config, weights, expected):
    prefixed = {prefix + name: value for name, value in weights.items()}
    same(vectors(from_reference(config, prefixed)), expected)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "model.pt", "model.safetensors"])
def test_file_formats(name, tmp_path, config, weights, expected):
    folder = write(tmp_path, config, weights, name)
    same(vectors(load_raw(folder)), expected)
    same(vectors(load_raw(folder / name)), expected)
    same(vectors(load_raw(str(folder))), expected)


def test_pickle_format_of_old_torch(tmp_path, config, weights, expected):
    folder = write(tmp_path, config, {})
    torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    same(vectors(load_raw(folder)), expected)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_storages_become_fp32(name, dtype, tmp_path, config, weights):
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    model = load_raw(write(tmp_path, config, cast, name))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    rounded = {key: value.float() for key, value in cast.items()}
    same(vectors(model), vectors(from_reference(config, rounded)))


def test_shared_tensors_that_safetensors_drops(config, weights, expected):
    """Of the aliases of one sine frequency a file may hold any, in either direction."""
    for kept in ("implicit_filter.1.freq", "implicit_filter.5.freq", "implicit_filter_rev.3.freq"):
        fewer = {name: value for name, value in weights.items() if ".freq" not in name or name.endswith(kept)}
        assert len(fewer) < len(weights)
        same(vectors(from_reference(config, fewer)), expected)


@pytest.mark.parametrize("dropped", ["cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"])
def test_either_name_of_the_tied_embeddings_may_be_dropped(dropped, config, mlm_weights):
    fewer = {name: value for name, value in mlm_weights.items() if name != dropped}
    model = from_reference(config, fewer, head="mlm")
    assert model.head.decoder.weight is model.bert.embeddings.word_embeddings.weight
    whole = from_reference(config, mlm_weights, head="mlm")
    with torch.no_grad():
        same(model(IDS).logits, whole(IDS).logits)
    encoder = from_reference({**config, "pooling": "mean"}, fewer)
    assert torch.equal(encoder.embeddings.word_embeddings.weight, mlm_weights["cls.predictions.decoder.weight"])


def test_embeddings_that_are_not_tied(config, mlm_weights):
    torn = {**mlm_weights, "cls.predictions.decoder.weight": mlm_weights["cls.predictions.decoder.weight"] + 1}
    with pytest.raises(CheckpointError, match="tie_word_embeddings=False"):
        from_reference(config, torn, head="mlm")
    model = from_reference({**config, "tie_word_embeddings": False}, torn, head="mlm")
    assert torch.equal(model.head.decoder.weight, torn["cls.predictions.decoder.weight"])
    words = model.bert.embeddings.word_embeddings.weight
    assert torch.equal(words, torn["bert.embeddings.word_embeddings.weight"])


def test_buffers_without_content_are_ignored_by_name(config, weights, expected):
    complex_matrix = torch.zeros(16, 16, 2)
    buffers = {
        "embeddings.token_type_ids": torch.zeros(1, 64, dtype=torch.long),
        "encoder.layer.0.attention.filter_fn.flashfft.f_16_fft": complex_matrix,
        "encoder.layer.1.attention.filter_fn2.flashfftconv.f_16_fft_real": complex_matrix,
        "encoder.flash_fft_conv.twiddle_factors_fft_16_16": complex_matrix,
        "flashfftconv.twiddle_factors_ifft_32_1K": torch.full((2,), torch.nan, dtype=torch.bfloat16),
    }
    same(vectors(from_reference(config, {**weights, **buffers})), expected)
    for stranger in ("twiddle_factors_fft_16_16", "encoder.layer.0.attention.flash_attention.weight"):
        with pytest.raises(CheckpointError, match=stranger):
            from_reference(config, {**weights, stranger: complex_matrix})


def test_positions_that_were_not_stored_are_analytic(config, weights, expected):
    fewer = {name: v for name, v in weights.items() if "pos_emb" not in name and "modulation" not in name}
    torch.testing.assert_close(vectors(from_reference(config, fewer)), expected, rtol=0, atol=1e-4)


def test_structure_is_read_off_the_tensors(config, weights, expected):
    """Published configurations differ in what they spell out."""
    spelled_out = {key: config[key] for key in ("layer_norm_eps", "pool_all", "hyena_w_mod")}
    same(vectors(from_reference(spelled_out, weights)), expected)
    changes = {"bidirectional": False, "residual_long_conv": False, "hyena_training_additions": True}
    changes |= {"use_positional_encodings": False, "use_monarch_mlp": False, "hyena_emb_dim": 7}
    other = {**config, **changes}
    model = from_reference(spelled_out, reference_state_dict(other))
    for key, value in changes.items():
        assert getattr(model.config, key) == value, key


def test_composer_checkpoint(tmp_path, config, mlm_weights):
    """A training checkpoint: model, optimizer, clocks, random states."""
    numpy_state = np.random.RandomState(0).get_state()
    checkpoint = {
        "state": {
            "model": OrderedDict((f"model.{name}", value) for name, value in mlm_weights.items()),
            "optimizers": {
                "DecoupledAdamW": {"state": {0: {"step": 7, "exp_avg": torch.zeros(3)}}, "param_groups": []}
            },
            "schedulers": {"LinearWithWarmupScheduler": {"last_epoch": 7, "_last_lr": [1e-4]}},
            "timestamp": {
                "Timestamp": {"epoch": 0, "batch": 7, "total_wct": datetime.timedelta(seconds=9)},
            },
            "train_metrics": {"LanguageCrossEntropy": torch.tensor(2.0)},
            "run_name": "mlm",
            "rank_zero_seed": 17,
        },
        "rng": [{"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state(), "cuda": None}],
    }
    folder = write(tmp_path, config, checkpoint, "ep0-ba7-rank0.pt")
    model = load_checkpoint(folder / "ep0-ba7-rank0.pt", head="mlm", padding="as_given")
    direct = from_reference(config, mlm_weights, head="mlm")
    with torch.no_grad():
        same(model(IDS).logits, direct(IDS).logits)


def test_model_does_not_share_memory_with_the_given_tensors(config, weights):
    mine = {name: value.clone() for name, value in weights.items()}
    model = from_reference(config, mine)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(mine[name], value) for name, value in weights.items())


def test_loading_leaves_the_random_state_alone(config, weights):
    before = torch.get_rng_state()
    from_reference(config, weights)
    assert torch.equal(torch.get_rng_state(), before)


def test_loaded_models_train(config, mlm_weights):
    model = from_reference(config, mlm_weights, head="mlm").train()
    model(IDS, labels=IDS).loss.backward()
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in model.parameters())


# The published families.


def retrieval_v0(config: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What the togethercomputer retrieval repositories hold: 30,528 words, a classifier nobody trained."""
    published = {**config, "vocab_size": 30528, **changes}
    published |= {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "auto_map": {"AutoModelForSequenceClassification": "bert_layers.BertForSequenceClassification"},
        "torch_dtype": "float32",
        "transformers_version": "4.32.1",
        "position_embedding_type": "absolute",
        "use_cache": True,
        "gradient_checkpointing": False,
        "use_flash_fft": False,
    }
    return published, reference_state_dict(published, "classification")


@pytest.mark.parametrize("pool_all", [False, True])
def test_retrieval_v0(pool_all, tmp_path, config):
    published, tensors = retrieval_v0(config, pool_all=pool_all)
    folder = write(tmp_path, published, tensors)
    model = load_checkpoint(folder)
    assert model.config.padding == "max_length"
    assert model.config.pooling == ("mean_tanh" if pool_all else "cls_tanh")
    assert model.config.vocab_size == 30528
    assert not hasattr(model.config, "auto_map"), "a saved copy must not point to remote code"
    raw = from_reference(published, tensors)
    padded_ids = torch.nn.functional.pad(IDS, (0, 64 - IDS.shape[1]))
    padded_mask = torch.nn.functional.pad(MASK, (0, 64 - IDS.shape[1]))
    with torch.no_grad():
        expected = raw(padded_ids, padded_mask).pooler_output
    torch.testing.assert_close(vectors(model), expected, rtol=0, atol=1e-6)
    classifier = load_checkpoint(folder, head="classification")
    with torch.no_grad():
        logits = classifier(IDS, MASK).logits
    by_hand = expected @ tensors["classifier.weight"].T + tensors["classifier.bias"]
    torch.testing.assert_close(logits, by_hand, rtol=0, atol=1e-5)


def test_number_of_labels_is_read_off_the_classifier(tmp_path, config):
    published, tensors = retrieval_v0(config, num_labels=5)
    del published["num_labels"]
    model = load_checkpoint(write(tmp_path, published, tensors), head="classification")
    assert model.config.num_labels == 5


def test_masked_lm_checkpoint_has_no_pooler(tmp_path, config, mlm_weights):
    """Pretrained families, and retrieval V1: nothing to compute the published pooling with."""
    folder = write(tmp_path, config, mlm_weights, "model.safetensors")
    with pytest.raises(CheckpointError, match="pooling='mean'"):
        load_checkpoint(folder)
    encoder = load_checkpoint(folder, pooling="mean", padding="as_given")
    with torch.no_grad():
        output = encoder(IDS, MASK)
        hidden = load_checkpoint(folder, head="mlm", padding="as_given").bert(IDS, MASK).last_hidden_state
    by_hand = (hidden * MASK[..., None]).sum(1) / MASK.sum(1, keepdim=True)
    torch.testing.assert_close(output.pooler_output, by_hand, rtol=0, atol=1e-6)


def test_mean_pooling_sets_a_pooler_in_the_file_aside(tmp_path, config, weights):
    model = load_raw(write(tmp_path, config, weights), pooling="mean")
    assert model.pooler is None
    labelled = {**weights, "classifier.weight": torch.zeros(3, 32), "classifier.bias": torch.zeros(3)}
    model = from_reference({**config, "pooling": "mean"}, labelled, head="classification")
    assert model.config.num_labels == 3


# Folders of ours.


@pytest.mark.parametrize("head", [None, "mlm", "classification"])
def test_folders_of_ours(head, tmp_path, config):
    model = from_reference(config, reference_state_dict(config, head), head=head)
    model.config.padding = "masked"
    model.save_pretrained(tmp_path)
    again = load_checkpoint(tmp_path, head=head)
    assert again.config.padding == "masked", "only published checkpoints are padded to the full length"
    with torch.no_grad():
        for name in ("logits", "pooler_output"):
            if name in model(IDS, MASK):
                same(again(IDS, MASK)[name], model(IDS, MASK)[name])


def test_our_masked_lm_folder_as_encoder(tmp_path, config, mlm_weights):
    model = from_reference(config, mlm_weights, head="mlm")
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="pooling='mean'"):
        load_checkpoint(tmp_path)
    encoder = load_checkpoint(tmp_path, pooling="mean")
    with torch.no_grad():
        same(encoder(IDS, MASK).last_hidden_state, model.bert(IDS, MASK).last_hidden_state)


def test_our_encoder_has_no_head(tmp_path, config, weights):
    from_reference(config, weights).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing tensors: head\.decoder\.bias, head\.dense"):
        load_checkpoint(tmp_path, head="mlm")
    with pytest.raises(CheckpointError, match=r"missing tensors: classifier\.bias"):
        load_checkpoint(tmp_path, head="classification")


def test_half_precision_folder_of_ours_is_loaded_in_fp32(tmp_path, config, weights):
    from_reference(config, weights).to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_checkpoint(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.to_dict().get("dtype") in (None, "float32")


# Broken input.


def without(weights: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    assert name in weights
    return {key: value for key, value in weights.items() if key != name}


def test_every_defect_is_in_one_message(config, weights):
    broken = without(weights, "encoder.layer.1.attention.in_linear.bias")
    broken = without(broken, "embeddings.LayerNorm.weight")
    broken["pooler.dense.weight"] = torch.zeros(32, 31)
    broken["encoder.layer.0.mlp.layernorm.bias"] = torch.zeros(33)
    with pytest.raises(CheckpointError) as caught:
        from_reference(config, broken)
    message = str(caught.value)
    for part in ("layers.1.mixer.in_proj.bias", "embeddings.layer_norm.weight", "(32, 31)", "(33,)", "(32,)"):
        assert part in message


def test_no_tensor_may_be_missing(config, weights):
    """Each one in turn, but the stored positions, index buffers and aliases."""
    aliases = ("position_ids", "pos_emb.z", "pos_emb.t", "modulation.deltas", ".freq")
    required = [key for key in weights if not key.endswith(aliases)]
    assert len(required) > 60
    for key in required:
        with pytest.raises(CheckpointError):
            from_reference(config, without(weights, key))


def test_unexpected_tensors_are_listed(config, weights):
    extra = {f"encoder.layer.0.attention.Wqkv_{i}.weight": torch.zeros(2) for i in range(20)}
    with pytest.raises(CheckpointError, match=r"Wqkv_0\.weight.*20 in all"):
        from_reference(config, {**weights, **extra})
    with pytest.raises(CheckpointError, match=r"unexpected tensors: .*layers\.2"):
        more = reference_state_dict({**config, "num_hidden_layers": 3})
        from_reference(config, more)


def test_aliases_must_agree(config, weights):
    key = "encoder.layer.0.attention.filter_fn.implicit_filter_rev.3.freq"
    with pytest.raises(CheckpointError, match="disagrees"):
        from_reference(config, {**weights, key: weights[key] + 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["embeddings.word_embeddings.weight", "encoder.layer.1.mlp.wo.bias"])
def test_non_finite_weights(key, value, tmp_path, config, weights):
    poisoned = {**weights, key: weights[key].clone()}
    poisoned[key].view(-1)[-1] = value
    with pytest.raises(NonFiniteError, match=key):
        load_checkpoint(write(tmp_path / "reference", config, poisoned))
    model = from_reference(config, weights)
    with torch.no_grad():
        model.pooler.bias[3] = value
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(NonFiniteError, match=r"pooler\.bias"):
        load_checkpoint(tmp_path / "ours")


def test_large_finite_weights_are_no_error(config, weights):
    key = "embeddings.word_embeddings.weight"
    assert from_reference(config, {**weights, key: torch.full_like(weights[key], 3e38)}) is not None


def test_integer_weights(config, weights):
    with pytest.raises(CheckpointError, match=r"pooler\.dense\.bias holds torch\.int64"):
        from_reference(config, {**weights, "pooler.dense.bias": torch.zeros(32, dtype=torch.long)})


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_or_damaged_pickles(zipped, tmp_path, config, weights):
    folder = write(tmp_path, config, {})
    path = folder / "pytorch_model.bin"
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for keep in (0, 1, 2, 10, 100, 1000, len(whole) // 2, len(whole) - 1000, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match="pytorch_model.bin"):
            load_checkpoint(folder)
    noise = random.Random(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(8):
            damaged[noise.randrange(2000)] = noise.randrange(256)
        path.write_bytes(damaged)
        try:
            load_checkpoint(folder)
        except M2RagError:
            continue


def test_truncated_or_damaged_safetensors(tmp_path, config, weights):
    folder = write(tmp_path, config, weights, "model.safetensors")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for keep in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(CheckpointError, match="model.safetensors"):
            load_checkpoint(folder)
    noise = random.Random(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[noise.randrange(4000)] = noise.randrange(256)
        path.write_bytes(damaged)
        try:
            load_checkpoint(folder)
        except M2RagError:
            continue


class Payload:
    """Pickles to a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle", "inside a tensor dict"])
def test_code_in_a_pickle_never_runs(kind, tmp_path, config, weights):
    marker = tmp_path / "executed"
    folder = write(tmp_path / "model", config, {})
    path = folder / "pytorch_model.bin"
    payload: Any = Payload(marker)
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(payload))
    elif kind == "inside a tensor dict":
        torch.save({**weights, "extra": payload}, path)
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointError, match="refused"):
        load_checkpoint(folder)
    assert not marker.exists()
    # The file does what it is meant to do where it is trusted: the test would notice.
    if kind != "bare pickle":
        torch.load(path, weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize("content", [[1, 2], "text", {"a": 1}, {"model": {}}, torch.zeros(3)])
def test_pickles_without_a_state_dict(content, tmp_path, config):
    with pytest.raises(CheckpointError, match="pytorch_model.bin"):
        load_checkpoint(write(tmp_path, config, content))


def test_text_instead_of_weights(tmp_path, config):
    folder = write(tmp_path, config, {})
    for text in (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", b"<html>404</html>"):
        for name in ("pytorch_model.bin", "model.safetensors"):
            (folder / name).write_bytes(text)
            with pytest.raises(CheckpointError, match=name):
                load_checkpoint(folder / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no config.json"),
        ("{", "not readable as JSON"),
        ("[1]", "expected an object"),
        ("\xff\xfe", "not readable"),
        ('{"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4}', "'bert', not an M2-BERT"),
        ("{}", "not an M2-BERT"),
    ],
)
def test_broken_configurations(text, message, tmp_path, weights):
    folder = write(tmp_path, None, weights)
    if text is not None:
        (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"hidden_act": "relu"}, "relu"),
        ({"pad_token_id": 100}, "pad_token_id .100. must be below vocab_size .100."),
        ({"monarch_mlp_nblocks": 5}, r"hidden_size \(32\) must be divisible by monarch_mlp_nblocks \(5\)"),
        ({"hyena_emb_dim": 4}, r"hyena_emb_dim \(4\)"),
        ({"use_glu_mlp": False}, "use_glu_mlp"),
        ({"bidirectional": "yes"}, "bidirectional"),
        ({"vocab_size": None}, "vocab_size"),
        ({"hidden_size": 64}, r"\(100, 32\), the configuration asks for \(100, 64\)"),
        ({"padding": "sometimes"}, "sometimes"),
    ],
)
def test_configurations_that_do_not_fit(changes, message, tmp_path, config, weights):
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(write(tmp_path, {**config, **changes}, weights))


def test_other_models(tmp_path, config):
    """A BERT with M2-BERT's configuration beside it."""
    bert = {
        "bert.embeddings.word_embeddings.weight": torch.zeros(100, 32),
        "bert.encoder.layer.0.attention.self.query.weight": torch.zeros(32, 32),
    }
    with pytest.raises(CheckpointError, match=r"unexpected tensors: .*self\.query"):
        load_checkpoint(write(tmp_path, config, bert))


def test_bare_weights_file(tmp_path, config, weights, expected):
    path = write(tmp_path, None, weights) / "pytorch_model.bin"
    with pytest.raises(CheckpointError, match="config={...}"):
        load_checkpoint(path)
    same(vectors(load_raw(path, config=config)), expected)
    few = {"pool_all": False}
    same(vectors(load_raw(path, config=few)), expected)


def test_places_without_a_checkpoint(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no weights, expected one of model\.safetensors"):
        load_checkpoint(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match="bundled name"):
        load_checkpoint("m2rag-maxi")
    for nothing in ("", ".", "..", "m2rag-mini/../.."):
        with pytest.raises(CheckpointError):
            load_checkpoint(nothing)


def test_wrong_arguments(tmp_path, config, weights):
    folder = write(tmp_path, config, weights)
    with pytest.raises(ValueError, match="'mlm', 'classification'"):
        load_checkpoint(folder, head="mlp")
    with pytest.raises(ValueError, match="head is 'mlp'"):
        from_reference(config, weights, head="mlp")
    with pytest.raises(TypeError, match="pading"):
        load_checkpoint(folder, pading="masked")


def test_bundled_checkpoints_are_found_by_name(tmp_path, monkeypatch, config, weights, expected):
    monkeypatch.setattr(checkpoints, "BUNDLED", tmp_path)
    write(tmp_path / "m2rag-other", config, weights)
    same(vectors(load_raw("m2rag-other")), expected)
    with pytest.raises(CheckpointError, match="m2rag-other"):
        load_checkpoint("m2rag-missing")


def test_repositories(tmp_path, monkeypatch, config, weights, expected):
    folder = write(tmp_path / "snapshot", config, weights)
    asked = []

    def snapshot_download(repository: str, **kwargs: Any) -> str:
        asked.append((repository, kwargs["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    same(vectors(load_raw("togethercomputer/m2-bert-80M-2k-retrieval")), expected)
    [(repository, patterns)] = asked
    assert repository == "togethercomputer/m2-bert-80M-2k-retrieval"
    assert "config.json" in patterns and not any(pattern.endswith(".py") for pattern in patterns)


def test_repositories_that_cannot_be_had(tmp_path, monkeypatch):
    """Offline, as the tests are: one message, whatever the client raises."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("nobody/nothing", "a--b/c..d", "x/" + "y" * 120):
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            load_checkpoint(name)


def test_random_models_of_ours_survive(tmp_path):
    """Multiscale filters store no positions."""
    config = M2BertConfig(**SMALL, filter="multiscale", pooling="mean", use_positional_encodings=False)
    model = M2BertModel(config).eval()
    model.save_pretrained(tmp_path)
    same(vectors(load_checkpoint(tmp_path)), vectors(model))
