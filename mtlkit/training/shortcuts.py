"""Shorter ways to the task gradients, each for models that are built in a certain way.

- :class:`StopAtCuts`, where tables reach the losses through known tensors (the cuts) alone: saves
  T - 1 passes through the tables.
- :class:`FirstLayerColumns`, where layers read the embedding and are computed as one: one matrix
  product gives the gradients of all tasks.
- :class:`BoundarySplit`, where the model names a :class:`~mtlkit.models._boundary.Boundary`: saves
  T - 1 passes through towers and gates.

A model says of itself how it is built, and ``training.sharing`` tries on copies whether that holds:
:class:`GradientRoutes` keeps the result. Each shortcut has ``of(routes, output)``, which is None
where it does not apply; the plain way is then taken, see ``training.task_gradients``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtlkit.models._boundary import Boundary, FirstLayerBoundary, TensorBoundary
from mtlkit.models._embedded_batch import EmbeddedBatch, FirstLayer
from mtlkit.models._output import Output
from mtlkit.training.sliced_parameter import SlicedParameter, differentiate, tensors_of


class GradientRoutes:
    """The parameters of a model, and which shortcuts to their gradients hold.

    Args:
        parameters: The parameters, in the order in which data flows through them.

    Attributes:
        cuts: Whether the tables reach the losses through ``EmbeddedBatch.cuts`` alone.
        first_layers: Whether the layers in ``EmbeddedBatch.first_layers`` reach them through these
            layers' outputs alone.
        below_boundary: Names of the dense parameters below ``Boundary.trunk_output``, and of those
            below ``Boundary.gate_output``; empty without a boundary.
    """

    def __init__(self, parameters: list[SlicedParameter]) -> None:
        self.parameters = parameters
        self.by_name = {sliced.name: sliced for sliced in parameters}
        self.by_parameter = {id(sliced.parameter): sliced for sliced in parameters}
        self.cuts = False
        self.first_layers = False
        self.below_boundary: tuple[set[str], set[str]] = (set(), set())

    @property
    def trunk(self) -> set[str]:
        """Names of the dense parameters below the trunk's output; empty without a boundary."""
        return self.below_boundary[0]

    @property
    def gates(self) -> set[str]:
        """Names of the dense parameters below the gates' output."""
        return self.below_boundary[1]

    @property
    def tables(self) -> list[SlicedParameter]:
        """The parameters of the embedding."""
        return [sliced for sliced in self.parameters if sliced.is_embedding]

    @property
    def dense(self) -> list[SlicedParameter]:
        """All other parameters."""
        return [sliced for sliced in self.parameters if not sliced.is_embedding]

    @property
    def of_trunk(self) -> list[SlicedParameter]:
        """The parameters below the trunk's output, tables left out."""
        return [sliced for sliced in self.parameters if sliced.name in self.trunk]

    @property
    def of_gates(self) -> list[SlicedParameter]:
        """The parameters below the gates' output, tables left out."""
        return [sliced for sliced in self.parameters if sliced.name in self.gates]

    @property
    def above_boundary(self) -> list[SlicedParameter]:
        """The parameters that stand above the boundary: the towers."""
        below = self.trunk | self.gates
        return [sliced for sliced in self.dense if sliced.name not in below]


# --- what shortcuts leave


@dataclass
class CutGradient:
    """The gradients at a tensor through which tables are reached."""

    tensor: Tensor  # the cut
    by_task: Sequence[Tensor | None]  # the gradient of each task

    def weighted(self, weights: Tensor) -> Tensor | None:
        """The sum over the tasks, times their weights (T,)."""
        return weighted_sum(weights, self.by_task)


@dataclass
class ColumnGradient:
    """The gradient (rows, n * O) of some columns of a cut: the outputs of one layer."""

    layer: int  # the position of the layer in its :class:`FirstLayer`
    # The task whose gradient it is; None for that of all tasks, of which each has slices of its
    # own.
    task: int | None
    columns: Tensor  # the gradient


