"""One optimiser step as a balancer sees it, and how its answer becomes gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mtlkit.balancers.base import Direction, Scope
from mtlkit.models.base import Output
from mtlkit.training.reach import Reach, Slices


class LoopStep:
    """The loop's :class:`mtlkit.balancers.base.Step`. Task gradients are computed when first asked for, and reused.

    Args:
        reach: Which task reaches which parameter.
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
        reach: Reach,
        output: Output,
        task_losses: Sequence[Tensor],
        active: Tensor,
        index: int,
        total: int,
        seed: int,
        scope: Scope,
        draw: Callable[[], LoopStep],
    ) -> None:
        self.reach = reach
        self.output = output
        self.task_losses = list(task_losses)
        self.losses = torch.stack([loss.detach() for loss in task_losses])
        self.active = active
        self.index = index
        self.total = total
        self.seed = seed
        self.default_scope = scope
        self.callbacks: list[Callable[[Tensor], None]] = []
        self.backward_passes = 0
        self._draw = draw
        self._drawn: list[LoopStep] = []
        self._task_gradients: list[list[Tensor | None]] | None = None
        self._representation: Tensor | None = None
        self._taken: dict[str, Tensor] = {}  # the table rows of row-sparse gradients, which are kept as their values

    def gram(self, scope: Scope | None = None) -> Tensor:
        rows = self.rows(scope).double()
        return rows @ rows.T

    def rows(self, scope: Scope | None = None) -> Tensor:
        scope = scope or self.default_scope
        if scope == "representation":
            return self._representation_rows()
        gradients = self.task_gradients()
        wanted = {item.name for item in self.reach.scope(scope)}
        nothing = self.losses.new_zeros(0)  # all there is when no parameter is shared
        return torch.stack(
            [
                torch.cat(
                    [nothing]
                    + [
                        self._shared_part(item, grad)
                        for item, grad in zip(self.reach.slices, own, strict=True)
                        if item.name in wanted
                    ]
                )
                for own in gradients
            ]
        )

    def parts(self, scope: Scope | None = None) -> dict[str, slice]:
        scope = scope or self.default_scope
        if scope == "representation":
            return {"representation": slice(0, self._representation_rows().shape[1])}
        out, start = {}, 0
        for item in self.reach.scope(scope):
            size = self._shape(item).numel()
            out[item.name] = slice(start, start + size)
            start += size
        return out

    def norms(self, part: str) -> Tensor:
        item = self.reach.last if part == "last" else next(i for i in self.reach.slices if i.name == part)
        if item is None:
            return torch.zeros_like(self.losses)
        if self._task_gradients is not None:
            place = self.reach.slices.index(item)
            return torch.stack([self._shared_part(item, own[place]).norm() for own in self._task_gradients])
        self.backward_passes += len(self.task_losses)
        return torch.stack(
            [self._shared_part(item, self._gradients(loss, [item])[0]).norm() for loss in self.task_losses]
        )

    def fresh_batch(self) -> LoopStep:
        step = self._draw()
        self._drawn.append(step)
        return step

    def after(self, callback: Callable[[Tensor], None]) -> None:
        self.callbacks.append(callback)

    def all_backward_passes(self) -> int:
        """Backward passes of this step and of the fresh batches drawn for it."""
        return self.backward_passes + sum(step.all_backward_passes() for step in self._drawn)

    def task_gradients(self) -> list[list[Tensor | None]]:
        """Each task's gradient of each parameter, in the order of ``reach.slices``; None where it does not reach."""
        if self._task_gradients is None:
            self._task_gradients = []
            for t, loss in enumerate(self.task_losses):
                found = iter(self._gradients(loss, [item for item in self.reach.slices if item.reach[t].any()]))
                self._task_gradients.append([next(found) if i.reach[t].any() else None for i in self.reach.slices])
            self.backward_passes += len(self.task_losses)
        return self._task_gradients

    def apply(self, decision: Tensor | Direction, heads: str, share: float, signed: bool = False) -> Tensor:
        """Add the gradient that a decision means to the parameters' ``grad``.

        Args:
            decision: Task weights (T,), or a direction for the shared parameters.
            heads: ``weighted``: parameters of one task alone follow its weight, but never uphill: where it is negative
                they rest; ``plain``: they have weight 1.
            share: Factor on everything, one over the number of accumulated batches.
            signed: Whether weights may be negative.

        Returns:
            The task weights (T,) in effect; ones for a direction.
        """
        if isinstance(decision, Direction):
            weights = torch.ones_like(self.losses)
            self._apply_by_combination(weights * share, heads, self._directed(decision, share), share)
        else:
            weights = decision
            # one backward pass cannot give a head another weight than its task's, unless it divides by that
            whole = (heads == "weighted" and not signed) or bool((weights[self.active] > 0).all())
            if self._task_gradients is None and whole:
                self._apply_by_one_backward(weights * share, heads, share)
            else:
                self._apply_by_combination(weights * share, heads, {}, share)
        return weights

    def _apply_by_one_backward(self, weights: Tensor, heads: str, share: float) -> None:
        self.backward_passes += 1
        total = (weights * torch.stack(self.task_losses)).sum()
        if heads == "weighted":
            total.backward()
            return
        for item, grad in zip(self.reach.slices, self._gradients(total, self.reach.slices), strict=True):
            if grad is not None:
                own = (item.reach * weights[:, None]).sum(0)  # (S,) the weight of an unshared slice's only task
                factor = torch.where(item.shared, 1.0, share / own.clamp_min(torch.finfo(own.dtype).tiny))
                self._accumulate(item, grad * item.expand(factor))

    def _apply_by_combination(self, weights: Tensor, heads: str, directed: dict[str, Tensor], share: float) -> None:
        gradients = self.task_gradients()
        for place, item in enumerate(self.reach.slices):
            own = weights[:, None].expand(-1, item.reach.shape[1])  # (T, S)
            own = torch.where(item.shared, own, share if heads == "plain" else own.clamp_min(0))
            terms = [grad * item.expand(own[t]) for t, g in enumerate(gradients) if (grad := g[place]) is not None]
            if not terms:
                continue
            total = torch.stack(terms).sum(0)
            if item.name in directed:
                total = torch.where(item.expand(item.shared), directed[item.name], total)
            self._accumulate(item, total)

    def _directed(self, direction: Direction, share: float) -> dict[str, Tensor]:
        scope = direction.scope or self.default_scope
        if scope == "representation":
            return self._beneath_representation(direction.vector * share)
        shapes = {item.name: self._shape(item) for item in self.reach.scope(scope)}
        parts = self.parts(scope)
        return {name: direction.vector[parts[name]].view(shape) * share for name, shape in shapes.items()}

    def _beneath_representation(self, vector: Tensor) -> dict[str, Tensor]:
        """What a gradient of the representation means for the parameters that it is made of."""
        x = self.output.representation
        assert x is not None, "the representation was not materialised"
        self.backward_passes += 1
        grads = self._gradients(x, self.reach.slices, vector.view_as(x))
        return {item.name: grad for item, grad in zip(self.reach.slices, grads, strict=True) if grad is not None}

    def _representation_rows(self) -> Tensor:
        x = self.output.representation
        assert x is not None, "the representation was not materialised"
        if self._representation is None:
            self.backward_passes += len(self.task_losses)
            rows = [_gradients(loss, [x])[0] for loss in self.task_losses]
            self._representation = torch.stack([torch.zeros_like(x) if r is None else r for r in rows]).flatten(1)
        return self._representation

    def _gradients(self, of: Tensor, items: Sequence[Slices], upstream: Tensor | None = None) -> list[Tensor | None]:
        """Gradients by parameters; of a row-sparse one its values (M, ...), with the rows remembered."""
        found: list[Tensor | None] = []
        for item, grad in zip(items, _gradients(of, [item.parameter for item in items], upstream), strict=True):
            if grad is not None and grad.is_sparse:
                grad = grad.coalesce()
                self._taken[item.name] = grad.indices()  # the rows of the batch, whichever the task
                grad = grad.values()
            found.append(grad)
        return found

    def _shape(self, item: Slices) -> torch.Size:
        """The shape of a parameter's gradient as it is kept."""
        if not item.sparse:
            return item.parameter.shape
        self.task_gradients()
        return torch.Size((self._taken[item.name].shape[1], *item.parameter.shape[1:]))

    def _shared_part(self, item: Slices, grad: Tensor | None) -> Tensor:
        """A gradient without its unshared slices, flat; zeros for None."""
        if grad is None:
            parameter = item.parameter
            return torch.zeros(self._shape(item).numel(), device=parameter.device, dtype=parameter.dtype)
        return grad.flatten() if item.all_shared else (grad * item.expand(item.shared)).flatten()

    def _accumulate(self, item: Slices, grad: Tensor) -> None:
        parameter = item.parameter
        if item.sparse:
            rows = self._taken[item.name]
            grad = torch.sparse_coo_tensor(rows, grad, parameter.shape, check_invariants=False, is_coalesced=True)
        parameter.grad = grad if parameter.grad is None else parameter.grad + grad


def _gradients(of: Tensor, parameters: Sequence[Tensor], upstream: Tensor | None = None) -> tuple[Tensor | None, ...]:
    if not of.requires_grad or not parameters:
        return (None,) * len(parameters)
    return torch.autograd.grad(of, parameters, upstream, retain_graph=True, allow_unused=True)
