"""Where the tasks of a model part: above, each has layers of its own; beneath, they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlkit.models.inputs import Product
from mtlkit.models.kernels import mix_gradients, mixture_gram


@dataclass
class Parting:
    """What tells training how to take the tasks' gradients apart after one backward pass through all towers.

    Training looks at gradients before it believes this, see ``training.reach``.

    Args:
        own: (B, T, d) of which task t reads ``own[:, t]`` and nothing else.
        gram: A gradient of ``own`` to the (T, T) float64 inner products of the tasks' gradients by what they share
            here: the outputs of experts or of a bottom.
    """

    own: Tensor
    gram: Callable[[Tensor], Tensor]


@dataclass
class PartingAtTensors(Parting):
    """A parting beneath which the graph goes on from two tensors.

    Args:
        shared: A tensor that ``own`` is made of, of all tasks.
        private: (B, T, ...) the other tensor that ``own`` is made of; ``own[:, t]`` depends on ``private[:, t]`` alone.
        pull: A gradient of ``own`` to (T, ...) gradients of ``shared``, one a task, and the gradient of ``private``.
    """

    shared: Tensor
    private: Tensor | None
    pull: Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass
class PartingAtProduct(Parting):
    """A parting right above layers that read the embedding.

    Args:
        product: The layers.
        shared: Place in the product of the layer that all tasks share.
        private: Place of the layer of which each task has its own slices.
        pull: A gradient of ``own`` to columns (B, C): those of the shared layer, one task after the other, and then
            those of the private one.
    """

    product: Product
    shared: int
    private: int
    pull: Callable[[Tensor], Tensor]

    @property
    def columns(self) -> Sequence[tuple[int, int | None]]:
        """The layer of the columns, one task after the other, and the task; None for all tasks at once."""
        return [*((self.shared, t) for t in range(self.own.shape[1])), (self.private, None)]


def parted_mixture(own: Tensor, weights: Tensor, experts: Tensor, reach: Tensor | None = None) -> Parting | None:
    """The parting at ``own = mix(weights, experts, reach)``; None if it is not one mixture a task."""
    if own.shape[1] != weights.shape[1] or torch.compiler.is_compiling():  # see Output
        return None
    return PartingAtTensors(
        own,
        lambda grad: mixture_gram(spread(weights, reach, experts.shape[1]), grad),
        experts,
        weights,
        lambda grad: mix_gradients(weights, experts, reach, grad),
    )


def parted_copies(own: Tensor, shared: Tensor) -> Parting | None:
    """The parting at ``own = shared.expand(-1, T, -1)``."""
    if torch.compiler.is_compiling():
        return None
    return PartingAtTensors(
        own,
        lambda grad: mixture_gram(grad.new_ones(*grad.shape[:2], 1), grad),
        shared,
        None,
        lambda grad: (grad.transpose(0, 1)[:, :, None], None),
    )


def spread(weights: Tensor, reach: Tensor | None, experts: int) -> Tensor:
    """Weights (B, n, k) of the experts ``reach`` (n, k) as weights (B, n, E) of all, 0 for those out of reach."""
    if reach is None:
        return weights
    weights = weights.detach()
    return weights.new_zeros(*weights.shape[:2], experts).scatter_(2, reach.expand_as(weights), weights)
