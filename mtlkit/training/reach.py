"""Which task reaches which parameter: found by looking at gradients, never by name or class."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mtlkit.balancers.base import Scope
from mtlkit.models.base import Architecture, Batch, Objective, Output
from mtlkit.models.embedding import Product

DRAWS = 2
SAME = 1e-3  # of the length of a gradient, as far as two ways to it may differ in single precision


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
        checks: list[Shortcuts] = []
        for draw in range(DRAWS):
            twin = _randomised(model, seed + draw, positive=draw > 0)
            output = twin(batch)
            losses = owner_losses(twin.objectives(output, batch), tasks)
            names, values = zip(*twin.named_parameters(), strict=True)
            by_task = [gradients(loss, values) for loss in losses]
            checks.append(Shortcuts(output, losses, dict(twin.named_parameters()), by_task))
            for t, grads in enumerate(by_task):
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
        self.by_name = {item.name: item for item in self.slices}
        self.by_parameter = {id(item.parameter): item for item in self.slices}
        self.cuts = all(check.cuts for check in checks)
        """Whether the embedding tables reach the losses through ``Inputs.cuts`` alone."""
        self.products = self.cuts and all(check.products for check in checks)
        """Whether ``Inputs.products`` know the gradients of their layers."""
        shared = {item.name for item in self.slices if item.any_shared and not item.is_embedding}
        self.trunk: set[str] = set.union(*(check.trunk for check in checks))
        """The parameters that each task's gradient reaches from ``Parting.shared``; empty without a valid parting."""
        self.private: set[str] = set.union(*(check.private for check in checks))
        """Those that it reaches from ``Parting.private``."""
        valid = self.cuts and all(check.parting for check in checks)
        if not valid or not shared <= self.trunk or self.trunk & self.private:
            self.trunk, self.private = set(), set()
        self.heads = {item.name for item in self.slices if not item.is_embedding} - self.trunk - self.private
        """Those that stand above ``Parting.own``."""

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


class Shortcuts:
    """Ways to the gradients that do less, each compared with the gradients themselves on one forward pass.

    Args:
        output: The forward pass, of a model with random parameters.
        losses: By task.
        parameters: Of the model.
        by_task: For each task the gradients of all parameters.
    """

    def __init__(
        self,
        output: Output,
        losses: Sequence[Tensor],
        parameters: Mapping[str, Tensor],
        by_task: Sequence[Sequence[Tensor | None]],
    ) -> None:
        tables = {name: value for name, value in parameters.items() if name.startswith("embedding.")}
        dense = {name: value for name, value in parameters.items() if name not in tables}
        expected = [dict(zip(parameters, grads, strict=True)) for grads in by_task]
        cuts = output.inputs.cuts if output.inputs is not None else []
        products = output.inputs.products if output.inputs is not None else []
        self.cuts = (bool(cuts) or not tables) and all(
            self._equal(tables, gradients(cuts, list(tables.values()), gradients(loss, cuts)), own)
            for loss, own in zip(losses, expected, strict=True)
        )
        self.products = self.cuts and all(self._known(product, parameters, losses, expected) for product in products)
        self.parting = False
        self.trunk: set[str] = set()
        self.private: set[str] = set()
        parting = output.parting
        if not self.cuts or parting is None:
            return
        (grad,) = gradients(torch.stack(list(losses)).sum(), [parting.own])
        if grad is None:
            return
        by_shared, private = parting.pull(grad)
        from_shared = gradients(parting.shared, list(dense.values()), parting.shared.detach())
        self.trunk = {name for name, found in zip(dense, from_shared, strict=True) if _reaches(found)}
        beneath = dict(parameters)
        for name, found in zip(dense, gradients(parting.own, list(dense.values()), grad), strict=True):
            if found is None:
                del beneath[name]  # it stands above
        self.private = beneath.keys() - tables.keys() - self.trunk
        self.parting = True
        for t, own in enumerate(expected):
            sources, upstream = [parting.shared], [by_shared[t]]
            if parting.private is not None and private is not None:
                alone = torch.zeros_like(private)
                alone[:, t] = private[:, t]
                sources.append(parting.private)
                upstream.append(alone)
                from_private = gradients(parting.private, list(dense.values()), alone)
                self.private |= {name for name, found in zip(dense, from_private, strict=True) if _reaches(found)}
            self.parting &= self._equal(beneath, gradients(sources, list(beneath.values()), upstream), own)

    def _known(
        self,
        product: Product,
        parameters: Mapping[str, Tensor],
        losses: Sequence[Tensor],
        expected: Sequence[Mapping[str, Tensor | None]],
    ) -> bool:
        names = {id(value): name for name, value in parameters.items()}
        for loss, own in zip(losses, expected, strict=True):
            for layer, grad in zip(product.layers, gradients(loss, product.outputs), strict=True):
                if grad is None:
                    found: list[Tensor | None] = [None, None]
                else:
                    columns = grad.flatten(1)
                    found = [product.pull(columns)[0].view_as(layer.weight), columns.sum(0)]
                for value, gradient in zip((layer.weight, layer.bias), found, strict=True):
                    if value is not None:
                        gradient = None if gradient is None else gradient.view_as(value)
                        if not self._equal([names[id(value)]], [gradient], own):
                            return False
        return True

    @staticmethod
    def _equal(names: Iterable[str], found: Sequence[Tensor | None], expected: Mapping[str, Tensor | None]) -> bool:
        for name, one in zip(names, found, strict=True):
            other = expected[name]
            if one is None or other is None:
                if any(_reaches(grad) for grad in (one, other)):
                    return False
            elif one.is_sparse != other.is_sparse or not bool(_size(one - other) <= SAME * _size(other)):
                return False
        return True


def _reaches(grad: Tensor | None) -> bool:
    """Whether there is a path: layers that are computed as one give zeros in the stead of None."""
    return grad is not None and bool(_size(grad) > 0)


def _size(grad: Tensor) -> Tensor:
    """The norm; of a row-sparse gradient without the table's other rows."""
    return (grad.coalesce().values() if grad.is_sparse else grad).norm()


def gradients(
    of: Tensor | Sequence[Tensor], parameters: Sequence[Tensor], upstream: Any = None
) -> tuple[Tensor | None, ...]:
    """Gradients of a tensor, or of several with a gradient each; None where there is no path."""
    several = [of] if isinstance(of, Tensor) else list(of)
    given: list[Tensor | None] = [upstream] if upstream is None or isinstance(upstream, Tensor) else list(upstream)
    pairs = [
        (one, grad)
        for one, grad in zip(several, given * len(several) if upstream is None else given, strict=True)
        if one.requires_grad and (grad is not None or upstream is None)
    ]
    if not pairs or not parameters:
        return (None,) * len(parameters)
    tensors, grads = zip(*pairs, strict=True)
    return torch.autograd.grad(tensors, parameters, grads, retain_graph=True, allow_unused=True)


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
