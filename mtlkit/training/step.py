"""One optimiser step as a balancer sees it, and how its answer becomes gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtlkit.balancers._base import Scope, SharedGradient
from mtlkit.models._boundary import TensorBoundary
from mtlkit.models._output import Output
from mtlkit.training.parameter_slices import ParameterSlices, gradients
from mtlkit.training.sharing import SharedParameters
from mtlkit.training.task_gradients import TaskGradients


class LoopStep:
    """The loop's :class:`mtlkit.balancers._base.Step`. Task gradients are computed when first asked
    for, and reused.

    Args:
        sharing: Which task reaches which parameter.
        output: The forward pass.
        task_losses: T scalars, attached to the graph.
        active: (T,) bool.
        index: Number of steps before this one.
        total: Number of steps of the run.
        seed: Of the balancer's randomness.
        scope: The default scope.
        draw: Makes the step of an independent batch.
    """

    def __init__(
        self,
        sharing: SharedParameters,
        output: Output,
        task_losses: Sequence[Tensor],
        active: Tensor,
        index: int,
        total: int,
        seed: int,
        scope: Scope,
        draw: Callable[[], LoopStep],
    ) -> None:
        self.sharing = sharing
        self.output = output
        self.task_losses = list(task_losses)
        self.losses = torch.stack([loss.detach() for loss in task_losses])
        self.active = active
        self.index = index
        self.total = total
        self.seed = seed
        self.default_scope = scope
        self.callbacks: list[Callable[[Tensor], None]] = []
        self._draw = draw
        self._drawn: list[LoopStep] = []
        self.gradients = TaskGradients(sharing, output, self.task_losses)
        self._rows: dict[Scope, Tensor] = {}
        self._grams: dict[Scope, Tensor] = {}
        self._other_passes = 0

    def gramian(self, scope: Scope | None = None) -> Tensor:
        scope = scope or self.default_scope
        if scope not in self._grams:
            self._grams[scope] = (
                self._representation_gram()
                if scope == "representation"
                else self._shared_gram(scope)
            )
        return self._grams[scope]

    def jacobian(self, scope: Scope | None = None) -> Tensor:
        scope = scope or self.default_scope
        if scope not in self._rows:
            self._rows[scope] = (
                self._representation_rows()
                if scope == "representation"
                else self._shared_rows(scope)
            )
        return self._rows[scope]

    def jacobian_columns(self, scope: Scope | None = None) -> dict[str, slice]:
        scope = scope or self.default_scope
        if scope == "representation":
            return {"representation": slice(0, self.jacobian(scope).shape[1])}
        out, start = {}, 0
        for item in self.sharing.scope(scope):
            size = self._shape(item).numel()
            out[item.name] = slice(start, start + size)
            start += size
        return out

    def grad_norms(self, part: str) -> Tensor:
        item = (
            self.sharing.last
            if part == "last"
            else next(i for i in self.sharing.slices if i.name == part)
        )
        if item is None:
            return torch.zeros_like(self.losses)
        if item.name in self.gradients.found:
            return torch.stack(
                [self._shared_part(item, grad).norm() for grad in self.gradients.found[item.name]]
            )
        self._other_passes += len(self.task_losses)
        return torch.stack(
            [
                self._shared_part(item, self.gradients.values(loss, [item])[0]).norm()
                for loss in self.task_losses
            ]
        )

    def fresh_batch(self) -> LoopStep:
        step = self._draw()
        self._drawn.append(step)
        return step

    def after_step(self, callback: Callable[[Tensor], None]) -> None:
        self.callbacks.append(callback)

    @property
    def backward_passes(self) -> int:
        """How often the layer that was passed most often was passed backwards."""
        return self.gradients.passes + self._other_passes

    def all_backward_passes(self) -> int:
        """Backward passes of this step and of the fresh batches drawn for it."""
        return self.backward_passes + sum(step.all_backward_passes() for step in self._drawn)

    def apply(
        self, decision: Tensor | SharedGradient, heads: str, share: float, signed: bool = False
    ) -> Tensor:
        """Add the gradient that a decision means to the parameters' ``grad``.

        Args:
            decision: Task weights (T,), or a direction for the shared parameters.
            heads: ``weighted``: parameters of one task alone follow its weight, but never uphill:
                where it is negative they rest; ``plain``: they have weight 1.
            share: Factor on everything, one over the number of accumulated batches.
            signed: Whether weights may be negative.

        Returns:
            The task weights (T,) in effect; ones for a direction.
        """
        if isinstance(decision, SharedGradient):
            weights = torch.ones_like(self.losses)
            self._apply_by_combination(
                weights * share, heads, self._directed(decision, share), share
            )
        else:
            weights = decision
            # one backward pass cannot give a head another weight than its task's, unless it divides
            # by that
            whole = (heads == "weighted" and not signed) or bool((weights[self.active] > 0).all())
            if not self.gradients.begun and whole:
                self._apply_by_one_backward(weights * share, heads, share)
            else:
                self._apply_by_combination(weights * share, heads, {}, share)
        return weights

    def _apply_by_one_backward(self, weights: Tensor, heads: str, share: float) -> None:
        self._other_passes += 1
        total = (weights * torch.stack(self.task_losses)).sum()
        if heads == "weighted":
            total.backward()
            return
        for item, grad in zip(
            self.sharing.slices, self.gradients.values(total, self.sharing.slices), strict=True
        ):
            if grad is not None:
                own = (item.reached_by * weights[:, None]).sum(
                    0
                )  # (S,) the weight of an unshared slice's only task
                factor = torch.where(
                    item.shared, 1.0, share / own.clamp_min(torch.finfo(own.dtype).tiny)
                )
                self._accumulate(item, grad * item.expand(factor))

    def _apply_by_combination(
        self, weights: Tensor, heads: str, directed: dict[str, Tensor], share: float
    ) -> None:
        own = torch.full_like(weights, share) if heads == "plain" else weights.clamp_min(0)
        totals = self.gradients.combine(weights, own)
        for item in self.sharing.slices:
            total = totals.get(item.name)
            if total is not None:
                if item.name in directed:
                    total = torch.where(item.expand(item.shared), directed[item.name], total)
                self._accumulate(item, total)

    def _directed(self, direction: SharedGradient, share: float) -> dict[str, Tensor]:
        scope = direction.scope or self.default_scope
        if scope == "representation":
            return self._beneath_representation(direction.vector * share, share)
        shapes = {item.name: self._shape(item) for item in self.sharing.scope(scope)}
        parts = self.jacobian_columns(scope)
        return {
            name: direction.vector[parts[name]].view(shape) * share
            for name, shape in shapes.items()
        }

    def _beneath_representation(self, vector: Tensor, share: float) -> dict[str, Tensor]:
        """What a gradient of the representation means for the parameters that it is made of."""
        if self.sharing.trunk:
            return self.gradients.below_boundary(vector, torch.full_like(self.losses, share))
        x = self._embedded()
        self._other_passes += 1
        grads = self.gradients.values(x, self.sharing.slices, vector.view_as(x))
        return {
            item.name: grad
            for item, grad in zip(self.sharing.slices, grads, strict=True)
            if grad is not None
        }

    def _representation_rows(self) -> Tensor:
        boundary = self.output.boundary
        if self.sharing.trunk and isinstance(boundary, TensorBoundary):
            return boundary.vjp(self.gradients.at_boundary())[0].flatten(1)
        x = self._embedded()
        self._other_passes += len(self.task_losses)
        rows = [gradients(loss, [x])[0] for loss in self.task_losses]
        return torch.stack([torch.zeros_like(x) if r is None else r for r in rows]).flatten(1)

    def _embedded(self) -> Tensor:
        x = self.output.representation
        assert x is not None, "the representation was not materialised"
        assert not self.sharing.trunk, (
            "the representation is where the tasks part, and is no tensor"
        )
        return x

    def _representation_gram(self) -> Tensor:
        boundary = self.output.boundary
        if self.sharing.trunk and boundary is not None:
            return boundary.gramian(self.gradients.at_boundary())
        rows = self.jacobian("representation").double()
        return rows @ rows.T

    def _shared_gram(self, scope: Scope) -> Tensor:
        return self.gradients.gramian(self.sharing.scope(scope))

    def _shared_rows(self, scope: Scope) -> Tensor:
        items = self.sharing.scope(scope)
        if not items:
            return self.losses.new_zeros(len(self.losses), 0)
        found = self.gradients.of(items)
        return torch.stack(
            [
                torch.cat(
                    [
                        self._shared_part(item, grads[t])
                        for item, grads in zip(items, found, strict=True)
                    ]
                )
                for t in range(len(self.losses))
            ]
        )

    def _shape(self, item: ParameterSlices) -> torch.Size:
        """The shape of a parameter's gradient as it is kept."""
        if not item.sparse:
            return item.parameter.shape
        self.gradients.of([item])
        return torch.Size((self.gradients.rows[item.name].shape[1], *item.parameter.shape[1:]))

    def _shared_part(self, item: ParameterSlices, grad: Tensor | None) -> Tensor:
        """A gradient without its unshared slices, flat; zeros for None."""
        if grad is None:
            parameter = item.parameter
            return torch.zeros(
                self._shape(item).numel(), device=parameter.device, dtype=parameter.dtype
            )
        return grad.flatten() if item.all_shared else (grad * item.expand(item.shared)).flatten()

    def _accumulate(self, item: ParameterSlices, grad: Tensor) -> None:
        parameter = item.parameter
        if item.sparse:
            rows = self.gradients.rows[item.name]
            grad = torch.sparse_coo_tensor(
                rows, grad, parameter.shape, check_invariants=False, is_coalesced=True
            )
        else:
            grad = (
                grad.contiguous()
            )  # fused optimisers read the memory in order, whatever the strides
        parameter.grad = grad if parameter.grad is None else parameter.grad + grad
