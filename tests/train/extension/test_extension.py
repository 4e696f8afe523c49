"""Longer contexts: what must stay what it was, what must be in reach, and what it costs on text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pretraining import MODEL, UNIGRAM_LOSS, make_recipe, options, write_cycles, write_recipe

from m2rag import M2Embedder
from m2rag.models import (
    M2BertConfig,
    M2BertForMaskedLM,
    M2BertForSequenceClassification,
    M2BertModel,
    load_checkpoint,
)
from m2rag.models.modeling_m2_bert import HyenaFilter
from m2rag_train.errors import RecipeError, TrainingDataError
from m2rag_train.extension.extend import extend_context
from m2rag_train.recipe import load_recipe

SHORT = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "long_conv_l_max": 16,
    "max_position_embeddings": 16,
    "hyena_filter_order": 8,
    "hidden_dropout_prob": 0.0,
    "pooling": "mean",
    "initializer_range": 0.2,
}
NO_POSITIONS = {"use_positional_encodings": False}


def model_of(cls: type = M2BertModel, **changes: Any) -> Any:
    """A random model whose grids were trained: none of them has its first values any more."""
    torch.manual_seed(0)
    model = cls(M2BertConfig(**{**SHORT, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(
                1e-3 * torch.randn_like(parameter) if name.endswith(".z") else 0.01 * torch.randn_like(parameter)
            )
    return model.eval()


def filters_of(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, HyenaFilter)]


@torch.no_grad()
def hidden(model: Any, ids: torch.Tensor, kernels: str = "naive") -> torch.Tensor:
    model.kernels = kernels
    return model(ids).last_hidden_state


def tokens(length: int) -> torch.Tensor:
    return torch.randint(1, 100, (2, length), generator=torch.Generator().manual_seed(1))


# Filters


@pytest.mark.parametrize("kind", ["hyena", "multiscale"])
@pytest.mark.parametrize("lengths", [(64,), (32, 64, 256)], ids=["at once", "in steps"])
def test_kept_filters_read_as_before(kind: str, lengths: tuple[int, ...]) -> None:
    """Without positions nothing else knows the length: every input of the old length gives the old vectors."""
    model = model_of(filter=kind, **NO_POSITIONS)
    extended = model
    for length in lengths:
        extended = extend_context(extended, length, filters="keep")
    assert extended.config.max_tokens == lengths[-1]
    for length in (16, 7):
        torch.testing.assert_close(hidden(extended, tokens(length)), hidden(model, tokens(length)), rtol=0, atol=1e-5)
    assert hidden(extended, tokens(lengths[-1])).isfinite().all()


@pytest.mark.parametrize("kind", ["hyena", "multiscale"])
def test_kept_filters_of_an_untrained_model_go_on_as_they_began(kind: str) -> None:
    """The grid of one step to 64 is that of two, and its untrained part is the function that the old part samples."""
    model = model_of(filter=kind, **NO_POSITIONS)
    at_once, in_steps = extend_context(model, 64), extend_context(extend_context(model, 40), 64)
    for name, tensor in at_once.state_dict().items():
        torch.testing.assert_close(tensor, in_steps.state_dict()[name], rtol=0, atol=1e-6, msg=name)
    for filter_ in filters_of(at_once):
        step = filter_.t[1:] - filter_.t[:-1]
        torch.testing.assert_close(step, torch.full_like(step, 1 / 15), rtol=0, atol=1e-6)
        # 16 positions are one turn: the features come again, but for the part that was trained.
        torch.testing.assert_close(filter_.z[16:32, 2], filter_.z[32:48, 2], rtol=0, atol=1e-2)


def test_stretched_taps_are_the_same_further_apart() -> None:
    model = model_of(**NO_POSITIONS)
    at_once = extend_context(model, 256, filters="stretch")
    in_steps = extend_context(extend_context(model, 64, filters="stretch"), 256, filters="stretch")
    for before, *after in zip(filters_of(model), filters_of(at_once), filters_of(in_steps), strict=True):
        with torch.no_grad():
            old, once, steps = (torch.cat(filter_(filter_.l_max)) for filter_ in (before, *after))
        # The sum stays: taps are as many times smaller as there are more of them.
        assert (once[:, ::16] * 16 - old).norm() / old.norm() < 1e-3
        assert (steps[:, ::16] * 16 - old).norm() / old.norm() < 1e-2


def test_a_stretched_filter_is_near_that_of_a_longer_model() -> None:
    torch.manual_seed(0)
    config = {**SHORT, **NO_POSITIONS}
    short, long = M2BertModel(M2BertConfig(**config)), M2BertModel(M2BertConfig(**{**config, "long_conv_l_max": 64}))
    for got, expected in zip(filters_of(extend_context(short, 64, filters="stretch")), filters_of(long), strict=True):
        torch.testing.assert_close(got.z[:, 1:], expected.z[:, 1:], rtol=0, atol=1e-5)
        # Both begin at 0 and end near 1.
        torch.testing.assert_close(got.t, expected.t, rtol=0, atol=0.06)


def test_kept_after_stretched_goes_on_smoothly() -> None:
    """The period of the features is then no longer the number of positions."""
    model = model_of(long_conv_l_max=64, max_position_embeddings=64, **NO_POSITIONS)
    stretched = extend_context(model, 256, filters="stretch")
    kept = extend_context(stretched, 1024, filters="keep")
    for filter_ in filters_of(kept):
        turn = filter_.z[:, [2, 4]].detach()
        torch.testing.assert_close(turn[256:512], turn[512:768], rtol=0, atol=1e-2)
        # No seam: from each position to the next it turns by a 256th, wherever one looks.
        steps = (turn[1:] - turn[:-1]).norm(dim=1)
        assert steps[256:].max() < 1.1 * 6.2832 / 256 and steps[:256].max() < 1.5 * 6.2832 / 256


def test_what_is_in_reach_after_an_extension() -> None:
    """A token 200 places away: kept filters do not see it, stretched ones do."""
    model = model_of(num_hidden_layers=1, **NO_POSITIONS)
    ids = tokens(256)
    other = ids.clone()
    other[:, 210] = (other[:, 210] + 7) % 99 + 1

    def influence(filters: Any) -> float:
        extended = extend_context(model, 256, filters=filters)
        return float((hidden(extended, ids)[:, 10] - hidden(extended, other)[:, 10]).abs().max())

    assert influence("keep") < 1e-6 < 1e-4 < influence("stretch")


def test_multiscale_time_constants() -> None:
    model = model_of(filter="multiscale", **NO_POSITIONS)
    kept, stretched = extend_context(model, 256), extend_context(model, 256, filters="stretch")
    scales = [m.layers[0].mixer.filter.time_constants() for m in (model, kept, stretched)]
    torch.testing.assert_close(scales[0], scales[1])
    assert (float(scales[2][0]), float(scales[2][-1])) == pytest.approx((2, 256))
    # Stretched later, it forgets that it was kept.
    again = extend_context(kept, 512, filters="stretch")
    assert again.config.multiscale_l_max is None
    assert float(again.layers[0].mixer.filter.time_constants()[-1]) == pytest.approx(512)


@pytest.mark.parametrize("filters", ["keep", "stretch"])
@pytest.mark.parametrize("kind", ["hyena", "multiscale"])
def test_fast_paths_agree_on_extended_models(kind: str, filters: Any) -> None:
    """Windows that end long before the input does are cut by the cpu path."""
    extended = extend_context(model_of(filter=kind, **NO_POSITIONS), 2048, filters=filters)
    ids = tokens(2000)
    expected = hidden(extended, ids)
    torch.testing.assert_close(hidden(extended, ids, "cpu"), expected, rtol=0, atol=2e-4)
    torch.testing.assert_close(hidden(extended, ids, "train"), expected, rtol=0, atol=2e-4)


# Positions


def test_tiled_positions_begin_again() -> None:
    model = model_of()
    weight = model.embeddings.position_embeddings.weight
    got = extend_context(model, 40, positions="tile").embeddings.position_embeddings.weight
    assert torch.equal(got, torch.cat([weight, weight, weight[:8]]))


def test_interpolated_positions_have_the_same_ends() -> None:
    model = model_of()
    weight = model.embeddings.position_embeddings.weight
    got = extend_context(model, 31, positions="interpolate").embeddings.position_embeddings.weight
    assert got.shape == (31, 16)
    torch.testing.assert_close(got[::2], weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(got[1::2], (weight[1:] + weight[:-1]) / 2, rtol=0, atol=1e-6)


def test_tiled_and_kept_reads_short_inputs_as_before() -> None:
    model = model_of()
    extended = extend_context(model, 64)
    torch.testing.assert_close(hidden(extended, tokens(16)), hidden(model, tokens(16)), rtol=0, atol=1e-5)


# The model


@pytest.mark.parametrize("cls", [M2BertModel, M2BertForMaskedLM, M2BertForSequenceClassification])
def test_every_head_and_file(cls: type, tmp_path: Path) -> None:
    model = model_of(cls)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    extended = extend_context(model, 2048, filters="stretch")
    assert type(extended) is cls and not extended.training
    extended.save_pretrained(tmp_path)
    heads = {M2BertModel: None, M2BertForMaskedLM: "mlm", M2BertForSequenceClassification: "classification"}
    again = load_checkpoint(tmp_path, head=heads[cls])
    assert again.config.max_tokens == 2048
    for name, tensor in extended.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    # The given model is as it was, and shares nothing with the new one.
    with torch.no_grad():
        for parameter in extended.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_embedder_tells_a_kept_model_from_a_stretched_one(tmp_path: Path) -> None:
    """Both have the same weights where filters store nothing: an index of one must refuse the other."""
    model = model_of(filter="multiscale", vocab_size=30522, **NO_POSITIONS)
    embedders = []
    for filters in ("keep", "stretch"):
        extend_context(model, 64, filters=filters).save_pretrained(tmp_path / filters)
        embedders.append(M2Embedder(tmp_path / filters))
    assert embedders[0].max_tokens == 64
    kept, stretched = (embedder.fingerprint for embedder in embedders)
    assert kept != stretched


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"max_tokens": 16}, "max_tokens is 16, the model takes 16 already"),
        ({"max_tokens": 32, "positions": "repeat"}, "positions is 'repeat'"),
        ({"max_tokens": 32, "filters": "cut"}, "filters 'cut'"),
    ],
)
def test_what_cannot_be_extended(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        extend_context(model_of(), **arguments)


def test_to_32k_in_steps() -> None:
    """128 -> 2k -> 8k -> 32k, and it reads 32,768 tokens."""
    model = model_of(hidden_size=8, intermediate_size=16, long_conv_l_max=128, max_position_embeddings=128)
    for length, filters in ((2048, "stretch"), (8192, "keep"), (32768, "stretch")):
        model = extend_context(model, length, positions="interpolate", filters=filters)
        assert model.config.max_tokens == length
    with torch.no_grad():
        model.kernels = "auto"
        output = model(tokens(32768)[:1])
    assert output.last_hidden_state.shape == (1, 32768, 8) and output.last_hidden_state.isfinite().all()


# The recipe: pretrain, extend, go on


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cycles.jsonl`, and `short`: a model that has learned them at 32 tokens."""
    folder = tmp_path_factory.mktemp("extension")
    write_cycles(folder)
    recipe = make_recipe(
        folder, steps=70, batch_size=16, micro_batch_size=16, save_every=1000, weight_decay=0.0,
        token_cache=str(folder / "tokens"), model={**MODEL, **NO_POSITIONS},
    )  # fmt: skip
    recipe.run(options(folder, folder / "short"))
    return folder


