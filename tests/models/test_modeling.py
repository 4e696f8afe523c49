"""M2-BERT as a Hugging Face model: saving, precision, gradients, and the three padding modes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_recipe import reference_state_dict
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
)

from m2rag.errors import InputTooLongError, InvalidInputError
from m2rag.models import (
    M2BertConfig,
    M2BertForMaskedLM,
    M2BertForSequenceClassification,
    M2BertModel,
    from_reference,
)

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "long_conv_l_max": 64,
    "hyena_filter_order": 8,
}
MINI = {"filter": "multiscale", "pooling": "mean", "padding": "masked", "use_positional_encodings": False}
KINDS: dict[str, dict[str, Any]] = {
    "published": {"padding": "as_given"},
    "faithful": {"padding": "max_length", "pool_all": True},
    "mini": MINI,
    "sketch": {**MINI, "sketch_size": 20},
    "additions": {"hyena_training_additions": True, "padding": "masked"},
    "causal": {"bidirectional": False, "residual_long_conv": False, "padding": "masked"},
}


def make(cls: type = M2BertModel, seed: int = 0, **changes: Any):
    """A random model whose every tensor matters: biases and skip terms differ from their initial values."""
    torch.manual_seed(seed)
    model = cls(M2BertConfig(**{**SMALL, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith((".z", "freq")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def ids(*lengths: int, width: int | None = None, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(width or max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    return torch.randint(1, SMALL["vocab_size"], mask.shape, generator=generator) * mask, mask


@torch.no_grad()
def pooled(model: M2BertModel, input_ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    return model(input_ids, mask).pooler_output


# Saving and loading.

# Equal tensors at other addresses are added up in another order by vectorised code.
ROUNDING = 1e-5


def save_and_poison(model, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save, then make uninitialised memory visible: a buffer that loading forgets becomes NaN."""
    model.save_pretrained(folder)
    empty_like, empty = torch.empty_like, torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))


def same_tensors(again, model) -> None:
    tensors = dict(itertools.chain(again.named_parameters(), again.named_buffers()))
    assert set(again.state_dict()) == set(model.state_dict())
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        assert torch.equal(tensors.pop(name), tensor), name
    assert not tensors, "a tensor that the saved model did not have"


def poison(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.fill_(float("nan")) if tensor.is_floating_point() and not tensor.is_meta else tensor


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("auto", [False, True], ids=["own class", "AutoModel"])
def test_saved_encoder_gives_the_same_vector(kind, auto, tmp_path, monkeypatch):
    model = make(**KINDS[kind])
    input_ids, mask = ids(20, 9)
    expected = pooled(model, input_ids, mask)
    save_and_poison(model, tmp_path, monkeypatch)
    again, info = (AutoModel if auto else M2BertModel).from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is M2BertModel and not again.training
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    same_tensors(again, model)
    torch.testing.assert_close(pooled(again, input_ids, mask), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_saved_masked_lm_gives_the_same_logits(kind, tied, tmp_path, monkeypatch):
    model = make(M2BertForMaskedLM, tie_word_embeddings=tied, **KINDS[kind])
    input_ids, mask = ids(20, 9)
    with torch.no_grad():
        expected = model(input_ids, mask).logits
    save_and_poison(model, tmp_path, monkeypatch)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert (again.head.decoder.weight is again.bert.embeddings.word_embeddings.weight) == tied
    same_tensors(again, model)
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids, mask).logits, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_classifier_gives_the_same_logits(kind, tmp_path, monkeypatch):
    model = make(M2BertForSequenceClassification, num_labels=3, **KINDS[kind])
    input_ids, mask = ids(20, 9)
    with torch.no_grad():
        expected = model(input_ids, mask).logits
    save_and_poison(model, tmp_path, monkeypatch)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    same_tensors(again, model)
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids, mask).logits, expected, rtol=0, atol=ROUNDING)


