"""The gradient of each task's loss, and what is made of it.

The algorithm, read aloud: one backward pass a task gives the gradient of every parameter for every
task; the Gramian holds the inner products of these gradients over the slices that tasks share; and
the sum of the gradients, weighted by task, goes into ``.grad``. The three functions below are that
algorithm. A model that does not say how it is built needs no more than that.

:class:`TaskGradients` comes to the same numbers with less work: nothing is computed before it is
asked for, and passes are spared where the model says how it is built, see ``training.shortcuts``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from mtlkit.models._output import Output
from mtlkit.ops.inner_products import inner_products
from mtlkit.ops.take_rows import summed_rows
from mtlkit.training.shortcuts import (
    BoundarySplit,
    CollectedGradients,
    GradientRoutes,
    StopAtCuts,
    scale_by_task,
    weighted_sum,
)
from mtlkit.training.sliced_parameter import (
    SlicedParameter,
    differentiate,
    tensors_of,
    without_none,
)

# --- the plain algorithm


def one_pass_per_task(
    losses: Sequence[Tensor], parameters: Sequence[SlicedParameter]
) -> dict[str, list[Tensor | None]]:
    """By parameter, the gradient of each task; None where the task does not reach it."""
    gradients: dict[str, list[Tensor | None]] = {sliced.name: [] for sliced in parameters}
    for task, loss in enumerate(losses):
        # a task is differentiated by nothing but what it reaches
        reached = [sliced for sliced in parameters if sliced.reaching_tasks[task]]
        grads = differentiate(loss, tensors_of(reached))
        by_name = {sliced.name: grad for sliced, grad in zip(reached, grads, strict=True)}
        for sliced in parameters:
            gradients[sliced.name].append(by_name.get(sliced.name))
    return gradients


def gramian_of(
    parameters: Sequence[SlicedParameter],
    gradients: Sequence[Sequence[Tensor | None]],
    losses: Tensor | Sequence[Tensor],
) -> Tensor:
    """(T, T) float64 inner products of the task gradients over the shared slices of parameters.

    Args:
        gradients: By parameter, the gradient of each task.
    """
    n_tasks = len(losses)
    gramian = losses[0].new_zeros(n_tasks, n_tasks, dtype=torch.float64)
    for sliced, task_grads in zip(parameters, gradients, strict=True):
        # what a single task has for itself is no matter of balance
        shared = [None if grad is None else sliced.keep_shared(grad) for grad in task_grads]
        present = [grad for grad in shared if grad is not None]
        if len(present) == n_tasks:
            gramian += inner_products(present)
        elif present:
            # a task that does not reach the parameter adds nothing in its row and column
            tasks = [task for task, grad in enumerate(shared) if grad is not None]
            index = _index_of(tuple(tasks), gramian.device)
            gramian[index[:, None], index] += inner_products(present)
    return gramian


@cache
def _index_of(tasks: tuple[int, ...], device: torch.device) -> Tensor:
    """Numbers of tasks on a device, which are sent there once: a CUDA graph takes no copies."""
    return torch.tensor(tasks, device=device)


def weighted_gradient(
    sliced: SlicedParameter,
    task_grads: Sequence[Tensor | None],
    shared_weights: Tensor,
    private_weights: Tensor | None,
) -> Tensor | None:
    """The sum of a parameter's task gradients times the weights (T,) of the tasks.

    Args:
        shared_weights: (T,) weights in slices that two or more tasks reach.
        private_weights: (T,) weights in slices of a single task, if they are others.
    """
    if sliced.all_shared or private_weights is None:
        return weighted_sum(shared_weights, task_grads)

    # each slice takes the weights that are meant for its kind
    by_slice = torch.where(
        sliced.shared, shared_weights[:, None], private_weights[:, None]
    )  # (T, S)
    terms = []
    for task, grad in enumerate(task_grads):
        if grad is not None:
            terms.append(grad * sliced.expand(by_slice[task].to(grad)))
    return torch.stack(terms).sum(0) if terms else None


# --- the same, computed when it is asked for and with the shortcuts that the model allows


class TaskGradients:
    """The task gradients of one step.

    Args:
        routes: The parameters, and the shortcuts to their gradients that hold for this model.
        losses: T scalars, attached to the graph.

    Attributes:
        by_task: By parameter, the gradient of each task, as far as computed; of a row-sparse one
            its values (M, ...).
        table_rows: By parameter with row-sparse gradients, the rows (M,) that the values stand
            for.
        passes: Backward passes so far, through the layer that most of them went through. Where one
            product stands for a pass of each task, it counts as that many.
    """

    def __init__(self, routes: GradientRoutes, output: Output, losses: Sequence[Tensor]) -> None:
        self.routes = routes
        self.losses = list(losses)
        self.by_task: dict[str, list[Tensor | None]] = {}
        self.table_rows: dict[str, Tensor] = {}
        self.passes = 0
        self._stop_at_cuts = StopAtCuts.of(routes, output)
        self._split = BoundarySplit.of(routes, output)
        self._at_boundary: Tensor | None = None  # (B, T, d)
        # of parameters whose slices belong to one task each, the sum over the tasks
        self._private: dict[str, Tensor] = {}
        self._collected: list[CollectedGradients] = []

    @property
    def begun(self) -> bool:
        """Whether there is anything that a pass from the losses would compute again."""
        return bool(self.by_task) or self._at_boundary is not None

    def of(self, parameters: Sequence[SlicedParameter]) -> list[list[Tensor | None]]:
        """By parameter, the gradient of each task, None where the task does not reach it."""
        missing = [sliced for sliced in parameters if sliced.name not in self.by_task]
        if missing and self.by_task:
            # earlier passes ended above these parameters
            self._pass_through(missing)
        elif missing and any(sliced.is_embedding for sliced in missing):
            # shortcuts end above the tables, so they would have to be passed again
            self._pass_through(self.routes.parameters)
        elif missing:
            self._begin(only_trunk=all(sliced.name in self.routes.trunk for sliced in missing))
        return [self.by_task[sliced.name] for sliced in parameters]

    def gramian(self, parameters: Sequence[SlicedParameter]) -> Tensor:
        """(T, T) float64 inner products of the task gradients over shared slices."""
        return gramian_of(parameters, self.of(parameters), self.losses)

    def combine(
        self, shared_weights: Tensor, private_weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """By parameter, the sum of the task gradients times the weights of the tasks; parameters
        without a gradient are left out.

        Args:
            shared_weights: (T,) weights in slices that two or more tasks reach.
            private_weights: (T,) weights in slices of a single task; None for the same. Whether
                two tensors are equal, a GPU could only be asked, and waited for.
        """
        # The tasks never went apart below the boundary: one more pass serves all of them.
        if self._at_boundary is not None and not self.by_task and private_weights is None:
            return self._combine_from_boundary(shared_weights)

        if not self.by_task:
            self._begin(only_trunk=True)

        # what each task has for itself, where the tasks were differentiated at once
        sums = self._weighted_private(
            shared_weights if private_weights is None else private_weights
        )

        # parameters that were differentiated task by task
        for sliced in self.routes.parameters:
            if sliced.name in self.by_task:
                total = weighted_gradient(
                    sliced, self.by_task[sliced.name], shared_weights, private_weights
                )
                if total is not None:
                    sums[sliced.name] = total

        # tables below the cuts: one backward pass with the weighted gradient of each cut
        tables = [sliced for sliced in self.routes.tables if sliced.name not in self.by_task]
        sums |= self._combine_below_cuts(tables, shared_weights)
        if private_weights is not None:
            # and a second one where a table has slices of a single task
            partly_private = [sliced for sliced in tables if not sliced.all_shared]
            private = self._combine_below_cuts(partly_private, private_weights)
            for name, grad in private.items():
                sliced = self.routes.by_name[name]
                if name in sums:
                    grad = torch.where(sliced.expand(sliced.shared), sums[name], grad)
                sums[name] = grad
        return sums

    def values(
        self,
        outputs: Tensor | Sequence[Tensor],
        parameters: Sequence[SlicedParameter],
        upstream: Tensor | Sequence[Tensor | None] | None = None,
    ) -> list[Tensor | None]:
        """:func:`differentiate` by parameters; of row-sparse gradients the values (M, ...)."""
        grads = differentiate(outputs, tensors_of(parameters), upstream)
        return [self._values(sliced, grad) for sliced, grad in zip(parameters, grads, strict=True)]

    def _values(self, sliced: SlicedParameter, grad: Tensor | None) -> Tensor | None:
        """The values of a row-sparse gradient, whose rows are kept; a dense one as it is."""
        if grad is None or not grad.is_sparse:
            return grad
        rows, values = summed_rows(grad)
        self.table_rows[sliced.name] = rows  # those of the batch, whichever the task
        return values

    # --- ways to the task gradients

    def _begin(self, only_trunk: bool) -> None:
        """The first gradients of a step, by the shortest way that gives what is asked for.

        Args:
            only_trunk: Whether nothing but the parameters below the boundary are asked for.
        """
        if only_trunk and self._split is not None:
            self._collect(self._split.collect(self.at_boundary()))
        elif self._stop_at_cuts is not None:
            self._collect(self._stop_at_cuts.collect(self.losses))
        else:
            self._pass_through(self.routes.parameters)

    def _pass_through(self, parameters: Sequence[SlicedParameter]) -> None:
        """One backward pass a task through the whole model."""
        self.passes += len(self.losses)
        for name, task_grads in one_pass_per_task(self.losses, parameters).items():
            sliced = self.routes.by_name[name]
            self.by_task[name] = [self._values(sliced, grad) for grad in task_grads]

    def _collect(self, collected: CollectedGradients) -> None:
        """Keep what a shortcut has found."""
        self.passes += len(self.losses)
        self.by_task |= collected.by_task
        self._private |= collected.private
        self._collected.append(collected)

    def _weighted_private(self, weights: Tensor) -> dict[str, Tensor]:
        """The gradients of what each task has for itself, times the task's weight."""
        sums = {}
        for name, grad in self._private.items():
            sliced = self.routes.by_name[name]
            by_slice = sliced.expand(sliced.private_weights(weights))
            sums[name] = grad * by_slice.to(grad.dtype)
        return sums

    def _combine_below_cuts(
        self, tables: Sequence[SlicedParameter], weights: Tensor
    ) -> dict[str, Tensor]:
        """What the weighted gradients of the cuts mean for the tables below them."""
        cuts = [cut for collected in self._collected for cut in collected.cuts]
        if not tables or not cuts:
            return {}
        upstream = [cut.weighted(weights) for cut in cuts]
        grads = self.values([cut.tensor for cut in cuts], tables, upstream)
        return without_none(tables, grads)

    # --- at the boundary

    def at_boundary(self) -> Tensor:
        """The gradient (B, T, d) of ``Boundary.task_inputs``, by one pass through all towers."""
        assert self._split is not None, "the model has no boundary"
        if self._at_boundary is None:
            # the sum of the losses: towers belong to one task each, so the tasks do not mix
            total = torch.stack(self.losses).sum()
            task_inputs = self._split.boundary.task_inputs
            above = self.routes.above_boundary
            at_boundary, *tower_grads = differentiate(total, [task_inputs, *tensors_of(above)])
            self._private |= without_none(above, tower_grads)
            self._at_boundary = (
                torch.zeros_like(task_inputs) if at_boundary is None else at_boundary
            )
        return self._at_boundary

    def below_boundary(self, trunk_grad: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """What a gradient of the trunk's output means for the parameters below the boundary.

        Args:
            trunk_grad: The gradient of ``Boundary.trunk_output``, of as many numbers.
            weights: (T,) what the gates of each task go on with.
        """
        assert self._split is not None, "the model has no boundary"
        outputs, upstream = self._split.sources(self.at_boundary(), trunk_grad, weights)
        return self._pass_below(outputs, upstream)

    def _combine_from_boundary(self, weights: Tensor) -> dict[str, Tensor]:
        """:meth:`combine` for tasks that are still together at the boundary."""
        assert self._split is not None
        assert self._at_boundary is not None
        upstream = scale_by_task(self._at_boundary, weights)
        sums = self._pass_below([self._split.boundary.task_inputs], [upstream])
        return sums | self._weighted_private(weights)

    def _pass_below(
        self, outputs: Sequence[Tensor], upstream: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """One backward pass for all tasks, from the boundary to the tables."""
        self.passes += 1
        above = {sliced.name for sliced in self.routes.above_boundary}
        parameters = [sliced for sliced in self.routes.parameters if sliced.name not in above]
        return without_none(parameters, self.values(outputs, parameters, upstream))
