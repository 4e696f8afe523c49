"""M2-BERT once more, written for reading: float64, quadratic convolutions, one position formula after the other.

Shares no code with the package: the convolutions are Toeplitz matrices, the block-diagonal matrices are made dense.
Works on tensors under the reference's names, and autograd passes through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import gelu

Weights = Mapping[str, torch.Tensor]


def layer_norm(x: torch.Tensor, weights: Weights, name: str, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return centred / scale * weights[name + ".weight"] + weights[name + ".bias"]


def linear(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def dense(weight: torch.Tensor) -> torch.Tensor:
    return torch.block_diag(*weight) if weight.dim() == 3 else weight


def taps(weights: Weights, prefix: str, side: str, length: int, w_mod: float) -> torch.Tensor:
    """(L, D): the filter's value at distance d, from row d of its positional features."""
    h = weights[prefix + "pos_emb.z"][0, :length]
    for index in ("0", "2", "4"):
        h = torch.sin(
            w_mod * weights[f"{prefix}implicit_filter.1.freq"] * linear(h, weights, f"{prefix}{side}.{index}")
        )
    h = h @ weights[f"{prefix}{side}.6.weight"].T
    t, deltas = weights[prefix + "pos_emb.t"][0, :length], weights[prefix + "modulation.deltas"][0]
    return h * torch.exp(-t * deltas.abs())


def long_convolution(u: torch.Tensor, weights: Weights, prefix: str, config: Mapping[str, Any]) -> torch.Tensor:
    """(B, L, D) -> (B, L, D): a full matrix (L, L) per channel, row = output position, column = input position."""
    length = u.shape[1]
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    forward = taps(weights, prefix, "implicit_filter", length, config["hyena_w_mod"])
    matrix = torch.where((distance >= 0)[..., None], forward[distance.clamp(min=0)], 0.0)
    if config["bidirectional"]:
        backward = taps(weights, prefix, "implicit_filter_rev", length, config["hyena_w_mod"])
        matrix = torch.where((distance < 0)[..., None], backward[(-distance - 1).clamp(min=0)], matrix)
    return torch.einsum("ijd,bjd->bid", matrix, u) + weights[prefix + "bias"] * u


def mixer(u: torch.Tensor, weights: Weights, prefix: str, config: Mapping[str, Any]) -> torch.Tensor:
    if config["hyena_training_additions"]:
        u = layer_norm(u, weights, prefix + "layernorm", 1e-5)
    projected = linear(u, weights, prefix + "in_linear")
    w = weights[prefix + "short_filter.weight"][:, 0]
    one_back = torch.cat([torch.zeros_like(projected[:, :1]), projected[:, :-1]], dim=1)
    two_back = torch.cat([torch.zeros_like(projected[:, :1]), one_back[:, :-1]], dim=1)
    short = w[:, 0] * two_back + w[:, 1] * one_back + w[:, 2] * projected + weights[prefix + "short_filter.bias"]
    x1, x2, v = short.chunk(3, dim=-1)
    y = long_convolution(v * x1, weights, prefix + "filter_fn.", config) * x2
    if config["residual_long_conv"]:
        y = y + long_convolution(u, weights, prefix + "filter_fn2.", config)
    return linear(y, weights, prefix + "out_linear")


def mlp(x: torch.Tensor, weights: Weights, prefix: str, config: Mapping[str, Any]) -> torch.Tensor:
    gated = x @ dense(weights[prefix + "gated_layers.weight"]).T
    inner = config["intermediate_size"]
    hidden = gelu(gated[..., :inner]) * gated[..., inner:]
    y = hidden @ dense(weights[prefix + "wo.weight"]).T + weights[prefix + "wo.bias"] + x
    return layer_norm(y, weights, prefix + "layernorm", config["layer_norm_eps"])


def encode(config: Mapping[str, Any], state_dict: Weights, input_ids: torch.Tensor, prefix: str = "") -> torch.Tensor:
    """Ids (B, L) -> last hidden state (B, L, D). Every id is a token: pads are mixed like the rest."""
    weights = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    x = weights["embeddings.word_embeddings.weight"][input_ids]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    if config["use_positional_encodings"]:
        x = x + weights["embeddings.position_embeddings.weight"][: input_ids.shape[1]]
    x = layer_norm(x, weights, "embeddings.LayerNorm", config["layer_norm_eps"])
    for layer in range(config["num_hidden_layers"]):
        x = mixer(x, weights, f"encoder.layer.{layer}.attention.", config)
        x = mlp(x, weights, f"encoder.layer.{layer}.mlp.", config)
    return x


def pool(
    config: Mapping[str, Any], state_dict: Weights, hidden: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Hidden states (B, L, D), mask (B, L) -> (B, D)."""
    if config["pool_all"]:
        weight = attention_mask.double()[..., None]
        summary = (hidden * weight).sum(1) / weight.sum(1)
    else:
        summary = hidden[:, 0]
    return torch.tanh(linear(summary, state_dict, "pooler.dense"))


def masked_lm_loss(
    config: Mapping[str, Any], state_dict: Weights, input_ids: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Mean cross entropy over the positions whose label is above 0."""
    hidden = encode(config, state_dict, input_ids, prefix="bert.")
    head = "cls.predictions."
    x = gelu(linear(hidden, state_dict, head + "transform.dense"))
    x = layer_norm(x, state_dict, head + "transform.LayerNorm", 1e-12)
    logits = x @ state_dict["bert.embeddings.word_embeddings.weight"].T + state_dict[head + "decoder.bias"]
    chosen = labels > 0
    log_probability = logits[chosen].log_softmax(-1)
    return -log_probability.gather(1, labels[chosen][:, None]).mean()


def in_float64(state_dict: Weights, *, trainable: bool = False) -> dict[str, torch.Tensor]:
    """Double-precision leaves; names that share one tensor in the reference share one here."""
    copies: dict[int, torch.Tensor] = {}
    result = {}
    for name, value in state_dict.items():
        key = value.data_ptr()
        if key not in copies:
            copies[key] = value.double().requires_grad_(trainable)
        result[name] = copies[key]
    return result