def test_pretrained_encoder_starts_a_classifier(tmp_path):
    """Fine-tuning: the encoder's tensors arrive, the classifier is new and finite."""
    make(**KINDS["additions"]).save_pretrained(tmp_path)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=4)
    encoder = M2BertModel.from_pretrained(tmp_path)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(classifier.bert.state_dict()[name], tensor), name
    assert classifier.classifier.weight.shape == (4, 32)
    assert torch.isfinite(classifier.classifier.weight).all()


def test_initialisation_spares_loaded_tensors():
    """Some releases initialise after loading and rely on a flag of each tensor; the pad's row is a tensor's slice."""
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        tensor._is_hf_initialized = True
    model.apply(model._init_weights)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_new_models_are_finite_and_reproducible():
    for changes in KINDS.values():
        torch.manual_seed(5)
        one = M2BertForMaskedLM(M2BertConfig(**{**SMALL, **changes}))
        torch.manual_seed(5)
        two = M2BertForMaskedLM(M2BertConfig(**{**SMALL, **changes}))
        for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
            assert torch.isfinite(a).all(), name
            assert torch.equal(a, b), name


# Configuration.


def test_configuration_survives_a_round_trip(tmp_path, golden_cases):
    for name, case in golden_cases.items():
        M2BertConfig(**case["config"], padding="max_length").save_pretrained(tmp_path / name)
        again = AutoConfig.from_pretrained(tmp_path / name)
        assert isinstance(again, M2BertConfig)
        assert again.padding == "max_length"
        for key, value in case["config"].items():
            assert getattr(again, key) == value, key
        assert json.loads((tmp_path / name / "config.json").read_text())["model_type"] == "m2_bert"


def test_pool_all_is_a_name_of_mean_tanh():
    assert M2BertConfig(pool_all=True).pooling == "mean_tanh"
    assert M2BertConfig().pooling == "cls_tanh"
    assert M2BertConfig(pool_all=True, pooling="mean").pooling == "mean"


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({"hidden_size": 770}, ["hidden_size (770)", "monarch_mlp_nblocks (4)"]),
        ({"intermediate_size": 3070}, ["intermediate_size (3070)", "monarch_mlp_nblocks (4)"]),
        ({"hyena_emb_dim": 4}, ["hyena_emb_dim (4)", "at least 3"]),
        ({"hyena_emb_dim": 1}, ["hyena_emb_dim (1)", "at least 3"]),
        ({"padding": "longest"}, ["'longest'", "'masked'"]),
        ({"pooling": "cls"}, ["'cls'", "'cls_tanh'"]),
        ({"filter": "mamba"}, ["'mamba'", "'multiscale'"]),
        ({"pad_token_id": 30528}, ["pad_token_id (30528)", "vocab_size (30528)"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers is 0", "at least 1"]),
        ({"monarch_mixer_sequence_mixing": False}, ["monarch_mixer_sequence_mixing"]),
        ({"hidden_act": "relu"}, ["'relu'", "'gelu'"]),
        ({"hidden_size": "768"}, ["hidden_size", "'768'"]),
        ({"sketch_size": 768, "pooling": "mean"}, ["sketch_size is 768", "hidden_size - 1"]),
        ({"sketch_size": 8}, ["sketch_size is 8", "'cls_tanh'"]),
        ({"sketch_size": 8, "pooling": "mean", "padding": "max_length"}, ["sketch_size is 8", "'max_length'"]),
    ],
)
def test_bad_configuration_names_both_numbers(changes, numbers):
    with pytest.raises(StrictDataclassError) as caught:
        M2BertConfig(**changes)
    for number in numbers:
        assert number in str(caught.value)


def test_dense_mlp_needs_no_divisible_width():
    assert M2BertConfig(use_monarch_mlp=False, hidden_size=30, intermediate_size=61).n_blocks == 1


