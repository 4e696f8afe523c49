"""Rebuilds the weights behind the golden numbers from tensor names alone.

The recipe is the contract that came with the golden numbers: every tensor of the reference's state dict is drawn from a
generator seeded by its own name, so a model of any size needs no file. Shapes follow from the configuration.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch


def filter_shapes(prefix: str, config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of one implicit filter; the sine frequency is listed under each of its names."""
    order, emb_dim, width = config["hyena_filter_order"], config["hyena_emb_dim"], config["hidden_size"]
    length = config["long_conv_l_max"]
    yield prefix + "bias", (width,)
    yield prefix + "pos_emb.z", (1, length, emb_dim)
    yield prefix + "pos_emb.t", (1, length, 1)
    yield prefix + "modulation.deltas", (1, 1, width)
    for side in ["implicit_filter.", "implicit_filter_rev."][: 1 + config["bidirectional"]]:
        for index, inputs in (("0", emb_dim), ("2", order), ("4", order)):
            yield f"{prefix}{side}{index}.weight", (order, inputs)
            yield f"{prefix}{side}{index}.bias", (order,)
            yield f"{prefix}{side}{int(index) + 1}.freq", (1, order)
        yield f"{prefix}{side}6.weight", (width, order)


def encoder_shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the reference's encoder, without pooler."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    yield "embeddings.word_embeddings.weight", (config["vocab_size"], width)
    yield "embeddings.token_type_embeddings.weight", (config["type_vocab_size"], width)
    if config["use_positional_encodings"]:
        yield "embeddings.position_embeddings.weight", (config["max_position_embeddings"], width)
        yield "embeddings.position_ids", (1, config["max_position_embeddings"])
    yield "embeddings.LayerNorm.weight", (width,)
    yield "embeddings.LayerNorm.bias", (width,)
    for layer in range(config["num_hidden_layers"]):
        mixer, mlp = f"encoder.layer.{layer}.attention.", f"encoder.layer.{layer}.mlp."
        if config["hyena_training_additions"]:
            yield mixer + "layernorm.weight", (width,)
            yield mixer + "layernorm.bias", (width,)
        yield mixer + "in_linear.weight", (3 * width, width)
        yield mixer + "in_linear.bias", (3 * width,)
        yield mixer + "short_filter.weight", (3 * width, 1, 3)
        yield mixer + "short_filter.bias", (3 * width,)
        yield from filter_shapes(mixer + "filter_fn.", config)
        if config["residual_long_conv"]:
            yield from filter_shapes(mixer + "filter_fn2.", config)
        yield mixer + "out_linear.weight", (width, width)
        yield mixer + "out_linear.bias", (width,)
        if config["use_monarch_mlp"]:
            blocks = config["monarch_mlp_nblocks"]
            yield mlp + "gated_layers.weight", (blocks, 2 * inner // blocks, width // blocks)
            yield mlp + "wo.weight", (blocks, width // blocks, inner // blocks)
        else:
            yield mlp + "gated_layers.weight", (2 * inner, width)
            yield mlp + "wo.weight", (width, inner)
        yield mlp + "wo.bias", (width,)
        yield mlp + "layernorm.weight", (width,)
        yield mlp + "layernorm.bias", (width,)


def state_dict_shapes(config: Mapping[str, Any], head: str | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the reference's state dict; with a head, encoder names start with `bert.`."""
    width = config["hidden_size"]
    shapes = dict(encoder_shapes(config))
    if head != "mlm":
        shapes.update({"pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)})
    if head is not None:
        shapes = {f"bert.{name}": shape for name, shape in shapes.items()}
    if head == "mlm":
        predictions = "cls.predictions."
        shapes |= {
            predictions + "transform.dense.weight": (width, width),
            predictions + "transform.dense.bias": (width,),
            predictions + "transform.LayerNorm.weight": (width,),
            predictions + "transform.LayerNorm.bias": (width,),
            predictions + "decoder.weight": (config["vocab_size"], width),
            predictions + "decoder.bias": (config["vocab_size"],),
        }
    elif head == "classification":
        labels = config.get("num_labels", 2)
        shapes |= {"classifier.weight": (labels, width), "classifier.bias": (labels,)}
    return shapes


def analytic(name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
    """Tensors that keep the value they are constructed with; None for all others."""
    if name.endswith("position_ids"):
        return torch.arange(shape[1])[None]
    if name.endswith("modulation.deltas"):
        return torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, shape[-1])[None, None]
    if name.endswith(("pos_emb.t", "pos_emb.z")):
        length, bands = shape[1], (shape[2] - 1) // 2
        t = torch.linspace(0, 1, length)[None, :, None]
        if name.endswith("t"):
            return t
        angle = 2 * math.pi * torch.linspace(0, length - 1, length)[None, :, None] / length
        e = torch.exp(-1j * torch.linspace(1e-4, bands - 1, bands) * angle)
        return torch.cat([t, e.real, e.imag], dim=-1)
    return None


def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The recipe's value of one tensor: first matching rule wins."""
    if name.endswith(".freq"):
        name = name.split("implicit_filter")[0] + "freq"
    n = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith(("LayerNorm.weight", "layernorm.weight")):
        value = 1 + 0.05 * n
    elif name.endswith("freq"):
        value = 10 + 0.1 * n
    elif "implicit_filter" in name and name.endswith("weight"):
        value = n / math.sqrt(shape[-1])
    elif name.endswith("short_filter.weight"):
        value = 0.3 * n
    elif name.endswith(("filter_fn.bias", "filter_fn2.bias")):
        value = n
    elif len(shape) >= 2 and "embeddings" in name:
        value = 0.05 * n
    elif len(shape) >= 2:
        value = 0.5 * n / math.sqrt(shape[-1])
    else:
        value = 0.02 * n
    return torch.from_numpy(value.astype(np.float32, copy=False))


def reference_state_dict(config: Mapping[str, Any], head: str | None = None) -> dict[str, torch.Tensor]:
    """State dict under the reference's names: `head` is None, `"mlm"` or `"classification"`."""
    tensors = {}
    for name, shape in state_dict_shapes(config, head).items():
        value = analytic(name, shape)
        tensors[name] = drawn(name, shape) if value is None else value
    if head == "mlm":
        # One tensor in the reference; the decoder's name was drawn last.
        tensors["bert.embeddings.word_embeddings.weight"] = tensors["cls.predictions.decoder.weight"]
    return tensors
