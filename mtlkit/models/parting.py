"""Where the tasks of a model part: above, each has layers of its own; beneath, they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlkit.models.kernels import mix_gradients


@dataclass
class Parting:
    """What tells training how to take the tasks' gradients apart after one backward pass through all towers.

    Training looks at gradients before it believes this, see ``training.reach``.

    Args:
        own: (B, T, d) of which task t reads ``own[:, t]`` and nothing else.
        shared: A tensor that ``own`` is made of, of all tasks.
        private: (B, T, ...) the other tensor that ``own`` is made of; ``own[:, t]`` depends on ``private[:, t]`` alone.
        pull: A gradient of ``own`` to (T, ...) gradients of ``shared``, one a task, and the gradient of ``private``.
    """

    own: Tensor
    shared: Tensor
    private: Tensor | None
    pull: Callable[[Tensor], tuple[Tensor, Tensor | None]]


def parted_mixture(own: Tensor, weights: Tensor, experts: Tensor, reach: Tensor | None = None) -> Parting | None:
    """The parting at ``own = mix(weights, experts, reach)``; None if it is not one mixture a task."""
    if own.shape[1] != weights.shape[1] or torch.compiler.is_compiling():  # see Output
        return None
    return Parting(own, experts, weights, lambda grad: mix_gradients(weights, experts, reach, grad))


def parted_copies(own: Tensor, shared: Tensor) -> Parting | None:
    """The parting at ``own = shared.expand(-1, T, -1)``."""
    if torch.compiler.is_compiling():
        return None
    return Parting(own, shared, None, lambda grad: (grad.transpose(0, 1)[:, :, None], None))
