"""Which task reaches which parameter: found by looking at gradients, never by name or class."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit.balancers._balancer import Scope
from mtlkit.models._architecture import Architecture
from mtlkit.models._boundary import FirstLayerBoundary, TensorBoundary
from mtlkit.models._types import Batch
from mtlkit.training.parameter_slices import GradientRoutes, ParameterSlices, gradients
from mtlkit.training.task_gradients import TaskGradients
from mtlkit.training.task_losses import owner_losses

DRAWS = 2
SAME = 1e-3  # of the length of a gradient, as far as two ways to it may differ in single precision


class SharedParameters(GradientRoutes):
    """The sharing of every task in a model.

    Each task's loss is differentiated on a copy of the model whose parameters are drawn at random,
    so that neither zero initialisations nor dead units hide a path. Batched layers give zeros where
    a list of layers would give None; therefore a slice counts as reached when its gradient is not
    all zero.

    Args:
        model: The model as it will be trained.
        batch: Rows with a label, and a positive, of every task.
        seed: Of the random parameters.
    """

    def __init__(self, model: Architecture, batch: Batch, seed: int = 0) -> None:
        tasks = model.schema.task_names
        axes = {
            f"{prefix}.{name}".lstrip("."): axis
            for prefix, module in model.named_modules()
            for name, axis in getattr(module, "stack_axes", {}).items()
        }
        found = {
            name: torch.zeros(
                len(tasks), value.shape[axes[name]] if name in axes else 1, dtype=torch.bool
            )
            for name, value in model.named_parameters()
        }
        sparse: set[str] = set()
        trials: list[_Trial] = []
        for draw in range(DRAWS):
            twin = _randomised(model, seed + draw, positive=draw > 0)
            trial = _Trial(twin, batch)
            trials.append(trial)
            for t, grads in enumerate(trial.by_task):
                for name, grad in grads.items():
                    if grad is not None:
                        if grad.is_sparse:
                            sparse.add(name)
                            grad = grad.coalesce().values()
                        axis = axes.get(name)
                        moved = (
                            grad.reshape(1, -1)
                            if axis is None
                            else grad.movedim(axis, 0).flatten(1)
                        )
                        found[name][t] |= (moved != 0).any(1).cpu()
        self.tasks = tasks

        def slices(of: Architecture) -> list[ParameterSlices]:
            return [
                ParameterSlices(
                    name, value, found[name].to(value.device), axes.get(name), name in sparse
                )
                for name, value in of.named_parameters()
            ]

        super().__init__(slices(model))
        self._find_paths([(trial, GradientRoutes(slices(trial.model))) for trial in trials])

    def _find_paths(self, trials: Sequence[tuple[_Trial, GradientRoutes]]) -> None:
        """See which ways lead to the gradients, by going them on the copies."""
        for name in ("cuts", "first_layers"):
            for _, paths in trials:
                setattr(paths, name, True)
            if not all(trial.holds(paths) for trial, paths in trials):
                for _, paths in trials:
                    setattr(paths, name, False)
                return
            setattr(self, name, True)
        trunk: set[str] = set()
        private: set[str] = set()
        for trial, paths in trials:
            own, alone = trial.below_boundary(paths)
            trunk, private = trunk | own, private | alone
        shared = {item.name for item in self.slices if item.any_shared and not item.is_embedding}
        if not trunk or not shared <= trunk or trunk & private:
            return
        for _, paths in trials:
            paths.trunk, paths.private = trunk, private
        if all(trial.holds(paths) for trial, paths in trials):
            self.trunk, self.private = trunk, private

    def scope(self, scope: Scope) -> list[ParameterSlices]:
        """The parameters of a scope that have a shared slice. ``dense`` falls back to all when it
        would be empty.
        """
        shared = [item for item in self.slices if item.any_shared]
        dense = [item for item in shared if not item.is_embedding]
        return dense if scope == "dense" and dense else shared

    @property
    def last(self) -> ParameterSlices | None:
        """The last shared weight: of the shared dense matrices, or stacks of them, the one
        registered last.
        """
        matrices = [
            i for i in self.scope("dense") if i.parameter.dim() - (i.axis is not None) > 1
        ]  # a bias is none
        return matrices[-1] if matrices else None

    @property
    def unreached(self) -> list[str]:
        """Names of parameters with a slice that no task reaches."""
        return [item.name for item in self.slices if not item.reached_by.any(0).all()]

    def components(self) -> list[list[int]]:
        """Groups of tasks that are connected through shared parameters; tasks that share nothing
        stand alone.
        """
        group = list(range(len(self.tasks)))
        for item in self.slices:
            for column in item.reached_by.T:
                members = {group[t] for t in torch.nonzero(column).flatten().tolist()}
                if members:
                    group = [min(members) if g in members else g for g in group]
        return [[t for t, g in enumerate(group) if g == root] for root in sorted(set(group))]


class _Trial:
    """A forward pass of a copy with random parameters, and the gradients that any way to them must
    find.

    Args:
        model: The copy.
        batch: Rows.
    """

    def __init__(self, model: Architecture, batch: Batch) -> None:
        self.model = model
        self.output = model(batch)
        self.losses = owner_losses(model.objectives(self.output, batch), model.schema.task_names)
        names, values = zip(*model.named_parameters(), strict=True)
        self.by_task = [
            dict(zip(names, gradients(loss, values), strict=True)) for loss in self.losses
        ]

    def holds(self, paths: GradientRoutes) -> bool:
        """Whether the ways that are opened lead to the gradient of each task alone."""
        found = TaskGradients(paths, self.output, self.losses)
        for t, expected in enumerate(self.by_task):
            weights = torch.zeros(len(self.losses), device=self.losses[0].device)
            weights[t] = 1
            found.of([item for item in paths.slices if item.name in paths.trunk])
            own = found.combine(weights, weights)
            for item in paths.slices:
                if not self._equal(
                    own.get(item.name), expected[item.name], found.rows.get(item.name)
                ):
                    return False
        return True

    def below_boundary(self, paths: GradientRoutes) -> tuple[set[str], set[str]]:
        """The dense parameters that are reached from what tasks share at the boundary, and from
        what each has there.
        """
        boundary = self.output.boundary
        if isinstance(boundary, FirstLayerBoundary):
            layers = [
                boundary.first_layer.layers[place] for place in (boundary.trunk, boundary.gates)
            ]
            values = [
                [value for value in (layer.weight, layer.bias) if value is not None]
                for layer in layers
            ]
            trunk, private = (
                {paths.by_parameter[id(value)].name for value in own} for own in values
            )
            return trunk, private
        if not isinstance(boundary, TensorBoundary):
            return set(), set()
        return self._reached(boundary.trunk_output, paths), self._reached(
            boundary.gate_output, paths
        )

    @staticmethod
    def _reached(tensor: Tensor | None, paths: GradientRoutes) -> set[str]:
        if tensor is None:
            return set()
        dense = [item for item in paths.slices if not item.is_embedding]
        grads = gradients(tensor, [item.parameter for item in dense], tensor.detach())
        # layers that are computed as one give zeros in the stead of None
        return {
            item.name
            for item, grad in zip(dense, grads, strict=True)
            if grad is not None and bool(grad.any())
        }

    @staticmethod
    def _equal(found: Tensor | None, expected: Tensor | None, rows: Tensor | None) -> bool:
        if expected is not None and expected.is_sparse:
            expected = expected.coalesce()
            if rows is None or not torch.equal(rows, expected.indices()):
                return not expected.values().any()
            expected = expected.values()
        if found is None or expected is None:
            return not any(grad is not None and bool(grad.any()) for grad in (found, expected))
        return bool((found - expected).norm() <= SAME * expected.norm())


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
            if name.startswith("embedding.") or value.dim() == 1:
                value.copy_(draw.abs() if positive else draw)
            else:
                value.copy_(
                    draw.abs() / value.shape[-1] if positive else draw * value.shape[-1] ** -0.5
                )
    return twin
