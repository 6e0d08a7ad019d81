"""A step of anyone's training loop: task gradients by autograd, one backward pass a task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from mtlkit.balancers._step import Scope
from mtlkit.data.types import Task
from mtlkit.errors import UsageError


class PlainStep:
    """A :class:`mtlkit.balancers._step.Step` of T losses and the parameters that they share.

    The shared parameters are taken as a whole, whatever the scope. The balancer's randomness
    follows from ``torch.manual_seed``.

    Args:
        losses: T scalars, or a tensor (T,), attached to the graph.
        shared_parameters: The parameters over which task gradients are compared.
        index: Number of steps before this one.

    Raises:
        UsageError: The losses are not one scalar a task, or none needs a gradient.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        losses: Sequence[Tensor] | Tensor,
        shared_parameters: Iterable[nn.Parameter],
        index: int,
    ) -> None:
        self.task_losses = scalar_losses(losses)
        if len(self.task_losses) != len(tasks):
            raise UsageError(
                f"There are {len(self.task_losses)} losses for {len(tasks)} tasks.",
                f"give one for each of {', '.join(task.name for task in tasks)}",
            )
        active = [loss.requires_grad for loss in self.task_losses]
        if not any(active):
            raise UsageError(
                "No loss needs a gradient.", "call backward on losses that a model has computed"
            )
        self.shared_parameters = [value for value in shared_parameters if value.requires_grad]
        values = torch.stack([loss.detach() for loss in self.task_losses])
        self.active = torch.tensor(active, device=values.device)
        self.losses = torch.where(self.active, values, 0.0)
        self.index = index
        self.total = index + 1  # a plain loop does not say when it ends
        self.seed = torch.initial_seed()
        self.callbacks: list[Callable[[Tensor], None]] = []

    @cached_property
    def _jacobian(self) -> Tensor:
        return torch.stack([_gradient(loss, self.shared_parameters) for loss in self.task_losses])

    def gramian(self, scope: Scope | None = None) -> Tensor:
        jacobian = self.jacobian(scope).double()
        return jacobian @ jacobian.T

    def jacobian(self, scope: Scope | None = None) -> Tensor:
        return self._jacobian

    def jacobian_columns(self, scope: Scope | None = None) -> dict[str, slice]:
        columns, start = {}, 0
        for position, parameter in enumerate(self.shared_parameters):
            columns[str(position)] = slice(start, start + parameter.numel())
            start += parameter.numel()
        return columns

    def grad_norms(self, part: str) -> Tensor:
        # the last weight; a bias is none
        if part == "last":
            parameters = [value for value in self.shared_parameters if value.dim() > 1][-1:]
        else:
            parameters = [self.shared_parameters[int(part)]]
        return torch.stack([_gradient(loss, parameters).norm() for loss in self.task_losses])

    def fresh_batch(self) -> PlainStep:
        raise UsageError(
            "The balancer compares gradients of independent batches, and a plain loop has one.",
            "another balancer, or mtlkit bench, which draws them",
        )

    def after_step(self, callback: Callable[[Tensor], None]) -> None:
        self.callbacks.append(callback)


def _gradient(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """(P,) dense gradient of a loss; 0 for what it does not reach, and for an idle task."""
    grads: Sequence[Tensor | None] = [None] * len(parameters)
    if loss.requires_grad and parameters:
        grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)

    pieces = [loss.detach().new_zeros(0)]
    for parameter, grad in zip(parameters, grads, strict=True):
        if grad is None:
            grad = torch.zeros_like(parameter)
        elif grad.is_sparse:
            grad = grad.to_dense()
        pieces.append(grad.flatten())
    return torch.cat(pieces)


def scalar_losses(losses: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """T scalars, or a tensor (T,), as a list of scalars.

    Raises:
        UsageError: They are something else.
    """
    hint = "give one scalar a task, e.g. the mean over its rows"
    if isinstance(losses, Tensor) and losses.dim() != 1:
        raise UsageError(f"The losses have shape {tuple(losses.shape)}, not (T,).", hint)
    scalars = list(losses.unbind() if isinstance(losses, Tensor) else losses)
    for loss in scalars:
        if loss.numel() != 1:
            raise UsageError(f"A loss has shape {tuple(loss.shape)}.", hint)
    return [loss.reshape(()) for loss in scalars]


def accumulate_weighted(step: PlainStep, weights: Tensor, retain_graph: bool) -> None:
    """Add the gradient of the weighted loss to ``grad`` of every parameter that it reaches."""
    # without idle tasks, whose loss may be anything
    terms = []
    for weight, loss in zip(weights, step.task_losses, strict=True):
        if loss.requires_grad:
            terms.append(weight * loss)
    torch.stack(terms).sum().backward(retain_graph=retain_graph)


def accumulate_direction(
    step: PlainStep, direction: Tensor, weights: Tensor, retain_graph: bool
) -> None:
    """Add a direction (P,) to ``grad`` of the shared parameters, and to that of all others the
    gradient of the loss with these weights (T,).
    """
    jacobian_columns = step.jacobian_columns().values()
    before = [parameter.grad for parameter in step.shared_parameters]

    # one backward pass reaches all parameters; what it finds for the shared ones is not wanted
    for parameter in step.shared_parameters:
        parameter.grad = None
    accumulate_weighted(step, weights, retain_graph)

    for parameter, grad, columns in zip(
        step.shared_parameters, before, jacobian_columns, strict=True
    ):
        wanted = direction[columns].view_as(parameter).to(parameter.dtype)
        parameter.grad = wanted.clone() if grad is None else grad + wanted