def test_longest_input_is_what_positions_and_filters_reach():
    short_filters = {**SMALL, "long_conv_l_max": 40}
    long_filters = {**SMALL, "long_conv_l_max": 200}
    assert M2BertConfig(**short_filters).max_tokens == 40
    assert M2BertConfig(**long_filters).max_tokens == 64
    assert M2BertConfig(**long_filters, use_positional_encodings=False).max_tokens == 200
    # Padded inputs have the trained length, whatever the filters could do.
    faithful = M2BertConfig(**long_filters, use_positional_encodings=False, padding="max_length")
    assert faithful.max_tokens == 64


# Precision.


@pytest.mark.parametrize("kind", ["published", "mini"])
def test_filters_stay_in_fp32_under_bfloat16(kind, tmp_path):
    model = make(**KINDS[kind])
    model.save_pretrained(tmp_path)
    half = M2BertModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, tensor in itertools.chain(half.named_parameters(), half.named_buffers()):
        inside_a_filter = ".filter." in name or ".residual_filter." in name
        assert tensor.dtype == (torch.float32 if inside_a_filter else torch.bfloat16), name
    for name, tensor in model.named_parameters():
        if "filter." in name:
            assert torch.equal(half.get_parameter(name), tensor), name
    input_ids, mask = ids(30, 11)
    got = pooled(half, input_ids, mask)
    assert got.dtype == torch.bfloat16
    cosine = F.cosine_similarity(got.float(), pooled(model, input_ids, mask))
    assert cosine.min() > 0.995


def test_autocast_trains_with_fp32_filters():
    model = make(**MINI).train()
    input_ids, mask = ids(30, 11)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(input_ids, mask).pooler_output
    output.float().square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


# Gradients and losses.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "cls", [M2BertModel, M2BertForMaskedLM, M2BertForSequenceClassification], ids=lambda cls: cls.__name__
)
def test_gradients_reach_every_parameter(cls, kind):
    model = make(cls, **KINDS[kind]).train()
    input_ids, mask = ids(40, 40, 23, width=40)
    if cls is M2BertModel:
        loss = model(input_ids, mask).pooler_output.square().sum()
    elif cls is M2BertForMaskedLM:
        loss = model(input_ids, mask, labels=input_ids).loss
    else:
        loss = model(input_ids, mask, labels=torch.tensor([0, 1, 1])).loss
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kernels", ["naive", "train"])
@pytest.mark.parametrize("kind", ["published", "mini", "additions"])
def test_gradient_checkpointing_changes_memory_only(kind, kernels):
    """The same loss and gradients, dropout included, from layers that are computed twice; nothing at inference."""
    model = make(M2BertForMaskedLM, **KINDS[kind], hidden_dropout_prob=0.2).train()
    model.kernels = kernels
    input_ids, mask = ids(40, 23, width=40)

    def loss_and_gradients() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        torch.manual_seed(5)
        model.zero_grad()
        loss = model(input_ids, mask, labels=input_ids).loss
        loss.backward()
        return loss, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    loss, gradients = loss_and_gradients()
    # transformers gives it a new name in one of the releases we take.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    calls = [0] * len(model.bert.layers)
    for number, layer in enumerate(model.bert.layers):
        layer.mixer.register_forward_pre_hook(lambda *_, n=number: calls.__setitem__(n, calls[n] + 1))
    again, same_gradients = loss_and_gradients()
    assert calls == [2, 2]
    torch.testing.assert_close(again, loss, rtol=0, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            same_gradients[name], gradient, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )

    calls[:] = [0, 0]
    model.kernels = "auto"
    pooled(model.bert.eval(), input_ids, mask)
    assert calls == [1, 1]


