"""Which task reaches which parameter: found by looking at gradients, never by name or class.

The same look settles which shortcuts to the task gradients hold (``training.shortcuts``): each is
tried on copies of the model, and taken only if it gives the gradients of plain backward passes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from mtlkit.balancers._step import Scope
from mtlkit.models._architecture import Architecture
from mtlkit.models._boundary import FirstLayerBoundary, TensorBoundary
from mtlkit.models._types import Batch
from mtlkit.ops.take_rows import summed_rows
from mtlkit.training.shortcuts import GradientRoutes
from mtlkit.training.sliced_parameter import (
    SlicedParameter,
    differentiate,
    tensors_of,
    without_none,
)
from mtlkit.training.task_gradients import TaskGradients
from mtlkit.training.task_losses import owner_losses

COPIES = 2  # with random parameters: of both signs, and all positive
TOLERANCE = 1e-3  # of a gradient's length, between two ways to it in single precision

# what a refused shortcut costs
SLOW_TABLES = "balancers of gradients take one backward pass a task through the tables"
SLOW_FIRST_LAYERS = "balancers of gradients take one backward pass a task through these layers"
SLOW_TOWERS = "balancers of gradients take one backward pass a task through towers and gates"


class SharedParameters:
    """The parameters of a model, with the tasks that reach each slice of them.

    Each task's loss is differentiated on copies of the model whose parameters are drawn at random,
    so that neither zero initialisations nor dead units hide a path. Stacked layers give zeros where
    a list of layers would give None, so a slice counts as reached when its gradient is not all
    zero.

    Args:
        batch: Rows with a label, and a positive, of every task.

    Attributes:
        tasks: Names of the tasks.
        routes: The parameters, with the shortcuts to their gradients that hold.
        refused: A sentence for each shortcut that does not hold.
    """

    def __init__(self, model: Architecture, batch: Batch, seed: int = 0) -> None:
        self.tasks = model.schema.task_names
        self._model, self._batch, self._seed = model, batch, seed
        copies = self._copies()

        # a slice is reached if it is in any of the copies
        axes = _stack_axes(model)
        task_grads = [twin.task_grads for twin in copies]
        reached_by = {
            name: _reached_slices(value, task_grads, name, axes.get(name))
            for name, value in model.named_parameters()
        }
        sparse = {name for twin in copies for name in twin.sparse_names()}

        def parameters_of(any_model: Architecture) -> list[SlicedParameter]:
            parameters = []
            for name, value in any_model.named_parameters():
                reached = reached_by[name].to(value.device)
                parameters.append(
                    SlicedParameter(name, value, reached, axes.get(name), name in sparse)
                )
            return parameters

        self.routes = GradientRoutes(parameters_of(model))
        self.refused: list[str] = []
        self._try_shortcuts(copies, [GradientRoutes(parameters_of(twin.model)) for twin in copies])

    @property
    def parameters(self) -> list[SlicedParameter]:
        """The parameters, in the order in which data flows through them."""
        return self.routes.parameters

    def leave_out_frozen(self) -> None:
        """Forget parameters that do not require a gradient."""
        trained = [sliced for sliced in self.parameters if sliced.parameter.requires_grad]
        self.routes.parameters = trained

    @property
    def has_boundary(self) -> bool:
        """Whether the model names a place where its tasks part, and it holds."""
        return bool(self.routes.trunk)

    def scope(self, scope: Scope) -> list[SlicedParameter]:
        """The parameters of a scope that have a shared slice.

        ``dense`` falls back to all shared parameters where it would be empty.
        """
        shared = [sliced for sliced in self.parameters if sliced.any_shared]
        dense = [sliced for sliced in shared if not sliced.is_embedding]
        return dense if scope == "dense" and dense else shared

    @cached_property
    def last(self) -> SlicedParameter | None:
        """The last shared weight: of the dense matrices that the tasks' own predictions share, the
        one registered last; without any, an embedding table.

        A stack of matrices counts as one, a bias or a stack of biases does not. What only another
        objective shares, such as a calibrator, or a product of predictions, is not meant. It is
        found when it is first asked for.
        """
        own_grads = [twin.own_gradients() for twin in self._copies()]
        own = []
        for sliced in self.parameters:
            name, axis = sliced.name, sliced.axis
            reached = _reached_slices(sliced.parameter, own_grads, name, axis)
            reached = reached.to(sliced.parameter.device)
            own.append(SlicedParameter(name, sliced.parameter, reached, axis, sliced.sparse))
        matrices = [
            sliced
            for sliced in own
            if sliced.any_shared and sliced.parameter.dim() - (sliced.axis is not None) > 1
        ]
        dense = [sliced for sliced in matrices if not sliced.is_embedding]
        candidates = dense or matrices
        return candidates[-1] if candidates else None

    def _copies(self) -> list[RandomisedCopy]:
        return [
            RandomisedCopy(self._model, self._batch, self._seed + draw, positive=draw > 0)
            for draw in range(COPIES)
        ]

    @property
    def unreached(self) -> list[str]:
        """Names of parameters with a slice that no task reaches."""
        return [sliced.name for sliced in self.parameters if not sliced.reached_by.any(0).all()]

    def components(self) -> list[list[int]]:
        """Groups of tasks that are connected through shared parameters.

        Tasks that share nothing stand alone, and one that another scores belongs to that one.
        """
        # every task that is trained begins in a group of its own; a slice joins the groups of all
        # that reach it
        group = [self.tasks.index(task.scored_by or task.name) for task in self._model.tasks]
        for sliced in self.parameters:
            for tasks_of_slice in sliced.reached_by.T:
                joined = {group[task] for task in torch.nonzero(tasks_of_slice).flatten().tolist()}
                if joined:
                    group = [min(joined) if number in joined else number for number in group]
        return [
            [task for task, number in enumerate(group) if number == root]
            for root in sorted(set(group))
        ]

    def _try_shortcuts(
        self, copies: Sequence[RandomisedCopy], copy_routes: Sequence[GradientRoutes]
    ) -> None:
        """Open each shortcut on the copies, and keep those that lead to the plain gradients.

        Cuts come first: first layers and the boundary build on them.
        """
        if not self._holds("cuts", True, copies, copy_routes):
            self.refused.append("tables are reached around the embedded batch: " + SLOW_TABLES)
        elif not self._holds("first_layers", True, copies, copy_routes):
            self.refused.append("first layers are used elsewhere, too: " + SLOW_FIRST_LAYERS)
        else:
            self._try_boundary(copies, copy_routes)

    def _try_boundary(
        self, copies: Sequence[RandomisedCopy], copy_routes: Sequence[GradientRoutes]
    ) -> None:
        """Open the boundary if all that is shared lies below it."""
        trunk: set[str] = set()
        gates: set[str] = set()
        for twin, routes in zip(copies, copy_routes, strict=True):
            trunk_names, gate_names = twin.below_boundary(routes)
            trunk |= trunk_names
            gates |= gate_names
        shared = {sliced.name for sliced in self.routes.dense if sliced.any_shared}

        if not trunk:
            reason = "the model names no boundary between its tasks"
        elif not shared <= trunk:
            reason = "tasks share layers above the boundary"
        elif trunk & gates:
            reason = "the boundary's gates are made of shared layers"
        elif not self._holds("below_boundary", (trunk, gates), copies, copy_routes):
            reason = "the boundary's gradients are not the tasks'"
        else:
            return
        self.refused.append(f"{reason}: {SLOW_TOWERS}")

    def _holds(
        self,
        shortcut: str,
        value: object,
        copies: Sequence[RandomisedCopy],
        copy_routes: Sequence[GradientRoutes],
    ) -> bool:
        """Open a shortcut on the copies; if it leads to the plain gradients, open it for good."""
        closed = getattr(self.routes, shortcut)
        for routes in copy_routes:
            setattr(routes, shortcut, value)
        pairs = zip(copies, copy_routes, strict=True)
        if all(twin.gradients_agree(routes) for twin, routes in pairs):
            setattr(self.routes, shortcut, value)
            return True
        for routes in copy_routes:
            setattr(routes, shortcut, closed)
        return False


class RandomisedCopy:
    """A copy of a model with random parameters, and its gradients by plain backward passes.

    Args:
        positive: Whether all of them are positive.

    Attributes:
        task_grads: For each task, by parameter name, the gradient.
    """

    def __init__(self, model: Architecture, batch: Batch, seed: int, positive: bool) -> None:
        self.model = _randomised(model, seed, positive)
        self.output = self.model(batch)
        self.model.check_output(self.output, len(batch.labels))
        objectives = self.model.objectives(self.output, batch)
        self.losses = owner_losses(objectives, model.schema.task_names)
        names, values = zip(*self.model.named_parameters(), strict=True)
        self.task_grads = [
            dict(zip(names, differentiate(loss, values), strict=True)) for loss in self.losses
        ]

    def own_gradients(self) -> list[dict[str, Tensor | None]]:
        """For each task, by parameter name, the gradient of what its own layers predict."""
        names, values = zip(*self.model.named_parameters(), strict=True)
        logits = self.model.own_logits(self.output)
        return [
            dict(zip(names, differentiate(task_logits.sum(), values), strict=True))
            for task_logits in logits
        ]

    def sparse_names(self) -> set[str]:
        """The parameters with row-sparse gradients."""
        return {
            name
            for grads in self.task_grads
            for name, grad in grads.items()
            if grad is not None and grad.is_sparse
        }

    def gradients_agree(self, routes: GradientRoutes) -> bool:
        """Whether the shortcuts that are open give the gradient of each task alone."""
        gradients = TaskGradients(routes, self.output, self.losses)
        for task, expected in enumerate(self.task_grads):
            # the weighted sum with weight 1 for this task and 0 for all others
            weights = torch.zeros(len(self.losses), device=self.losses[0].device)
            weights[task] = 1
            gradients.of(routes.of_trunk)
            sums = gradients.combine(weights)
            for sliced in routes.parameters:
                rows = gradients.table_rows.get(sliced.name)
                if not _equal(sums.get(sliced.name), expected[sliced.name], rows):
                    return False
        return True

    def below_boundary(self, routes: GradientRoutes) -> tuple[set[str], set[str]]:
        """The dense parameters below the trunk's output, and those below the gates' output."""
        boundary = self.output.boundary
        if isinstance(boundary, FirstLayerBoundary):
            layers = boundary.first_layer.layers
            trunk, gates = (
                {
                    routes.by_parameter[id(value)].name
                    for value in (layer.weight, layer.bias)
                    if value is not None
                }
                for layer in (layers[boundary.trunk], layers[boundary.gates])
            )
            return trunk, gates
        if isinstance(boundary, TensorBoundary):
            trunk = _dense_names_below(boundary.trunk_output, routes)
            return trunk, _dense_names_below(boundary.gate_output, routes)
        return set(), set()


def _dense_names_below(tensor: Tensor | None, routes: GradientRoutes) -> set[str]:
    """The dense parameters that a tensor is made of."""
    if tensor is None:
        return set()
    grads = differentiate(tensor, tensors_of(routes.dense), tensor.detach())
    # layers that are computed as one give zeros instead of None
    gradients = without_none(routes.dense, grads)
    return {name for name, grad in gradients.items() if bool(grad.any())}


def _stack_axes(model: Architecture) -> dict[str, int]:
    """By parameter, the axis along which it is a stack."""
    axes = {}
    for prefix, module in model.named_modules():
        for name, axis in getattr(module, "stack_axes", {}).items():
            axes[f"{prefix}.{name}".lstrip(".")] = axis
    return axes


def _reached_slices(
    parameter: Tensor,
    copies: Sequence[Sequence[dict[str, Tensor | None]]],
    name: str,
    axis: int | None,
) -> Tensor:
    """(T, S) bool, whether a task has a gradient in a slice of a parameter, in any copy.

    Args:
        copies: For each copy of the model and each task, the gradients by parameter name.
        axis: Its stack axis, or None.
    """
    n_slices = 1 if axis is None else parameter.shape[axis]
    reached = torch.zeros(len(copies[0]), n_slices, dtype=torch.bool)
    for task_grads in copies:
        for task, grads in enumerate(task_grads):
            grad = grads[name]
            if grad is None:
                continue
            if grad.is_sparse:
                grad = grad.coalesce().values()
            by_slice = grad.reshape(1, -1) if axis is None else grad.movedim(axis, 0).flatten(1)
            reached[task] |= (by_slice != 0).any(1).cpu()
    return reached


def _equal(result: Tensor | None, expected: Tensor | None, rows: Tensor | None) -> bool:
    """Whether a gradient is the expected one; of row-sparse ones the values of some rows."""
    if expected is not None and expected.is_sparse:
        expected_rows, expected = summed_rows(expected)
        if rows is None or not torch.equal(rows, expected_rows):
            return not expected.any()
    if result is None or expected is None:
        # no gradient is a gradient of zeros
        present = [grad for grad in (result, expected) if grad is not None]
        return not any(bool(grad.any()) for grad in present)
    return bool((result - expected).norm() <= TOLERANCE * expected.norm())


def _randomised(model: Architecture, seed: int, positive: bool) -> Architecture:
    """A copy in evaluation mode with random parameters of a size that keeps activations alive.

    With both signs a narrow layer may be dead; positive parameters keep it alive, but saturate
    gates sooner. A path is therefore looked for under both.
    """
    twin = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in twin.named_parameters():
            draw = torch.randn(value.shape, generator=generator)
            is_vector = name.startswith("embedding.") or value.dim() == 1
            if positive:
                draw = draw.abs()
            if not is_vector:
                # sums over the inputs keep the size of one input
                inputs = value.shape[-1]
                draw = draw / inputs if positive else draw * inputs**-0.5
            value.copy_(draw)
    return twin
