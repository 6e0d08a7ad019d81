"""Parameters in slices, the unit in which tasks share them.

Experts of a level are one stacked tensor (n, out, in). Two tasks may share some of its slices and
not others, so sharing is known by slice and not by parameter.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SlicedParameter:
    """One parameter, cut along its stack axis; a parameter without one is a single slice.

    Args:
        name: Its name in the model.
        parameter: The parameter.
        reached_by: (T, S) bool, whether the loss of task t reaches slice s.
        axis: The stack axis, or None.
        sparse: Whether its gradients are row-sparse.

    Attributes:
        reaching_tasks: T bools, whether task t reaches any slice.
        shared: (S,) bool, whether two or more tasks reach the slice.
        any_shared: Whether there is a shared slice.
        all_shared: Whether all slices are shared.
        is_embedding: Whether it is an embedding table, or stands in for one.
        part: The top-level module that holds it, e.g. ``"experts"``.
    """

    def __init__(
        self,
        name: str,
        parameter: Tensor,
        reached_by: Tensor,
        axis: int | None,
        sparse: bool = False,
    ) -> None:
        self.name = name
        self.parameter = parameter
        self.reached_by = reached_by
        self.axis = axis
        self.sparse = sparse
        # Python values, asked for once: a step must not wait for the device to know them
        self.reaching_tasks: list[bool] = reached_by.any(1).tolist()
        self.shared = reached_by.sum(0) >= 2
        self.any_shared = bool(self.shared.any())
        self.all_shared = bool(self.shared.all())
        self.is_embedding = name.startswith("embedding.")
        self.part = name.partition(".")[0]
        self._reached_by_as_numbers = reached_by.float()
        identity = torch.eye(len(reached_by), dtype=torch.bool)
        self._slice_t_is_task_t = bool(reached_by.cpu().equal(identity))

    def private_weights(self, weights: Tensor) -> Tensor:
        """Of task weights (T,), those of the slices (S,) that belong to one task each."""
        if self._slice_t_is_task_t:
            return weights
        return weights @ self._reached_by_as_numbers.to(weights.dtype)

    def expand(self, values: Tensor) -> Tensor:
        """One value a slice (S,), in a shape that multiplies the parameter."""
        shape = [1] * self.parameter.dim()
        if self.axis is not None:
            shape[self.axis] = len(values)
        return values.view(shape)

    def keep_shared(self, grad: Tensor) -> Tensor:
        """A gradient of the parameter with zeros in the slices that are not shared."""
        return grad if self.all_shared else grad * self.expand(self.shared)


def tensors_of(parameters: Sequence[SlicedParameter]) -> list[Tensor]:
    """The parameters themselves."""
    return [sliced.parameter for sliced in parameters]


def differentiate(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    upstream: Tensor | Sequence[Tensor | None] | None = None,
) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad`` that keeps the graph and returns None where there is no gradient.

    Args:
        outputs: A tensor, or several.
        inputs: What to differentiate by.
        upstream: The gradient of each output. An output whose gradient is None is left out; without
            ``upstream`` the outputs are scalars.
    """
    # pair every output with its gradient, and leave out what nothing flows through
    if isinstance(outputs, Tensor):
        outputs = [outputs]
        upstream = None if upstream is None else [upstream]  # type: ignore[list-item]
    grads = [None] * len(outputs) if upstream is None else list(upstream)
    roots = []
    root_grads = []
    for output, grad in zip(outputs, grads, strict=True):
        flows = upstream is None or grad is not None
        if output.requires_grad and flows:
            roots.append(output)
            root_grads.append(grad)

    # autograd refuses inputs without requires_grad (frozen parameters), so they get their None here
    wanted = [value for value in inputs if value.requires_grad]
    if not roots or not wanted:
        return (None,) * len(inputs)
    results = torch.autograd.grad(roots, wanted, root_grads, retain_graph=True, allow_unused=True)
    remaining = iter(results)
    return tuple(next(remaining) if value.requires_grad else None for value in inputs)


def without_none(
    parameters: Sequence[SlicedParameter], grads: Sequence[Tensor | None]
) -> dict[str, Tensor]:
    """By parameter, the gradients that exist."""
    pairs = zip(parameters, grads, strict=True)
    return {sliced.name: grad for sliced, grad in pairs if grad is not None}