def test_dropout_acts_in_training_only():
    model = make(hidden_dropout_prob=0.5, hyena_training_additions=True)
    input_ids, _ = ids(20)
    torch.testing.assert_close(pooled(model, input_ids), pooled(model, input_ids), rtol=0, atol=ROUNDING)
    model.train()
    assert not torch.equal(pooled(model, input_ids), pooled(model, input_ids))
    without = make(hidden_dropout_prob=0.0, hyena_training_additions=True).train()
    torch.testing.assert_close(pooled(without, input_ids), pooled(without.eval(), input_ids), rtol=0, atol=1e-5)


def test_masked_lm_labels():
    """-100 and the pad's 0 ask for nothing; the rest is the mean cross entropy of its positions."""
    model = make(M2BertForMaskedLM, padding="as_given")
    input_ids, mask = ids(20, 9)
    labels = torch.full_like(input_ids, -100)
    labels[0, 3], labels[1, 5], labels[1, 15] = 17, 42, 0
    with torch.no_grad():
        output = model(input_ids, mask, labels=labels)
        log_probability = model(input_ids, mask).logits.log_softmax(-1)
    by_hand = -(log_probability[0, 3, 17] + log_probability[1, 5, 42]) / 2
    assert output.loss.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_masked_lm_in_parts():
    """Logits of the labelled positions alone give the same loss and gradients; parts of a batch add up to it."""
    model = make(M2BertForMaskedLM, **MINI, hidden_dropout_prob=0.0).train()
    input_ids, mask = ids(40, 40, 23, width=40)
    labels = torch.where(torch.rand(input_ids.shape, generator=torch.Generator().manual_seed(4)) < 0.3, input_ids, -100)
    whole = model(input_ids, mask, labels=labels)
    whole.loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    model.zero_grad()
    n = int((labels > 0).sum())
    loss = 0.0
    for rows in (slice(0, 1), slice(1, 3)):
        part = model(input_ids[rows], mask[rows], labels=labels[rows], labelled_only=True, num_items_in_batch=n)
        part.loss.backward()
        loss += part.loss.item()
        torch.testing.assert_close(part.logits, whole.logits[rows][labels[rows] > 0], rtol=0, atol=1e-5)
    assert loss == pytest.approx(whole.loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        difference = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert difference < 1e-4, f"{name}: {difference:.1e}"


def test_classification_losses():
    input_ids, mask = ids(20, 9, 4)
    cases = {
        "one output": (dict(num_labels=1), torch.tensor([0.5, -1.0, 2.0]), lambda x, y: ((x[:, 0] - y) ** 2).mean()),
        "column of targets": (
            dict(num_labels=1),
            torch.tensor([[0.5], [-1.0], [2.0]]),
            lambda x, y: ((x - y) ** 2).mean(),
        ),
        "several regressions": (
            dict(num_labels=2, problem_type="regression"),
            torch.tensor([[0.5, 1.0], [-1.0, 0.0], [2.0, 3.0]]),
            lambda x, y: ((x - y) ** 2).mean(),
        ),
        "classes": (
            dict(num_labels=3),
            torch.tensor([2, 0, 1]),
            lambda x, y: -x.log_softmax(-1)[torch.arange(3), y].mean(),
        ),
        "several labels": (
            dict(num_labels=2),
            torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]),
            lambda x, y: -(y * x.sigmoid().log() + (1 - y) * (1 - x.sigmoid()).log()).mean(),
        ),
        "several labels by name": (
            dict(num_labels=2, problem_type="multi_label_classification"),
            torch.tensor([[0, 1], [1, 1], [0, 0]]),
            lambda x, y: -(y * x.sigmoid().log() + (1 - y) * (1 - x.sigmoid()).log()).mean(),
        ),
    }
    for name, (changes, labels, by_hand) in cases.items():
        model = make(M2BertForSequenceClassification, **changes)
        with torch.no_grad():
            output = model(input_ids, mask, labels=labels)
        assert output.loss.item() == pytest.approx(by_hand(output.logits, labels).item(), rel=1e-5), name


# Bad input.