def extend_data(folder: Path, **changes: Any) -> dict[str, Any]:
    base = {
        "kind": "extend",
        "name": "longer",
        "base": str(folder / "short" / "model"),
        "max_tokens": 128,
        "sources": [{"name": "long", "files": ["cycles.jsonl"], "mode": "concatenated"}],
        "rows": 4,
        "held_out": 0.1,
        "token_cache": str(folder / "tokens"),
    }
    return {**base, **changes}


def test_extension_keeps_what_was_learned_and_training_goes_on(pretrained: Path) -> None:
    """Kept filters lose next to nothing, stretched ones more, and a few steps at the new length make up for it."""
    run = pretrained / "longer"
    recipe = load_recipe(write_recipe(pretrained, extend_data(pretrained, filters="stretch")))
    assert recipe.run(options(pretrained, run)) == run / "model"
    report = json.loads((run / "extension.json").read_text(encoding="utf-8"))
    before = report["before"]["loss"]
    after = {way["filters"]: way["loss"] for way in report["after"]}
    assert (report["before"]["max_tokens"], report["after"][0]["max_tokens"]) == (32, 128)
    assert before < UNIGRAM_LOSS - 1.5
    assert after["keep"] < before + 0.3
    assert after["stretch"] > after["keep"] + 0.3

    further = make_recipe(
        pretrained, steps=20, batch_size=8, micro_batch_size=8, save_every=1000, weight_decay=0.0, lr=5e-3,
        model=None, base=str(run / "model"), token_cache=str(pretrained / "tokens"),
        sources=[{"name": "long", "files": ["cycles.jsonl"], "mode": "concatenated"}],
    )  # fmt: skip
    model = further.run(options(pretrained, pretrained / "further"))
    losses = json.loads((pretrained / "further" / "evaluation.json").read_text(encoding="utf-8"))
    assert losses["eval_loss"] < after["stretch"] - 0.5, (losses, after)
    assert model is not None and load_checkpoint(model, head="mlm").config.max_tokens == 128


def test_without_sources_nothing_is_measured(pretrained: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, extend_data(pretrained, sources=[], max_tokens=64)))
    model = recipe.run(options(pretrained, tmp_path / "run"))
    assert model is not None and M2Embedder(model).max_tokens == 64
    assert not (tmp_path / "run" / "extension.json").exists()


def test_extension_says_what_is_wrong(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="max_tokens is 32, .* takes 32 already"):
        load_recipe(write_recipe(tmp_path, extend_data(pretrained, max_tokens=32))).run(options(pretrained, tmp_path))
    few = extend_data(pretrained, held_out=0.001)
    with pytest.raises(TrainingDataError, match="'long' has too few documents to hold any out"):
        load_recipe(write_recipe(tmp_path, few)).run(options(pretrained, tmp_path))
