"""One optimiser step of K cells: what their balancers see, and how their answers become gradients.

The cells are independent, so the gradient of the sum of their losses by the stacked parameters is
that of each cell by its own: one backward pass serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtlkit.balancers._balancer import GramBalancer
from mtlkit.balancers._step import Scope
from mtlkit.errors import MtlkitError
from mtlkit.ops._dispatch import plain_operations
from mtlkit.training.sharing import SharedParameters
from mtlkit.training.sliced_parameter import (
    SlicedParameter,
    differentiate,
    tensors_of,
    without_none,
)
from mtlkit.training.step import StepInfo
from mtlkit.training.task_gradients import gramian_of, one_pass_per_task
from mtlkit.training.trainer import Trainer


class StackedStep:
    """One step of all cells. Task gradients are computed when the first cell asks for them.

    Args:
        sharing: Which task reaches which parameter of a cell: the same in all of them.
        parameters: By name, the stacked parameters (K, ...).
        losses: (K, T), attached to the graph.
        active: (K, T) bool, which tasks of a cell have a label in its batch.

    Attributes:
        passes: Backward passes so far.
    """

    def __init__(
        self,
        sharing: SharedParameters,
        parameters: dict[str, Tensor],
        losses: Tensor,
        active: Tensor,
    ) -> None:
        self.sharing = sharing
        self.task_losses = losses
        self.losses = losses.detach()
        self.active = active
        self.passes = 0
        self.stacked = [
            SlicedParameter(sliced.name, parameters[sliced.name], sliced.reached_by, sliced.axis)
            for sliced in sharing.parameters
        ]
        self._task_gradients: dict[str, list[Tensor | None]] = {}
        self._gramians: dict[Scope, Tensor] = {}
        self._norms: Tensor | None = None

    def task_gradients(self) -> dict[str, list[Tensor | None]]:
        """By parameter, the gradient (K, ...) of each task; None where the task does not reach."""
        if not self._task_gradients:
            self.passes += self.losses.shape[1]
            totals = list(self.task_losses.sum(0))
            self._task_gradients = one_pass_per_task(totals, self.stacked)
        return self._task_gradients

    def gramians(self, scope: Scope) -> Tensor:
        """(K, T, T) float64 inner products of the task gradients of each cell."""
        if scope not in self._gramians:
            shared = self.sharing.scope(scope)
            gradients = self.task_gradients()
            of_scope = [gradients[sliced.name] for sliced in shared]
            with plain_operations():
                self._gramians[scope] = torch.vmap(
                    lambda losses, grads: gramian_of(shared, grads, losses),
                    in_dims=(0, [_axes(grads) for grads in of_scope]),
                )(self.losses, of_scope)
        return self._gramians[scope]

    def grad_norms(self) -> Tensor:
        """(K, T) gradient norms of each cell over the last shared weight."""
        last = self.sharing.last
        if last is None:  # the tasks share no weight
            return torch.zeros_like(self.losses)
        if self._norms is None:
            # one parameter is asked for, so the passes end there
            self.passes += self.losses.shape[1]
            (stacked,) = (sliced for sliced in self.stacked if sliced.name == last.name)
            totals = list(self.task_losses.sum(0))
            grads = one_pass_per_task(totals, [stacked])[last.name]
            norms = [
                self.losses.new_zeros(len(self.losses))
                if grad is None
                else torch.vmap(lambda value: last.keep_shared(value).norm())(grad)
                for grad in grads
            ]
            self._norms = torch.stack(norms, 1)
        return self._norms

    def gradients(self, weights: Tensor, private_weights: Tensor | None) -> dict[str, Tensor]:
        """By parameter, what the decisions of all cells mean for it, (K, ...).

        Args:
            weights: (K, T) weights of each cell's tasks.
            private_weights: (K, T) those of parameters of one task alone, if they are others.
        """
        # one backward pass of the weighted losses, unless single tasks are known or wanted
        if private_weights is None and not self._task_gradients:
            self.passes += 1
            total = (weights * self.task_losses).sum()
            return without_none(self.stacked, differentiate(total, tensors_of(self.stacked)))

        by_task = self.task_gradients()
        sums = [
            _weighted(sliced, by_task[sliced.name], weights, private_weights)
            for sliced in self.sharing.parameters
        ]
        return without_none(self.sharing.parameters, sums)


def _weighted(
    sliced: SlicedParameter,
    grads: Sequence[Tensor | None],
    weights: Tensor,
    private_weights: Tensor | None,
) -> Tensor | None:
    """As ``task_gradients.weighted_gradient``, with weights (K, T) and gradients (K, ...)."""
    by_slice = weights[:, :, None]  # (K, T, 1)
    if private_weights is not None and not sliced.all_shared:
        by_slice = torch.where(sliced.shared, by_slice, private_weights[:, :, None])  # (K, T, S)

    total: Tensor | None = None
    for task, grad in enumerate(grads):
        if grad is None:
            continue
        factor = torch.vmap(sliced.expand)(by_slice[:, task].to(grad))
        total = grad * factor if total is None else total.addcmul_(grad, factor)
    return total


def _axes(grads: Sequence[Tensor | None]) -> list[int | None]:
    """The axis of the cells of each gradient, for ``vmap``."""
    return [None if grad is None else 0 for grad in grads]


class CellStep:
    """A :class:`mtlkit.balancers._step.Step` of one cell of a stack.

    Args:
        stack: The step of all cells.
        cell: The number of the cell.
        info: Where the step stands in the run.

    Attributes:
        callbacks: What :meth:`after_step` was given.
    """

    def __init__(self, stack: StackedStep, cell: int, info: StepInfo) -> None:
        self._stack, self._cell = stack, cell
        self.losses = stack.losses[cell]
        self.active = stack.active[cell]
        self.index, self.total, self.seed = info.index, info.total, info.seed
        self.default_scope = info.scope
        self.callbacks: list[Callable[[Tensor], None]] = []

    def gramian(self, scope: Scope | None = None) -> Tensor:
        return self._stack.gramians(scope or self.default_scope)[self._cell]

    def grad_norms(self, part: str) -> Tensor:
        if part != "last":
            raise _not_stacked("the gradient norms of a single parameter")
        return self._stack.grad_norms()[self._cell]

    def jacobian(self, scope: Scope | None = None) -> Tensor:
        raise _not_stacked("the rows of a Jacobian")

    def jacobian_columns(self, scope: Scope | None = None) -> dict[str, slice]:
        raise _not_stacked("the rows of a Jacobian")

    def fresh_batch(self) -> CellStep:
        raise _not_stacked("a fresh batch")

    def after_step(self, callback: Callable[[Tensor], None]) -> None:
        self.callbacks.append(callback)


class HostStep:
    """What a Gram-based balancer sees of a step, on the host.

    Args:
        packed: (T, T + 2) as ``GramBalancer.pack`` makes it.
        info: Where the step stands in the run.
        dtype: Of the losses.
    """

    def __init__(self, packed: Tensor, info: StepInfo, dtype: torch.dtype = torch.float32) -> None:
        self._gramian = packed[:, :-2]
        self.losses = packed[:, -2].to(dtype)
        self.active = packed[:, -1].bool()
        self.index, self.total, self.seed = info.index, info.total, info.seed

    def gramian(self, scope: Scope | None = None) -> Tensor:
        return self._gramian


def asks_for_gramian(trainer: Trainer) -> bool:
    """Whether all that the balancer asks every step for is the Gram matrix of the scope."""
    balancer = trainer.balancer
    if balancer is None or balancer.update_every > 1:
        return False
    return type(balancer).forward is GramBalancer.forward


def _not_stacked(what: str) -> MtlkitError:
    return MtlkitError(f"Stacked cells cannot give a balancer {what}.", "--set stack=1")