@pytest.mark.parametrize("padding", ["masked", "max_length", "as_given"])
def test_too_long_input_is_an_error(padding):
    model = make(padding=padding)
    assert pooled(model, ids(64)[0]).shape == (1, 32)
    with pytest.raises(InputTooLongError, match=r"65 tokens, the limit is 64"):
        model(ids(65)[0])


@pytest.mark.parametrize("changes", [MINI, {"padding": "masked"}, {"padding": "as_given", "pool_all": True}])
def test_row_without_tokens_is_an_error(changes):
    model = make(**changes)
    input_ids, mask = ids(5, 3)
    mask[1] = 0
    with pytest.raises(InvalidInputError, match="row without any token"):
        model(input_ids, mask)
    with pytest.raises(InvalidInputError, match=r"\(2, 0\)"):
        model(input_ids[:, :0], mask[:, :0])


# Masked padding: the vector of a document depends on nothing but the document.

MASKED_KINDS = {
    "mini": MINI,
    "hyena filters": {**MINI, "filter": "hyena"},
    "positions and cls": {"padding": "masked"},
    "training additions": {"padding": "masked", "pool_all": True, "hyena_training_additions": True},
    "causal": {**MINI, "bidirectional": False},
    "no residual, dense": {**MINI, "residual_long_conv": False, "use_monarch_mlp": False},
}


@pytest.mark.parametrize("kernels", ["naive", "cpu"])
@pytest.mark.parametrize("kind", MASKED_KINDS)
def test_masked_vectors_do_not_depend_on_padding_or_batch(kind, kernels):
    model = make(**MASKED_KINDS[kind])
    model.kernels = kernels
    lengths = (20, 1, 64, 7, 33)
    input_ids, mask = ids(*lengths)
    alone = torch.cat([pooled(model, input_ids[i : i + 1, :n]) for i, n in enumerate(lengths)])
    assert alone.std(0).min() > 1e-3, "vectors of different documents must differ for this to prove anything"

    def close(got: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)

    close(pooled(model, input_ids, mask), alone)
    for i, n in enumerate(lengths):
        for width in {n, min(n + 1, 64), min(2 * n, 64), 64}:
            close(pooled(model, input_ids[i : i + 1, :width], mask[i : i + 1, :width]), alone[i : i + 1])
    order = torch.tensor([3, 0, 4, 2, 1])
    close(pooled(model, input_ids[order], mask[order]), alone[order])
    close(pooled(model, input_ids[:2, :20], mask[:2, :20].bool()), alone[:2])


@pytest.mark.parametrize("filter_kind", ["hyena", "multiscale"])
def test_left_padding_is_as_good_without_positions(filter_kind):
    """Convolutions see distances only, so a mean-pooled model without positions may be padded on either side."""
    model = make(**{**MINI, "filter": filter_kind})
    input_ids, mask = ids(20, 9)
    left_ids = torch.stack([input_ids[0], input_ids[1].roll(11)])
    left_mask = torch.stack([mask[0], mask[1].roll(11)])
    expected = pooled(model, input_ids, mask)
    torch.testing.assert_close(pooled(model, left_ids, left_mask), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernels", ["naive", "cpu"])
@pytest.mark.parametrize("kind", MASKED_KINDS)
def test_nothing_leaks_out_of_pads(kind, kernels):
    """The pad's embedding is NaN: any use of it in a vector or in a token's state would show."""
    model = make(**MASKED_KINDS[kind])
    model.kernels = kernels
    input_ids, mask = ids(20, 9)
    expected = pooled(model, input_ids, mask)
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[0] = float("nan")
        output = model(input_ids, mask)
    torch.testing.assert_close(output.pooler_output, expected, rtol=0, atol=1e-5)
    assert torch.isfinite(output.last_hidden_state[mask.bool()]).all()


def test_ids_at_masked_places_do_not_matter():
    model = make(**MINI)
    input_ids, mask = ids(20, 9)
    other = torch.where(mask.bool(), input_ids, 57)
    torch.testing.assert_close(pooled(model, other, mask), pooled(model, input_ids, mask), rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=5), st.integers(0, 10_000))
