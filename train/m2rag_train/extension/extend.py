"""A trained model -> the same model for longer inputs."""

from __future__ import annotations

import copy
import math
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from m2rag.models.modeling_m2_bert import HyenaFilter, M2BertPreTrainedModel

Positions = Literal["tile", "interpolate"]
Filters = Literal["keep", "stretch"]

ModelT = TypeVar("ModelT", bound=M2BertPreTrainedModel)


def extend_context(
    model: ModelT, max_tokens: int, *, positions: Positions = "tile", filters: Filters = "keep"
) -> ModelT:
    """A copy of the model that takes inputs of up to `max_tokens`, in eval mode. The given one is left as it is.

    Only two parts of an M2-BERT know the length, and each can go on in two ways.

    Learned absolute positions, in models that have them:
    - "tile": position p becomes p modulo the old length: neighbours stay neighbours, except where a copy ends, and the
      embedding that only ever met [CLS] turns up again. The published 32k models were made so.
    - "interpolate": the old positions are spread over the new length: no seams, and no copies; neighbours are closer
      to each other than they were.

    Filters, whose taps are a function of the distance:
    - "keep": the tap at a distance of d tokens stays what it was, and the function goes on beyond the old length: the
      model reads what it learned to read, at once. Its windows decay as before, so in a Hyena filter what lies much
      further away than the old length stays out of reach; it passes on from layer to layer only.
    - "stretch": taps are a function of d / length, as in a model trained at the new length from the beginning. A
      Hyena filter at 16 times the length spreads what it did over one token over 16, with taps divided by 16 so that
      their sum stays; a multiscale filter spaces its time constants up to the new length. All of the input is in reach,
      but what the filters did to neighbours has to be learned anew.

    Right after extending a small Hyena model (3 layers of 128 channels) from 128 to 2,048 tokens, the loss on manuals
    and design proposals went from 4.14 to 4.09 with kept filters, as fewer tokens stand at an edge, and to 5.46 with
    stretched ones (more than 8 where taps were not divided). Both kinds of positions were within 0.02 of each other.

    Args:
        model: an encoder, or one with a head, with "hyena" or "multiscale" filters.
        max_tokens: longest input, special tokens included.

    Raises:
        ValueError: `max_tokens` is not above what the model takes, or an unknown mode.
    """
    if positions not in ("tile", "interpolate") or filters not in ("keep", "stretch"):
        raise ValueError(
            f"positions is {positions!r} and filters {filters!r}: must be 'tile' or 'interpolate', 'keep' or 'stretch'"
        )
    config = copy.deepcopy(model.config)
    if max_tokens <= config.max_tokens:
        raise ValueError(f"max_tokens is {max_tokens}, the model takes {config.max_tokens} already")
    if config.filter == "multiscale" and filters == "keep":
        config.multiscale_l_max = config.multiscale_l_max or config.long_conv_l_max
    elif config.filter == "multiscale":
        config.multiscale_l_max = None
    config.long_conv_l_max = max(max_tokens, config.long_conv_l_max)
    config.max_position_embeddings = max(max_tokens, config.max_position_embeddings)

    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        if name.endswith("position_embeddings"):
            tensors[f"{name}.weight"] = _extended_positions(
                tensors[f"{name}.weight"], config.max_position_embeddings, positions
            )
        elif isinstance(module, HyenaFilter):
            tensors.update(_extended_filter(name, module, config.long_conv_l_max, filters))
    # Nothing is drawn at random: every parameter is one of the tensors.
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        extended = type(model)(config)
    extended.load_state_dict(tensors, assign=True)
    extended.tie_weights()
    extended.kernels = model.kernels
    extended.compute_dtype = model.compute_dtype
    return extended.eval()


def _extended_positions(weight: torch.Tensor, length: int, mode: Positions) -> torch.Tensor:
    """Position embeddings (L, D) -> (length, D)."""
    if mode == "tile":
        return weight[torch.arange(length, device=weight.device) % len(weight)]
    # First and last stay where they were.
    return F.interpolate(weight.t()[None], size=length, mode="linear", align_corners=True)[0].t().contiguous()


def _extended_filter(name: str, module: HyenaFilter, length: int, mode: Filters) -> dict[str, torch.Tensor]:
    """Grids of `length` positions for a Hyena filter, and its output weights where they change."""
    z, t = module.z.detach(), module.t.detach()
    old = len(t)
    step, period = float(t[-1]) / max(old - 1, 1), _period(z)
    learned = (z - _features(old, z, step, period)).t()[None]
    tensors = {}
    if mode == "keep":
        learned = F.pad(learned, (0, length - old))
    else:
        # What was at position p is at p * length / old.
        step, period = step * old / length, period * length / old
        reached = (old - 1) * length // old + 1
        learned = F.interpolate(learned, size=reached, mode="linear", align_corners=True)
        learned = F.pad(learned, (0, length - reached), mode="replicate")
        for part in ("mlp", "mlp_rev"):
            mlp = getattr(module, part)
            if mlp is not None:
                tensors[f"{name}.{part}.output.weight"] = mlp.output.weight.detach() * (old / length)
    positions = torch.arange(length, device=t.device, dtype=torch.float64)[:, None]
    tensors[f"{name}.t"] = (positions * step).to(t.dtype)
    tensors[f"{name}.z"] = _features(length, z, step, period) + learned[0].t()
    return tensors


def _features(length: int, like: torch.Tensor, step: float, period: float) -> torch.Tensor:
    """Untrained features (L, E): time in steps of `step`, and exponentials that turn once every `period` positions."""
    bands = (like.shape[1] - 1) // 2
    position = torch.arange(length, device=like.device, dtype=torch.float64)[:, None]
    frequency = torch.linspace(1e-4, bands - 1, bands, device=like.device, dtype=torch.float64)
    phase = position * frequency * (2 * math.pi / period)
    return torch.cat([position * step, torch.cos(phase), -torch.sin(phase)], dim=-1).to(like.dtype)


def _period(z: torch.Tensor) -> float:
    """Positions in which the slowest whole exponential of features (L, E) turns once: L, or another in extended models.

    Read off the fastest one by least squares, as training has moved every value a little.
    """
    length, width = z.shape
    bands = (width - 1) // 2
    if bands < 2 or length < 2:
        return float(length)
    values = z.double().cpu().numpy()
    phase = np.unwrap(np.arctan2(-values[:, -1], values[:, bands]))
    position = np.arange(length)
    return 2 * math.pi * (bands - 1) * float(position @ position) / float(phase @ position)


__all__ = ["Filters", "Positions", "extend_context"]
