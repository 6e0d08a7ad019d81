"""The gradients of each task on one batch, and their weighted sums, with as little work as possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlkit.models.base import Output
from mtlkit.training.reach import Reach, Slices, gradients


class TaskGradients:
    """Task gradients, computed no further down than they are asked for, and their weighted sums.

    Unless embedding tables are asked for, each task's gradient goes down to ``Inputs.cuts`` alone: beneath them one
    backward pass with a weighted sum serves all tables. Where the model says how its tasks part, one backward pass
    serves all towers, another all gates, and the tasks go apart only in between.

    Args:
        reach: Which task reaches which parameter.
        output: The forward pass.
        losses: T scalars, attached to the graph.

    Attributes:
        passes: Backward passes so far, through the layer that most of them went through.
        rows: The table rows of row-sparse gradients, which are kept as their values (M, ...).
    """

    def __init__(self, reach: Reach, output: Output, losses: Sequence[Tensor]) -> None:
        self.reach = reach
        self.losses = list(losses)
        self.passes = 0
        self.rows: dict[str, Tensor] = {}
        self.found: dict[str, list[Tensor | None]] = {}  # by parameter, the gradient of each task
        self._alone: dict[str, Tensor] = {}  # by parameter without a shared slice, the sum of the tasks' gradients
        self._cuts = output.inputs.cuts if reach.cuts and output.inputs is not None else []
        self._at_cuts: list[Sequence[Tensor | None]] = []  # by task
        self._parting = output.parting if reach.trunk else None
        self._at_private: Tensor | None = None  # the gradient of ``Parting.private``

    def of(self, items: Sequence[Slices]) -> list[list[Tensor | None]]:
        """For each parameter the gradient of each task, None where the task does not reach it."""
        missing = [item for item in items if item.name not in self.found]
        if missing and (self.found or any(item.is_embedding for item in missing)):
            self._separate(missing if self.found else self.reach.slices, [])
        elif missing:
            self._begin(all(item.name in self.reach.trunk for item in missing))
        return [self.found[item.name] for item in items]

    def _begin(self, part: bool) -> None:
        """Compute what :meth:`combine` needs at least, without a pass a task through the tables."""
        if not self._cuts:
            self._separate(self.reach.slices, [])
        elif part and self._parting is not None:
            self._part([item for item in self.reach.slices if item.name in self.reach.trunk])
        else:
            self._separate([item for item in self.reach.slices if not item.is_embedding], self._cuts)

    def combine(self, weights: Tensor, own: Tensor) -> dict[str, Tensor]:
        """Weighted sums of all parameters' gradients; a parameter without any is left out.

        Args:
            weights: (T,) of what tasks share.
            own: (T,) of slices that a task has for itself.
        """
        if not self.found and not self._at_cuts:
            self._begin(part=True)
        same = torch.equal(weights, own)
        out = {}
        for item in self.reach.slices:
            if item.name in self.found:
                total = _weighted_sum(self.found[item.name], item, weights, own)
                if total is not None:
                    out[item.name] = total
            elif item.name in self._alone:
                out[item.name] = self._alone[item.name] * item.expand(own @ item.reach.to(own))
        private = [item for item in self.reach.slices if item.name in self.reach.private and item.name not in out]
        tables = [item for item in self.reach.slices if item.is_embedding and item.name not in out]
        if same:
            return out | self._beneath([*private, *tables], weights)
        out |= self._beneath(tables, weights)
        apart = [item for item in tables if not item.all_shared]
        for name, grad in self._beneath([*private, *apart], own).items():
            item = next(item for item in self.reach.slices if item.name == name)
            out[name] = torch.where(item.expand(item.shared), out[name], grad) if name in out else grad
        return out

    def values(self, of: Any, items: Sequence[Slices], upstream: Any = None) -> list[Tensor | None]:
        """Gradients by parameters; of a row-sparse one its values (M, ...), with the rows remembered."""
        return [
            self._values(item, grad)
            for item, grad in zip(items, gradients(of, [item.parameter for item in items], upstream), strict=True)
        ]

    def _values(self, item: Slices, grad: Tensor | None) -> Tensor | None:
        if grad is None or not grad.is_sparse:
            return grad
        grad = grad.coalesce()
        self.rows[item.name] = grad.indices()  # the rows of the batch, whichever the task
        return grad.values()

    def _separate(self, items: Sequence[Slices], cuts: Sequence[Tensor]) -> None:
        """A backward pass for each task."""
        self.passes += len(self.losses)
        for item in items:
            self.found.setdefault(item.name, [])
        for t, loss in enumerate(self.losses):
            reached = [item for item in items if item.reach[t].any()]
            grads = gradients(loss, [*(item.parameter for item in reached), *cuts])
            own = {item.name: self._values(item, grad) for item, grad in zip(reached, grads, strict=False)}
            for item in items:
                self.found[item.name].append(own.get(item.name))
            if cuts:
                self._at_cuts.append(grads[len(reached) :])

    def _part(self, trunk: Sequence[Slices]) -> None:
        """One backward pass to where the tasks part, and one a task from there."""
        assert self._parting is not None
        self.passes += len(self.losses)
        parting, beneath = self._parting, self.reach.trunk | self.reach.private
        heads = [item for item in self.reach.slices if not item.is_embedding and item.name not in beneath]
        grad, *alone = gradients(torch.stack(self.losses).sum(), [parting.own, *(item.parameter for item in heads)])
        self._alone = {item.name: grad for item, grad in zip(heads, alone, strict=True) if grad is not None}
        by_task: list[Tensor | None] = [None] * len(self.losses)
        if grad is not None:
            by_shared, self._at_private = parting.pull(grad)
            by_task = list(by_shared)
        wanted = [*(item.parameter for item in trunk), *self._cuts]
        self.found = {item.name: [] for item in trunk}
        for t, upstream in enumerate(by_task):
            grads = gradients([parting.shared], wanted, [upstream])
            for item, own in zip(trunk, grads, strict=False):
                self.found[item.name].append(own if item.reach[t].any() else None)
            self._at_cuts.append(grads[len(trunk) :])

    def _beneath(self, items: Sequence[Slices], weights: Tensor) -> dict[str, Tensor]:
        """What weighted tasks mean beneath the cuts, and for the gates."""
        if not items or not self._at_cuts:
            return {}
        of = list(self._cuts)
        upstream = [_dot(weights, [own[k] for own in self._at_cuts]) for k in range(len(of))]
        if self._parting is not None and self._parting.private is not None and self._at_private is not None:
            of.append(self._parting.private)
            by_task = weights.to(self._at_private).view(1, -1, *[1] * (self._at_private.dim() - 2))
            upstream.append(self._at_private * by_task)
        found = self.values(of, items, upstream)
        return {item.name: grad for item, grad in zip(items, found, strict=True) if grad is not None}


def _weighted_sum(grads: Sequence[Tensor | None], item: Slices, weights: Tensor, own: Tensor) -> Tensor | None:
    if item.all_shared or torch.equal(weights, own):
        return _dot(weights, grads)
    by_slice = torch.where(item.shared, weights[:, None], own[:, None])  # (T, S)
    terms = [grad * item.expand(by_slice[t].to(grad)) for t, grad in enumerate(grads) if grad is not None]
    return torch.stack(terms).sum(0) if terms else None


def _dot(weights: Tensor, values: Sequence[Tensor | None]) -> Tensor | None:
    total: Tensor | None = None
    for weight, value in zip(weights, values, strict=True):
        if value is not None:
            weight = weight.to(value.dtype)
            total = value * weight if total is None else total.addcmul_(value, weight)
    return total