@dataclass
class FirstLayerCutGradient:
    """The gradients at a cut (rows, C) below layers that are computed as one."""

    tensor: Tensor  # the cut
    gradients: Sequence[ColumnGradient]  # of its columns
    sizes: Sequence[int]  # how many columns each layer has
    layer_weights: Sequence[SlicedParameter]  # the weight of each layer

    def weighted(self, weights: Tensor) -> Tensor:
        """The sum over the tasks, times their weights (T,)."""
        total = torch.zeros_like(self.tensor)
        by_layer = total.split(list(self.sizes), 1)
        for gradient in self.gradients:
            target = by_layer[gradient.layer]
            if gradient.task is None:
                # every slice of the layer takes the weight of its task
                by_slice = self.layer_weights[gradient.layer].private_weights(weights)  # (n,)
                width = target.shape[1] // len(by_slice)
                factor = by_slice.to(total.dtype).repeat_interleave(width)
            else:
                factor = weights[gradient.task].to(total.dtype)
            target.addcmul_(gradient.columns, factor)
        return total


@dataclass
class CollectedGradients:
    """What the passes of a shortcut have left. A parameter stands in one of the dictionaries."""

    # By parameter, the gradient of each task.
    by_task: dict[str, list[Tensor | None]] = field(default_factory=dict)
    # By parameter whose slices belong to one task each, the sum over the tasks.
    private: dict[str, Tensor] = field(default_factory=dict)
    # The gradients at the tensors through which the tables are reached.
    cuts: list[CutGradient | FirstLayerCutGradient] = field(default_factory=list)


# --- the shortcuts


@dataclass
class StopAtCuts:
    """One backward pass a task that ends above the tables.

    Below the cuts, one more pass with the weighted sum of the tasks' gradients serves all tables.
    """

    routes: GradientRoutes
    embedded: EmbeddedBatch

    @classmethod
    def of(cls, routes: GradientRoutes, output: Output) -> StopAtCuts | None:
        """The shortcut for this step, None where it does not apply."""
        if not routes.cuts or output.embedded is None:
            return None
        return cls(routes, output.embedded)

    def collect(self, losses: Sequence[Tensor]) -> CollectedGradients:
        """The task gradients of all dense parameters, and those at the cuts."""
        backward = TaskBackward(self.routes, self.embedded, self.routes.dense)
        for task, loss in enumerate(losses):
            backward.of_task(task, [loss])
        return backward.collected()


