"""Which task reaches which parameter: found by looking at gradients, never by name or class."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mtlkit.balancers.base import Scope
from mtlkit.models.base import Architecture, Batch, Objective

DRAWS = 2


class Slices:
    """One parameter, cut along its stack axis (a parameter without one is a single slice).

    Args:
        name: Its name in the model.
        parameter: The parameter.
        reach: (T, S) bool: whether task t reaches slice s.
        axis: The stack axis, or None.
        sparse: Whether its gradients are row-sparse.
    """

    def __init__(
        self, name: str, parameter: nn.Parameter, reach: Tensor, axis: int | None, sparse: bool = False
    ) -> None:
        self.name = name
        self.parameter = parameter
        self.reach = reach
        self.axis = axis
        self.sparse = sparse
        self.shared = reach.sum(0) >= 2  # (S,) bool: reached by two tasks or more
        self.any_shared = bool(self.shared.any())
        self.all_shared = bool(self.shared.all())
        self.is_embedding = name.startswith("embedding.")
        self.part = name.partition(".")[0]  # the top-level module that holds it, e.g. "experts"

    def expand(self, values: Tensor) -> Tensor:
        """Values by slice (S,), in a shape that multiplies the parameter."""
        if self.axis is None:
            return values.view([1] * self.parameter.dim())
        shape = [1] * self.parameter.dim()
        shape[self.axis] = len(values)
        return values.view(shape)


class Reach:
    """The reach of every task in a model.

    Each task's loss is differentiated on a copy of the model whose parameters are drawn at random, so that neither zero
    initialisations nor dead units hide a path. Batched layers give zeros where a list of layers would give None;
    therefore a slice counts as reached when its gradient is not all zero.

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
            name: torch.zeros(len(tasks), value.shape[axes[name]] if name in axes else 1, dtype=torch.bool)
            for name, value in model.named_parameters()
        }
        sparse: set[str] = set()
        for draw in range(DRAWS):
            twin = _randomised(model, seed + draw, positive=draw > 0)
            losses = owner_losses(twin.objectives(twin(batch), batch), tasks)
            names, values = zip(*twin.named_parameters(), strict=True)
            for t, loss in enumerate(losses):
                if not loss.requires_grad:
                    continue
                grads = torch.autograd.grad(loss, values, retain_graph=True, allow_unused=True)
                for name, grad in zip(names, grads, strict=True):
                    if grad is not None:
                        if grad.is_sparse:
                            sparse.add(name)
                            grad = grad.coalesce().values()
                        axis = axes.get(name)
                        moved = grad.reshape(1, -1) if axis is None else grad.movedim(axis, 0).flatten(1)
                        found[name][t] |= (moved != 0).any(1).cpu()
        self.tasks = tasks
        self.slices = [
            Slices(name, value, found[name].to(value.device), axes.get(name), name in sparse)
            for name, value in model.named_parameters()
        ]

    def scope(self, scope: Scope) -> list[Slices]:
        """The parameters of a scope that have a shared slice. ``dense`` falls back to all when it would be empty."""
        shared = [item for item in self.slices if item.any_shared]
        dense = [item for item in shared if not item.is_embedding]
        return dense if scope == "dense" and dense else shared

    @property
    def last(self) -> Slices | None:
        """The last shared weight: of the shared dense matrices, or stacks of them, the one registered last."""
        matrices = [i for i in self.scope("dense") if i.parameter.dim() - (i.axis is not None) > 1]  # a bias is none
        return matrices[-1] if matrices else None

    @property
    def unreached(self) -> list[str]:
        """Names of parameters with a slice that no task reaches."""
        return [item.name for item in self.slices if not item.reach.any(0).all()]

    def components(self) -> list[list[int]]:
        """Groups of tasks that are connected through shared parameters; tasks that share nothing stand alone."""
        group = list(range(len(self.tasks)))
        for item in self.slices:
            for column in item.reach.T:
                members = {group[t] for t in torch.nonzero(column).flatten().tolist()}
                if members:
                    group = [min(members) if g in members else g for g in group]
        return [[t for t, g in enumerate(group) if g == root] for root in sorted(set(group))]


def owner_losses(objectives: Sequence[Objective], tasks: Sequence[str]) -> list[Tensor]:
    """Losses summed by the task they are charged to, in task order; a task without any has a constant 0."""
    zero = torch.zeros_like(objectives[0].loss)  # not loss * 0, which would spread an infinite loss to all tasks
    return [sum((o.loss for o in objectives if o.owner == task), start=zero) for task in tasks]


def owner_active(objectives: Sequence[Objective], tasks: Sequence[str], device: torch.device) -> Tensor:
    """(T,) bool: which tasks own an objective for which the batch has a label."""
    if all(o.active is None for o in objectives) and {o.owner for o in objectives} == set(tasks):
        return torch.ones(len(tasks), dtype=torch.bool, device=device)
    out = []
    for task in tasks:
        own = [o.active for o in objectives if o.owner == task]
        masks = [a for a in own if a is not None]
        certain = torch.tensor(len(masks) < len(own), device=device)
        out.append(torch.stack([certain, *masks]).any())
    return torch.stack(out)


def _randomised(model: Architecture, seed: int, positive: bool) -> Architecture:
    """A copy in evaluation mode with random parameters of a size that keeps activations alive.

    With both signs a narrow layer may be dead; positive parameters keep it alive, but saturate gates sooner. A path is
    therefore looked for under both.
    """
    twin = copy.deepcopy(model).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in twin.named_parameters():
            draw = torch.randn(value.shape, generator=generator)
            if name.startswith("embedding.") or value.dim() == 1:
                value.copy_(draw.abs() if positive else draw)
            else:
                value.copy_(draw.abs() / value.shape[-1] if positive else draw * value.shape[-1] ** -0.5)
    return twin
