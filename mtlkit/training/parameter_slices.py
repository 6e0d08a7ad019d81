"""Parameters in slices, and what is known of the ways that lead to their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class ParameterSlices:
    """One parameter, cut along its stack axis (a parameter without one is a single slice).

    Args:
        name: Its name in the model.
        parameter: The parameter.
        reached_by: (T, S) bool: whether task t reaches slice s.
        axis: The stack axis, or None.
        sparse: Whether its gradients are row-sparse.
    """

    def __init__(
        self,
        name: str,
        parameter: nn.Parameter,
        reached_by: Tensor,
        axis: int | None,
        sparse: bool = False,
    ) -> None:
        self.name = name
        self.parameter = parameter
        self.reached_by = reached_by
        self._reached_by_as_weights = reached_by.float()
        self._one_each = reached_by.shape[0] == reached_by.shape[1] and bool(
            reached_by.cpu().equal(torch.eye(len(reached_by)).bool())
        )
        self.axis = axis
        self.sparse = sparse
        self.shared = reached_by.sum(0) >= 2  # (S,) bool: reached by two tasks or more
        self.any_shared = bool(self.shared.any())
        self.all_shared = bool(self.shared.all())
        self.is_embedding = name.startswith("embedding.")
        self.part = name.partition(".")[0]  # the top-level module that holds it, e.g. "experts"

    def by_slice(self, weights: Tensor) -> Tensor:
        """Weights of tasks (T,) to those of slices (S,) that belong to one task each."""
        return (
            weights if self._one_each else weights @ self._reached_by_as_weights.to(weights.dtype)
        )

    def expand(self, values: Tensor) -> Tensor:
        """Values by slice (S,), in a shape that multiplies the parameter."""
        if self.axis is None:
            return values.view([1] * self.parameter.dim())
        shape = [1] * self.parameter.dim()
        shape[self.axis] = len(values)
        return values.view(shape)


class GradientRoutes:
    """The parameters of a model, and which ways to their gradients may be taken.

    Args:
        slices: The parameters, in the order in which data flows through them.

    Attributes:
        cuts: Whether the embedding tables reached_by the losses through ``Inputs.cuts`` alone.
        products: Whether the layers of ``Inputs.first_layers`` reached_by them through the
            products' outputs alone.
        trunk: The parameters that each task's gradient reaches from what the tasks share at
            ``Output.boundary``; empty without a valid boundary.
        private: Those that it reaches from what each task has for itself there.
    """

    def __init__(self, slices: list[ParameterSlices]) -> None:
        self.slices = slices
        self.by_name = {item.name: item for item in slices}
        self.by_parameter = {id(item.parameter): item for item in slices}
        self.cuts = False
        self.first_layers = False
        self.trunk: set[str] = set()
        self.private: set[str] = set()

    @property
    def heads(self) -> list[ParameterSlices]:
        """The parameters that stand above the boundary."""
        return [
            i
            for i in self.slices
            if not (i.is_embedding or i.name in self.trunk or i.name in self.private)
        ]


def gradients(
    of: Tensor | Sequence[Tensor], parameters: Sequence[Tensor], upstream: Any = None
) -> tuple[Tensor | None, ...]:
    """Gradients of a tensor, or of several with a gradient each; None where there is no path."""
    several = [of] if isinstance(of, Tensor) else list(of)
    given: list[Tensor | None] = (
        [upstream] if upstream is None or isinstance(upstream, Tensor) else list(upstream)
    )
    pairs = [
        (one, grad)
        for one, grad in zip(
            several, given * len(several) if upstream is None else given, strict=True
        )
        if one.requires_grad and (grad is not None or upstream is None)
    ]
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    if not pairs or not wanted:
        return (None,) * len(parameters)
    tensors, grads = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(tensors, wanted, grads, retain_graph=True, allow_unused=True))
    return tuple(next(found) if parameter.requires_grad else None for parameter in parameters)