@dataclass
class BoundarySplit:
    """One pass through all towers, one through all gates, and one a task through the trunk alone.

    A trunk of one layer that reads the embedding needs no pass of its own: one product gives the
    gradients of all tasks.
    """

    routes: GradientRoutes
    embedded: EmbeddedBatch | None
    boundary: Boundary

    @classmethod
    def of(cls, routes: GradientRoutes, output: Output) -> BoundarySplit | None:
        """The shortcut for this step, None where it does not apply."""
        if not routes.trunk or output.boundary is None:
            return None
        return cls(routes, output.embedded, output.boundary)

    def collect(self, at_boundary: Tensor) -> CollectedGradients:
        """The task gradients of all that stands below the boundary, down to the cuts.

        Args:
            at_boundary: (B, T, d), the gradient of ``Boundary.task_inputs``.
        """
        boundary = self.boundary

        # The trunk is a layer that reads the embedding: nothing is left to be passed backwards.
        if isinstance(boundary, FirstLayerBoundary):
            assert self.embedded is not None
            columns = FirstLayerColumns(self.routes, self.embedded, boundary.first_layer)
            collected = CollectedGradients()
            n_tasks = at_boundary.shape[1]
            columns.collect(boundary.vjp(at_boundary), boundary.column_owners, n_tasks, collected)
            return collected

        # each task goes on from the trunk's output with a gradient of its own
        assert isinstance(boundary, TensorBoundary)
        trunk_grads, gate_grad = boundary.vjp(at_boundary)
        routes = self.routes
        backward = TaskBackward(routes, self.embedded, routes.of_trunk, routes.of_gates)
        for task, trunk_grad in enumerate(trunk_grads):
            backward.of_task(task, [boundary.trunk_output], [trunk_grad])

        # gates belong to one task each, so one pass serves all of them
        if boundary.gate_output is not None and gate_grad is not None:
            backward.of_all_tasks(boundary.gate_output, gate_grad)
        return backward.collected()

    def sources(
        self, at_boundary: Tensor, trunk_grad: Tensor, weights: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Where a single pass below the boundary begins, and with which gradients.

        Args:
            at_boundary: (B, T, d), the gradient of ``Boundary.task_inputs``.
            trunk_grad: The gradient of the trunk's output, of as many numbers.
            weights: (T,) what the gates of each task go on with.
        """
        boundary = self.boundary
        assert isinstance(boundary, TensorBoundary)
        outputs = [boundary.trunk_output]
        upstream = [trunk_grad.view_as(boundary.trunk_output)]
        _, gate_grad = boundary.vjp(at_boundary)
        if boundary.gate_output is not None and gate_grad is not None:
            outputs.append(boundary.gate_output)
            upstream.append(scale_by_task(gate_grad, weights))
        return outputs, upstream


@dataclass
class FirstLayerColumns:
    """The gradients of layers that read the embedding and are computed as one.

    With the gradients of their outputs side by side, for all tasks, one product with the embedded
    rows gives the gradients of all weights (a pass for each task would take T such products).
    """

    routes: GradientRoutes
    embedded: EmbeddedBatch
    first_layer: FirstLayer

    def collect(
        self,
        columns: Tensor,
        owners: Sequence[tuple[int, int | None]],
        n_tasks: int,
        collected: CollectedGradients,
    ) -> None:
        """Add the gradients of the layers, and those at the cuts below them.

        Args:
            columns: (B, C), gradients of outputs, layer by layer and task by task.
            owners: Of each block of columns the layer, and the task whose gradient it is; None
                where it is that of all tasks, of which each has slices of its own.
            n_tasks: T.
            collected: What to add to.
        """
        first_layer = self.first_layer
        weight_grads, bias_grads, cut_grads = self.embedded.weight_and_cut_gradients(columns)
        widths = [first_layer.sizes[layer] for layer, _ in owners]

        # the parameters of the layers, block by block
        blocks = zip(owners, weight_grads.split(widths), bias_grads.split(widths), strict=True)
        for (layer_index, task), weight_grad, bias_grad in blocks:
            layer = first_layer.layers[layer_index]
            for parameter, grad in ((layer.weight, weight_grad), (layer.bias, bias_grad)):
                if parameter is None:
                    continue
                name = self.routes.by_parameter[id(parameter)].name
                grad = grad.view_as(parameter).to(parameter.dtype)
                if task is None:
                    collected.private[name] = grad
                else:
                    by_task = collected.by_task.setdefault(name, [None] * n_tasks)
                    by_task[task] = grad

        # the cuts, whose columns are the same blocks
        layer_weights = [self.routes.by_parameter[id(layer.weight)] for layer in first_layer.layers]
        for cut, cut_grad in zip(first_layer.cuts, cut_grads, strict=True):
            gradients = [
                ColumnGradient(layer, task, block)
                for (layer, task), block in zip(owners, cut_grad.split(widths, 1), strict=True)
            ]
            collected.cuts.append(
                FirstLayerCutGradient(cut, gradients, first_layer.sizes, layer_weights)
            )


@dataclass(frozen=True)
class PassGradients:
    """What one backward pass has left."""

    parameters: dict[str, Tensor | None]  # by parameter, its gradient
    endpoints: Sequence[Tensor | None]  # the gradient at each endpoint of the first layers
    cuts: Sequence[Tensor | None]  # the gradient at each other cut


class TaskBackward:
    """Backward passes of the tasks, one after the other, that end at the cuts.

    Where first layers hold, the passes end at these layers' outputs already.

    Args:
        embedded: The embedded batch of this step; None in a compiled graph, which has no cuts.
        parameters: The parameters that each task is differentiated by.
        private: Parameters of one task each, which all tasks are differentiated by at once.
    """

    def __init__(
        self,
        routes: GradientRoutes,
        embedded: EmbeddedBatch | None,
        parameters: Sequence[SlicedParameter],
        private: Sequence[SlicedParameter] = (),
    ) -> None:
        self.routes = routes
        self.embedded = embedded
        first_layers: list[FirstLayer] = []
        cuts: list[Tensor] = []
        if embedded is not None:
            first_layers = embedded.first_layers if routes.first_layers else []
            cuts = embedded.cuts if routes.cuts else []

        # first layers get their gradients from their outputs, see FirstLayerColumns
        in_first_layer = {id(value) for layer in first_layers for value in layer.parameters()}
        self.parameters = [
            sliced for sliced in parameters if id(sliced.parameter) not in in_first_layer
        ]
        self.private = [sliced for sliced in private if id(sliced.parameter) not in in_first_layer]
        self._in_first_layer = [
            sliced for sliced in parameters if id(sliced.parameter) in in_first_layer
        ]

        # a pass ends at the outputs of first layers, and at the cuts that are not below them
        below_first_layer = {id(cut) for layer in first_layers for cut in layer.cuts}
        self.cuts = [cut for cut in cuts if id(cut) not in below_first_layer]
        self.endpoints = [
            (first_layer, tensor, layers)
            for first_layer in first_layers
            for tensor, layers in first_layer.endpoints
        ]

        # the pass of each task, and that of all tasks at once
        self._passes: list[PassGradients] = []
        self._joint_pass: PassGradients | None = None

    def of_task(
        self, task: int, outputs: Sequence[Tensor], upstream: Sequence[Tensor | None] | None = None
    ) -> None:
        """The pass of one task, from its loss or from tensors with a gradient each."""
        reached = [sliced for sliced in self.parameters if sliced.reaching_tasks[task]]
        self._passes.append(self._run(outputs, upstream, reached, self.cuts))

    def of_all_tasks(self, output: Tensor, upstream: Tensor) -> None:
        """One pass from a tensor below which no parameter belongs to two tasks."""
        self._joint_pass = self._run([output], [upstream], self.private, [])

    def _run(
        self,
        outputs: Sequence[Tensor],
        upstream: Sequence[Tensor | None] | None,
        parameters: Sequence[SlicedParameter],
        cuts: Sequence[Tensor],
    ) -> PassGradients:
        """A backward pass to parameters, endpoints and cuts."""
        endpoints = [tensor for _, tensor, _ in self.endpoints]
        grads = differentiate(outputs, [*tensors_of(parameters), *endpoints, *cuts], upstream)
        n_parameters, n_endpoints = len(parameters), len(endpoints)
        names = [sliced.name for sliced in parameters]
        return PassGradients(
            parameters=dict(zip(names, grads[:n_parameters], strict=True)),
            endpoints=grads[n_parameters : n_parameters + n_endpoints],
            cuts=grads[n_parameters + n_endpoints :],
        )

    def collected(self) -> CollectedGradients:
        """What all passes have left."""
        n_tasks = len(self._passes)
        collected = CollectedGradients()

        # parameters that the passes went to
        for sliced in self.parameters:
            collected.by_task[sliced.name] = [
                run.parameters.get(sliced.name) for run in self._passes
            ]
        if self._joint_pass is not None:
            private = self._joint_pass.parameters
            collected.private |= {name: grad for name, grad in private.items() if grad is not None}

        # cuts
        for k, cut in enumerate(self.cuts):
            collected.cuts.append(CutGradient(cut, [run.cuts[k] for run in self._passes]))

        # first layers; one without a gradient at its outputs has none
        for sliced in self._in_first_layer:
            collected.by_task[sliced.name] = [None] * n_tasks
        for first_layer in dict.fromkeys(first_layer for first_layer, _, _ in self.endpoints):
            blocks, owners = self._columns(first_layer)
            if blocks:
                assert self.embedded is not None
                columns = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)
                first_layer_columns = FirstLayerColumns(self.routes, self.embedded, first_layer)
                first_layer_columns.collect(columns, owners, n_tasks, collected)
        return collected

    def _columns(
        self, first_layer: FirstLayer
    ) -> tuple[list[Tensor], list[tuple[int, int | None]]]:
        """The gradients of a first layer's outputs, and the layer and task of each block."""
        runs: list[tuple[int | None, PassGradients]] = list(enumerate(self._passes))
        if self._joint_pass is not None:
            runs.insert(0, (None, self._joint_pass))

        blocks: list[Tensor] = []
        owners: list[tuple[int, int | None]] = []
        for k, (owner, _, layers) in enumerate(self.endpoints):
            if owner is not first_layer:
                continue
            for task, run in runs:
                grad = run.endpoints[k]
                if grad is not None:
                    blocks.append(grad)
                    owners += [(layer, task) for layer in layers]
        return blocks, owners


# --- small sums


def weighted_sum(weights: Tensor, tensors: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of tensors times weights (T,); None when there is no tensor."""
    total: Tensor | None = None
    for weight, tensor in zip(weights, tensors, strict=True):
        if tensor is None:
            continue
        weight = weight.to(tensor.dtype)
        total = tensor * weight if total is None else total.addcmul_(tensor, weight)
    return total


def scale_by_task(grad: Tensor, weights: Tensor) -> Tensor:
    """A gradient (B, T, ...) times the weight (T,) of each task."""
    shape = (1, -1, *[1] * (grad.dim() - 2))
    return grad * weights.to(grad).view(shape)