def test_masked_batches_of_any_lengths(lengths, seed):
    model = make(**MINI)
    input_ids, mask = ids(*lengths, seed=seed)
    together = pooled(model, input_ids, mask)
    alone = torch.cat([pooled(model, input_ids[i : i + 1, :n]) for i, n in enumerate(lengths)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


# Faithful and raw padding.


@pytest.mark.parametrize("kernels", ["naive", "cpu"])
@pytest.mark.parametrize("pool_all", [False, True])
def test_faithful_mode_is_manual_padding_whatever_the_batch(pool_all, kernels, tiny_config):
    config = {**tiny_config, **SMALL, "pool_all": pool_all}
    weights = reference_state_dict(config)
    raw, faithful = from_reference(config, weights), from_reference({**config, "padding": "max_length"}, weights)
    raw.kernels = faithful.kernels = kernels
    lengths = (20, 1, 64, 7)
    input_ids, mask = ids(*lengths)
    expected = pooled(raw, input_ids, mask)
    torch.testing.assert_close(pooled(faithful, input_ids, mask), expected, rtol=0, atol=1e-5)
    for i, n in enumerate(lengths):
        alone = pooled(faithful, input_ids[i : i + 1, :n], None if i % 2 else mask[i : i + 1, :n])
        torch.testing.assert_close(alone, expected[i : i + 1], rtol=0, atol=1e-5)
    with torch.no_grad():
        output = faithful(input_ids[:1, :20])
    assert output.last_hidden_state.shape == (1, 20, 32), "the added pads are not handed out"


def test_faithful_mode_without_positions_cuts_nothing():
    """Filters longer than the trained length: no input may be padded by a negative amount."""
    model = make(padding="max_length", use_positional_encodings=False, long_conv_l_max=128)
    with pytest.raises(InputTooLongError, match="limit is 64"):
        model(ids(100)[0])
    assert pooled(model, ids(64)[0]).shape == (1, 32)
    short_filters = make(padding="max_length", use_positional_encodings=False, long_conv_l_max=32)
    assert pooled(short_filters, ids(10)[0]).shape == (1, 32)


def test_raw_mode_mixes_pads_like_tokens():
    """What the reference does: padding changes the vector, the mask only enters the mean."""
    model = make(padding="as_given")
    input_ids, mask = ids(9, width=20)
    assert not torch.allclose(pooled(model, input_ids), pooled(model, input_ids[:, :9]), atol=1e-4)
    torch.testing.assert_close(pooled(model, input_ids, mask), pooled(model, input_ids), rtol=0, atol=ROUNDING)
    mean = make(padding="as_given", pool_all=True)
    assert not torch.allclose(pooled(mean, input_ids, mask), pooled(mean, input_ids), atol=1e-4)


def test_token_types_are_added():
    model = make(padding="max_length")
    input_ids, _ = ids(12)
    types = torch.zeros_like(input_ids)
    with torch.no_grad():
        zeros = model(input_ids, token_type_ids=types).pooler_output
        types[0, 6:] = 1
        ones = model(input_ids, token_type_ids=types).pooler_output
    torch.testing.assert_close(zeros, pooled(model, input_ids), rtol=0, atol=ROUNDING)
    assert not torch.allclose(ones, zeros, atol=1e-4)


# Auto classes.


def test_auto_classes_build_ours_and_leave_bert_alone():
    assert type(AutoModel.from_config(M2BertConfig(**SMALL))) is M2BertModel
    assert type(AutoModelForMaskedLM.from_config(M2BertConfig(**SMALL))) is M2BertForMaskedLM
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 64}
    assert type(AutoModel.from_config(BertConfig(**sizes))).__name__ == "BertModel"
