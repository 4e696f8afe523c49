"""Exact gradients of a loss over many texts with a few of them in memory at a time.

A loss here computes its own gradients in its forward pass, text by text, into one buffer per parameter; its backward
pass only scales them. So the Trainer's autocast, accumulation, clipping and DistributedDataParallel work as with any
loss. The idea of replaying texts with the gradients of their vectors is that of gradient caching (arXiv:2101.06983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import get_device_states, set_device_states

Features = dict[str, torch.Tensor]


class GradientSum:
    """Sums the gradients of many small backward passes, outside of `Parameter.grad`.

    Args:
        parameters: those that need a gradient.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self.sums: list[torch.Tensor | None] = [None] * len(self._parameters)

    def add(
        self, outputs: torch.Tensor, gradient: torch.Tensor | None = None, leaves: Sequence[torch.Tensor] = ()
    ) -> list[torch.Tensor]:
        """Back-propagate `outputs` (with `gradient`, if it is no scalar) and let go of its graph.

        Returns:
            The gradients of `leaves`, which are not summed.
        """
        found = torch.autograd.grad(outputs, [*self._parameters, *leaves], gradient, allow_unused=True)
        for i, value in enumerate(found[: len(self._parameters)]):
            if value is not None:
                total = self.sums[i]
                self.sums[i] = value.clone() if total is None else total.add_(value)
        pairs = zip(leaves, found[len(self._parameters) :], strict=True)
        return [torch.zeros_like(leaf) if value is None else value for leaf, value in pairs]


class _WithGradients(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, gradients: list[torch.Tensor | None], *parameters: Any) -> torch.Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        return (None, None, *(None if g is None else g.mul_(grad_outputs[0]) for g in gradients))


def with_gradients(model: nn.Module, compute: Callable[[GradientSum | None], torch.Tensor]) -> torch.Tensor:
    """The loss that `compute` returns, differentiable by the gradients that it adds up on the way.

    Args:
        model: whose parameters count.
        compute: called with None where no gradients are wanted.

    Returns:
        () loss. Its backward pass can be run once.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not torch.is_grad_enabled() or not parameters:
        with torch.no_grad():
            return compute(None)
    gradients = GradientSum(parameters)
    loss = compute(gradients)
    sums = gradients.sums
    if isinstance(model, nn.parallel.DistributedDataParallel):
        # Its reducer waits for every parameter.
        sums = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, sums, strict=True)]
    return _WithGradients.apply(loss.detach(), sums, *parameters)


class Replay:
    """The random state at its making, so that a second pass over the same texts has the same dropout."""

    def __init__(self, features: Features) -> None:
        self._cpu = torch.get_rng_state()
        self._devices, self._states = get_device_states(*features.values())

    def __call__(self, encode: Callable[[Features], torch.Tensor], features: Features) -> torch.Tensor:
        """Vectors of the same features again."""
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._cpu)
            set_device_states(self._devices, self._states)
            return encode(features)


def chunks(features: Features, max_tokens: int) -> Iterator[tuple[slice, Features]]:
    """Rows of a padded batch in groups of up to `max_tokens` padded tokens, each cut to its own longest text.

    One text is never divided. Yields (rows, features).
    """
    lengths = features["attention_mask"].sum(1).tolist()
    start = 0
    while start < len(lengths):
        stop, longest = start + 1, lengths[start]
        while stop < len(lengths) and max(longest, lengths[stop]) * (stop + 1 - start) <= max_tokens:
            longest = max(longest, lengths[stop])
            stop += 1
        rows = slice(start, stop)
        yield rows, {key: value[rows, :longest] for key, value in features.items() if value.dim() == 2}
        start = stop
