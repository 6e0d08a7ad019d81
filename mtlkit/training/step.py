"""One optimiser step as a balancer sees it, and how its answer becomes gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlkit.balancers._step import Scope, SharedGradient
from mtlkit.models._output import Output
from mtlkit.ops.take_rows import row_sparse
from mtlkit.training.representation import Representation
from mtlkit.training.sharing import SharedParameters
from mtlkit.training.sliced_parameter import SlicedParameter
from mtlkit.training.task_gradients import TaskGradients


@dataclass(frozen=True)
class StepInfo:
    """Where a step stands in its run."""

    index: int  # number of steps before this one
    total: int  # number of steps of the run
    seed: int  # of the balancer's randomness
    scope: Scope  # what gradients are taken over, unless a balancer asks for another scope


class LoopStep:
    """The loop's :class:`mtlkit.balancers._step.Step`.

    Task gradients are computed when they are first asked for, and kept.

    Args:
        task_losses: T scalars, attached to the graph.
        active: (T,) bool, which tasks have a label in the batch.
        draw: Makes the step of an independent batch.

    Attributes:
        losses: (T,) the losses, detached.
        callbacks: What :meth:`after_step` was given.
    """

    def __init__(
        self,
        sharing: SharedParameters,
        output: Output,
        task_losses: Sequence[Tensor],
        active: Tensor,
        info: StepInfo,
        draw: Callable[[], LoopStep],
    ) -> None:
        self.sharing = sharing
        self.output = output
        self.task_losses = list(task_losses)
        self._stacked = torch.stack(self.task_losses)  # (T,) attached to the graph
        self.losses = self._stacked.detach()
        self.active = active
        self.index = info.index
        self.total = info.total
        self.seed = info.seed
        self.default_scope = info.scope
        self.gradients = TaskGradients(sharing.routes, output, self.task_losses)
        self.callbacks: list[Callable[[Tensor], None]] = []
        self._representation = Representation(sharing, output, self.gradients)
        self._draw = draw
        self._drawn: list[LoopStep] = []
        self._jacobians: dict[Scope, Tensor] = {}
        self._gramians: dict[Scope, Tensor] = {}
        self._other_passes = 0

    # --- what a balancer may ask

    def gramian(self, scope: Scope | None = None) -> Tensor:
        scope = scope or self.default_scope
        if scope not in self._gramians:
            if scope == "representation":
                self._gramians[scope] = self._representation.gramian()
            else:
                self._gramians[scope] = self.gradients.gramian(self.sharing.scope(scope))
        return self._gramians[scope]

    def jacobian(self, scope: Scope | None = None) -> Tensor:
        scope = scope or self.default_scope
        if scope == "representation":
            return self._representation.jacobian()
        if scope not in self._jacobians:
            self._jacobians[scope] = self._parameter_jacobian(scope)
        return self._jacobians[scope]

    def jacobian_columns(self, scope: Scope | None = None) -> dict[str, slice]:
        scope = scope or self.default_scope
        if scope == "representation":
            return {"representation": slice(0, self.jacobian(scope).shape[1])}
        columns = {}
        start = 0
        for sliced in self.sharing.scope(scope):
            stop = start + self._gradient_shape(sliced).numel()
            columns[sliced.name] = slice(start, stop)
            start = stop
        return columns

    def grad_norms(self, part: str) -> Tensor:
        vectors = self._part_vectors(part)
        if not vectors:  # the tasks share no weight
            return torch.zeros_like(self.losses)
        return torch.stack([vector.norm() for vector in vectors])

    def _part_vectors(self, part: str) -> list[Tensor]:
        """The flat gradient of each task by one parameter; none if there is no such parameter."""
        sliced = self.sharing.last if part == "last" else self.sharing.routes.by_name[part]
        if sliced is None:
            return []
        task_grads = self.gradients.by_task.get(sliced.name)
        if task_grads is None:
            # one parameter is asked for, so the passes end there
            self._other_passes += len(self.task_losses)
            task_grads = [self.gradients.values(loss, [sliced])[0] for loss in self.task_losses]
        return [self._shared_vector(sliced, grad) for grad in task_grads]

    def fresh_batch(self) -> LoopStep:
        step = self._draw()
        self._drawn.append(step)
        return step

    def after_step(self, callback: Callable[[Tensor], None]) -> None:
        self.callbacks.append(callback)

    # --- what it has cost

    @property
    def backward_passes(self) -> int:
        """Backward passes through the layer that most of them went through."""
        return self.gradients.passes + self._representation.passes + self._other_passes

    def all_backward_passes(self) -> int:
        """Backward passes of this step and of the fresh batches drawn for it."""
        return self.backward_passes + sum(step.all_backward_passes() for step in self._drawn)

    # --- how the answer becomes gradients

    def apply(
        self, decision: Tensor | SharedGradient, heads: str, scale: float, signed: bool = False
    ) -> Tensor:
        """Add the gradient that a decision means to the parameters' ``grad``.

        Args:
            decision: Task weights (T,), or a gradient for the shared parameters.
            heads: ``weighted``: parameters of one task alone follow its weight, but never uphill:
                where it is negative they rest; ``plain``: they have weight 1.
            scale: Factor on everything, one over the number of accumulated batches.
            signed: Whether weights may be negative.

        Returns:
            The task weights (T,) in effect; ones for a shared gradient.
        """
        # a gradient for the shared parameters: all others go on with weight 1
        if isinstance(decision, SharedGradient):
            weights = torch.ones_like(self.losses)
            shared_grads = self._shared_gradients(decision, scale)
            scaled = _scaled(weights, scale)
            self._apply_task_gradients(scaled, heads, scale, False, shared_grads)
            return weights

        # Task weights. One backward pass of the weighted loss is enough, unless task gradients are
        # there already, or a head needs another weight than the pass gives it: the pass can only
        # be divided by a weight that is above 0.
        weights = decision
        scaled = _scaled(weights, scale)
        if not self.gradients.begun and self._one_pass_serves(weights, heads, signed):
            self._apply_weighted_loss(scaled, heads, scale)
        else:
            self._apply_task_gradients(scaled, heads, scale, signed, {})
        return weights

    def _one_pass_serves(self, weights: Tensor, heads: str, signed: bool) -> bool:
        """Whether every head gets its weight from a pass of the weighted loss. Where weights must
        be looked at, a GPU is waited for.
        """
        if heads == "weighted" and not signed:
            return True
        return bool(((weights > 0) | ~self.active).all())

    def _apply_weighted_loss(self, weights: Tensor, heads: str, scale: float) -> None:
        """One backward pass from the losses, each with its weight as its gradient."""
        self._other_passes += 1
        if heads == "weighted":
            self._stacked.backward(weights.to(self.losses))
            return

        # heads=plain: take the weight out again where a slice belongs to one task
        parameters = self.sharing.parameters
        grads = self.gradients.values(self._stacked, parameters, weights.to(self.losses))
        for sliced, grad in zip(parameters, grads, strict=True):
            if grad is None:
                continue
            task_weight = (sliced.reached_by * weights[:, None]).sum(0)  # (S,) if it belongs to one
            smallest = torch.finfo(task_weight.dtype).tiny
            factor = torch.where(sliced.shared, 1.0, scale / task_weight.clamp_min(smallest))
            self._accumulate(sliced, grad * sliced.expand(factor))

    def _apply_task_gradients(
        self,
        weights: Tensor,
        heads: str,
        scale: float,
        signed: bool,
        shared_grads: dict[str, Tensor],
    ) -> None:
        """The weighted sum of the task gradients, or what is given for the shared slices.

        Args:
            weights: (T,).
            heads: See :meth:`apply`.
            scale: Likewise.
            signed: Likewise.
            shared_grads: By parameter, the gradient to take in shared slices.
        """
        private_weights = None
        if heads == "plain":
            private_weights = torch.full_like(weights, scale)
        elif signed:
            private_weights = weights.clamp_min(0)
        sums = self.gradients.combine(weights, private_weights)
        for sliced in self.sharing.parameters:
            total = sums.get(sliced.name)
            if total is None:
                continue
            if sliced.name in shared_grads:
                total = torch.where(sliced.expand(sliced.shared), shared_grads[sliced.name], total)
            self._accumulate(sliced, total)

    def _shared_gradients(self, decision: SharedGradient, scale: float) -> dict[str, Tensor]:
        """A balancer's gradient vector by parameter."""
        scope = decision.scope or self.default_scope
        if scope == "representation":
            gate_weights = torch.full_like(self.losses, scale)
            return self._representation.parameter_gradients(decision.vector * scale, gate_weights)
        columns = self.jacobian_columns(scope)
        gradients = {}
        for sliced in self.sharing.scope(scope):
            shape = self._gradient_shape(sliced)
            gradients[sliced.name] = decision.vector[columns[sliced.name]].view(shape) * scale
        return gradients

    def _accumulate(self, sliced: SlicedParameter, grad: Tensor) -> None:
        """Add to a parameter's ``grad``, as the row-sparse tensor that it is where it is one."""
        parameter = sliced.parameter
        if sliced.sparse:
            grad = row_sparse(self.gradients.table_rows[sliced.name], grad, parameter.shape)
        else:
            # fused optimisers read the memory in order, whatever the strides
            grad = grad.contiguous()
        parameter.grad = grad if parameter.grad is None else parameter.grad + grad

    # --- gradients by parameters

    def _parameter_jacobian(self, scope: Scope) -> Tensor:
        """(T, P), the task gradients side by side, zero in slices that are not shared."""
        parameters = self.sharing.scope(scope)
        n_tasks = len(self.losses)
        if not parameters:
            return self.losses.new_zeros(n_tasks, 0)
        gradients = self.gradients.of(parameters)
        rows = []
        for task in range(n_tasks):
            vectors = [
                self._shared_vector(sliced, task_grads[task])
                for sliced, task_grads in zip(parameters, gradients, strict=True)
            ]
            rows.append(torch.cat(vectors))
        return torch.stack(rows)

    def _gradient_shape(self, sliced: SlicedParameter) -> torch.Size:
        """The shape of a parameter's gradient; of a row-sparse one, that of its values."""
        if not sliced.sparse:
            return sliced.parameter.shape
        self.gradients.of([sliced])
        n_rows = self.gradients.table_rows[sliced.name].shape[0]
        return torch.Size((n_rows, *sliced.parameter.shape[1:]))

    def _shared_vector(self, sliced: SlicedParameter, grad: Tensor | None) -> Tensor:
        """A flat gradient with zeros in slices that are not shared, and all zeros for None."""
        if grad is None:
            size = self._gradient_shape(sliced).numel()
            return torch.zeros(size, device=sliced.parameter.device, dtype=sliced.parameter.dtype)
        return sliced.keep_shared(grad).flatten()


def _scaled(weights: Tensor, scale: float) -> Tensor:
    """The weights times a factor, which is 1 unless batches are accumulated."""
    return weights if scale == 1 else weights * scale
