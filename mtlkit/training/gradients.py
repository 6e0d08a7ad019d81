"""The gradients of each task on one batch, and their weighted sums, with as little work as possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mtlkit.models.base import Output
from mtlkit.models.embedding import Product
from mtlkit.models.kernels import inner_product
from mtlkit.training.reach import Reach, Slices, gradients


class TaskGradients:
    """Task gradients, computed no further down than they are asked for, and their weighted sums.

    From the losses down: where the model says how its tasks part (``Output.parting``), one backward pass serves all
    towers and another all gates, and the tasks go apart only in between. The layers that read the embedding
    (``Inputs.products``) get the gradients of all tasks as one product. Beneath them, and beneath all ``Inputs.cuts``,
    one backward pass with a weighted sum serves all tables, unless the gradients of tables are asked for.

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
        inputs = output.inputs
        self._products = inputs.products if reach.products and inputs is not None else []
        self._cuts = inputs.cuts if reach.cuts and inputs is not None else []
        self._at_cuts: list[_Cut] = []
        self._parting = output.parting if reach.trunk else None
        self._at_parting: Tensor | None = None  # the gradient of ``Parting.own``

    @property
    def begun(self) -> bool:
        """Whether anything is computed already, so that a pass from the losses would do it again."""
        return bool(self.found) or self._at_parting is not None

    def of(self, items: Sequence[Slices]) -> list[list[Tensor | None]]:
        """For each parameter the gradient of each task, None where the task does not reach it."""
        missing = [item for item in items if item.name not in self.found]
        if missing and (self.found or any(item.is_embedding for item in missing)):
            self._separate(missing if self.found else self.reach.slices)
        elif missing:
            self._begin(all(item.name in self.reach.trunk for item in missing))
        return [self.found[item.name] for item in items]

    def gram(self, items: Sequence[Slices]) -> Tensor:
        """(T, T) float64 inner products of the task gradients over the shared slices of some parameters."""
        size = len(self.losses)
        total = torch.zeros(size, size, dtype=torch.float64)
        for item, grads in zip(items, self.of(items), strict=True):
            for t, one in enumerate(grads):
                if one is not None:
                    own = one if item.all_shared else one * item.expand(item.shared)
                    for s, other in enumerate(grads[: t + 1]):
                        if other is not None:
                            total[t, s] += inner_product(own, other)
        return total + total.tril(-1).T

    def at_parting(self) -> Tensor:
        """The gradient of ``Parting.own``, from one backward pass through all that stands above it."""
        assert self._parting is not None
        if self._at_parting is None:
            heads = [item for item in self.reach.slices if item.name in self.reach.heads]
            own, *alone = gradients(torch.stack(self.losses).sum(), [self._parting.own, *_parameters(heads)])
            self._alone |= {item.name: grad for item, grad in zip(heads, alone, strict=True) if grad is not None}
            self._at_parting = torch.zeros_like(self._parting.own) if own is None else own
        return self._at_parting

    def beneath_parting(self, shared: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """The gradients of all that stands beneath, for one of ``Parting.shared``, and (T,) weights of the gates."""
        assert self._parting is not None
        _, private = self._parting.pull(self.at_parting())
        of, upstream = [self._parting.shared], [shared.view_as(self._parting.shared)]
        if self._parting.private is not None and private is not None:
            of.append(self._parting.private)
            upstream.append(_by_task(private, weights))
        return self._beneath_parting(of, upstream)

    def combine(self, weights: Tensor, own: Tensor) -> dict[str, Tensor]:
        """Weighted sums of all parameters' gradients; a parameter without any is left out.

        Args:
            weights: (T,) of what tasks share.
            own: (T,) of slices that a task has for itself.
        """
        same = torch.equal(weights, own)
        if self._parting is not None and self._at_parting is not None and not self.found and same:
            out = self._beneath_parting([self._parting.own], [_by_task(self._at_parting, weights)])
            return out | self._alone_times(own)  # the tasks need not go apart
        if not self.found:
            self._begin(part=True)
        out = self._alone_times(own)
        for item in self.reach.slices:
            if item.name in self.found:
                total = _weighted_sum(self.found[item.name], item, weights, own)
                if total is not None:
                    out[item.name] = total
        tables = [item for item in self.reach.slices if item.is_embedding and item.name not in self.found]
        out |= self._beneath_cuts(tables, weights)
        apart = [] if same else [item for item in tables if not item.all_shared]
        for name, grad in self._beneath_cuts(apart, own).items():
            item = self.reach.by_name[name]
            out[name] = torch.where(item.expand(item.shared), out[name], grad) if name in out else grad
        return out

    def values(self, of: Any, items: Sequence[Slices], upstream: Any = None) -> list[Tensor | None]:
        """Gradients by parameters; of a row-sparse one its values (M, ...), with the rows remembered."""
        found = gradients(of, _parameters(items), upstream)
        return [self._values(item, grad) for item, grad in zip(items, found, strict=True)]

    def _values(self, item: Slices, grad: Tensor | None) -> Tensor | None:
        if grad is None or not grad.is_sparse:
            return grad
        grad = grad.coalesce()
        self.rows[item.name] = grad.indices()  # the rows of the batch, whichever the task
        return grad.values()

    def _begin(self, part: bool) -> None:
        """Compute what :meth:`combine` needs at least, without a pass a task through the tables."""
        if part and self._parting is not None:
            self._part()
        elif self.reach.cuts:
            self._separate([item for item in self.reach.slices if not item.is_embedding], cut=True)
        else:
            self._separate(self.reach.slices)

    def _separate(self, items: Sequence[Slices], cut: bool = False) -> None:
        """A backward pass for each task, to the parameters, or to those above the cuts."""
        descent = _Descent(items, self._products if cut else [], self._cuts if cut else [])
        for t, loss in enumerate(self.losses):
            descent.of_task(t, [loss])
        self._take(descent)

    def _part(self) -> None:
        """One backward pass to where the tasks part, one for their gates, and one a task for what they share."""
        assert self._parting is not None
        by_task, private = self._parting.pull(self.at_parting())
        trunk = [item for item in self.reach.slices if item.name in self.reach.trunk]
        gates = [item for item in self.reach.slices if item.name in self.reach.private]
        descent = _Descent(trunk, self._products, self._cuts, gates)
        for t, upstream in enumerate(by_task):
            descent.of_task(t, [self._parting.shared], [upstream])
        if self._parting.private is not None and private is not None:
            descent.of_all(self._parting.private, private)
        self._take(descent)

    def _take(self, descent: _Descent) -> None:
        self.passes += len(self.losses)
        found, alone, at_cuts = descent.result(self.reach)
        self.found |= {name: [self._values(self.reach.by_name[name], g) for g in own] for name, own in found.items()}
        self._alone |= alone
        self._at_cuts += at_cuts

    def _beneath_parting(self, of: Sequence[Tensor], upstream: Sequence[Tensor]) -> dict[str, Tensor]:
        self.passes += 1
        items = [item for item in self.reach.slices if item.name not in self.reach.heads]
        found = self.values(of, items, upstream)
        return {item.name: grad for item, grad in zip(items, found, strict=True) if grad is not None}

    def _beneath_cuts(self, tables: Sequence[Slices], weights: Tensor) -> dict[str, Tensor]:
        """What weighted tasks mean for the tables."""
        if not tables or not self._at_cuts:
            return {}
        found = self.values([c.tensor for c in self._at_cuts], tables, [c.sum(weights) for c in self._at_cuts])
        return {item.name: grad for item, grad in zip(tables, found, strict=True) if grad is not None}

    def _alone_times(self, own: Tensor) -> dict[str, Tensor]:
        """The gradients of what each task has for itself, with its weight."""
        items = [self.reach.by_name[name] for name in self._alone]
        return {
            i.name: self._alone[i.name] * i.expand(own @ i.reach.to(own)).to(self._alone[i.name].dtype) for i in items
        }


@dataclass
class _Piece:
    """Gradients of the outputs of a layer that is part of a product.

    Args:
        layer: Place of the layer in the product.
        task: Whose gradient it is; None for all tasks in one, where each slice of the stack belongs to one task.
        columns: (rows, n * O).
    """

    layer: int
    task: int | None
    columns: Tensor


@dataclass
class _Cut:
    """The gradients at a tensor through which tables are reached: one a task, or pieces (rows, n * O) of its columns.

    Args:
        tensor: The tensor.
        by_task: The gradient of each task.
        pieces: In the stead of these, gradients of columns.
        layers: The parameter slices of the layers whose outputs are the columns.
    """

    tensor: Tensor
    by_task: Sequence[Tensor | None] = ()
    pieces: Sequence[_Piece] = ()
    layers: Sequence[Slices] = ()

    def sum(self, weights: Tensor) -> Tensor | None:
        """The weighted sum over the tasks (T,)."""
        if not self.pieces:
            return _dot(weights, self.by_task)
        out = torch.zeros_like(self.tensor)
        parts = out.split([layer.parameter.shape[0] * layer.parameter.shape[1] for layer in self.layers], 1)
        for piece in self.pieces:
            reach = self.layers[piece.layer].reach  # (T, n)
            factor = weights @ reach.to(weights) if piece.task is None else weights[piece.task].expand(reach.shape[1])
            part = parts[piece.layer].unflatten(1, (len(factor), -1))  # (rows, n, O)
            part.addcmul_(piece.columns.view_as(part), factor[:, None].to(out.dtype))
        return out


class _Descent:
    """Backward passes of the tasks, one after the other, to parameters, to the outputs of products and to cuts.

    Args:
        items: The parameters that each task is differentiated by.
        products: The layers above the embedding at whose outputs to stop.
        cuts: Other tensors at which to stop; those of products are left out.
        alone: Parameters of one task each, which all tasks are differentiated by at once.
    """

    def __init__(
        self,
        items: Sequence[Slices],
        products: Sequence[Product],
        cuts: Sequence[Tensor],
        alone: Sequence[Slices] = (),
    ) -> None:
        made = {id(value) for product in products for value in product.parameters()}
        under = {id(cut) for product in products for cut in product.cuts}
        self.products = products
        self.items = [item for item in items if id(item.parameter) not in made]
        self.alone = [item for item in alone if id(item.parameter) not in made]
        self.cuts = [cut for cut in cuts if id(cut) not in under]
        self.outputs = [output for product in products for output in product.outputs]
        self.by_task: list[tuple[Tensor | None, ...]] = []
        self.of_alone: tuple[Tensor | None, ...] = (None,) * (len(self.alone) + len(self.outputs))

    def of_task(self, t: int, of: Sequence[Tensor], upstream: Any = None) -> None:
        """Go down from some tensors that only task t is differentiated by."""
        reached = [item.parameter if item.reach[t].any() else None for item in self.items]
        wanted = [value for value in reached if value is not None]
        found = iter(gradients(of, [*wanted, *self.outputs, *self.cuts], upstream))
        by_item = [None if value is None else next(found) for value in reached]
        self.by_task.append((*by_item, *found))

    def of_all(self, of: Tensor, upstream: Tensor) -> None:
        """Go down from a tensor beneath which no parameter belongs to two tasks, for all of them at once."""
        self.of_alone = gradients(of, [*_parameters(self.alone), *self.outputs], upstream)

    def result(self, reach: Reach) -> tuple[dict[str, list[Tensor | None]], dict[str, Tensor], list[_Cut]]:
        """By parameter the gradient of each task; the gradients of all tasks in one; and those at the cuts."""
        items, outputs = len(self.items), len(self.outputs)
        columns = [list(own) for own in zip(*self.by_task, strict=True)]
        found = {item.name: own for item, own in zip(self.items, columns, strict=False)}
        alone = {item.name: own for item, own in zip(self.alone, self.of_alone, strict=False) if own is not None}
        cuts = [_Cut(cut, own) for cut, own in zip(self.cuts, columns[items + outputs :], strict=True)]
        at_outputs = zip(columns[items : items + outputs], self.of_alone[len(self.alone) :], strict=True)
        for product in self.products:
            pieces = [
                _Piece(k, t, grad.flatten(1))
                for k, (by_task, at_once) in enumerate(islice(at_outputs, len(product.layers)))
                for t, grad in [*enumerate(by_task), (None, at_once)]
                if grad is not None
            ]
            if pieces:
                cuts += self._through(product, pieces, reach, found, alone)
        return found, alone, cuts

    def _through(
        self,
        product: Product,
        pieces: Sequence[_Piece],
        reach: Reach,
        found: dict[str, list[Tensor | None]],
        alone: dict[str, Tensor],
    ) -> list[_Cut]:
        """Add the gradients of a product's layers to ``found`` and ``alone``, and return those at its cuts."""
        joined = torch.cat([piece.columns for piece in pieces], 1) if len(pieces) > 1 else pieces[0].columns
        by_weight, at_cuts = product.pull(joined)
        widths = [piece.columns.shape[1] for piece in pieces]
        by_bias = joined.sum(0).split(widths)
        for piece, *grads in zip(pieces, by_weight.split(widths), by_bias, strict=True):
            layer = product.layers[piece.layer]
            for value, grad in zip((layer.weight, layer.bias), grads, strict=True):
                if value is None:
                    continue
                name, grad = reach.by_parameter[id(value)].name, grad.view_as(value).to(value.dtype)
                if piece.task is None:
                    alone[name] = grad
                else:
                    found.setdefault(name, [None] * len(self.by_task))[piece.task] = grad
        layers = [reach.by_parameter[id(layer.weight)] for layer in product.layers]
        return [
            _Cut(
                cut,
                pieces=[_Piece(p.layer, p.task, own) for p, own in zip(pieces, at.split(widths, 1), strict=True)],
                layers=layers,
            )
            for cut, at in zip(product.cuts, at_cuts, strict=True)
        ]


def _parameters(items: Sequence[Slices]) -> list[Tensor]:
    return [item.parameter for item in items]


def _by_task(grad: Tensor, weights: Tensor) -> Tensor:
    """A gradient (B, T, ...) times the weight (T,) of each task."""
    return grad * weights.to(grad).view(1, -1, *[1] * (grad.dim() - 2))


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
