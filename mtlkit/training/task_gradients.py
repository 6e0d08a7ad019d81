"""The gradients of each task on one batch, and their weighted sums, with as little work as
possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mtlkit.models._boundary import FirstLayerBoundary, TensorBoundary
from mtlkit.models._embedded_batch import FirstLayer
from mtlkit.models._output import Output
from mtlkit.ops.inner_products import inner_products
from mtlkit.training.parameter_slices import GradientRoutes, ParameterSlices, gradients
from mtlkit.training.shortcuts import (
    ColumnGradient,
    CutGradient,
    TaskBackward,
    parameters_of,
    weighted_sum,
)


class TaskGradients:
    """Task gradients, computed no further down than they are asked for, and their weighted sums.

    From the losses down: where the model says how its tasks part (``Output.boundary``), one
    backward pass serves all towers and another all gates, and the tasks go apart only in between.
    The layers that read the embedding (``Inputs.first_layers``) get the gradients of all tasks as
    one product. Beneath them, and beneath all ``Inputs.cuts``, one backward pass with a weighted
    sum serves all tables, unless the gradients of tables are asked for.

    Args:
        paths: The parameters, and the ways to their gradients.
        output: The forward pass.
        losses: T scalars, attached to the graph.

    Attributes:
        passes: Backward passes so far, through the layer that most of them went through.
        rows: The table rows of row-sparse gradients, which are kept as their values (M, ...).
    """

    def __init__(self, paths: GradientRoutes, output: Output, losses: Sequence[Tensor]) -> None:
        self.paths = paths
        self.losses = list(losses)
        self.passes = 0
        self.rows: dict[str, Tensor] = {}
        self.found: dict[str, list[Tensor | None]] = {}  # by parameter, the gradient of each task
        self._alone: dict[
            str, Tensor
        ] = {}  # by parameter without a shared slice, the sum of the tasks' gradients
        self._inputs = inputs = output.embedded  # None where a compiled graph is all there is
        self._products = inputs.first_layers if paths.first_layers and inputs is not None else []
        self._cut = paths.cuts and inputs is not None
        self._cuts = inputs.cuts if paths.cuts and inputs is not None else []
        self._at_cuts: list[CutGradient] = []
        self._boundary = output.boundary if paths.trunk else None
        self._at_boundary: Tensor | None = None  # the gradient of ``Parting.own``

    @property
    def begun(self) -> bool:
        """Whether anything is computed already, so that a pass from the losses would do it again."""
        return bool(self.found) or self._at_boundary is not None

    def of(self, items: Sequence[ParameterSlices]) -> list[list[Tensor | None]]:
        """For each parameter the gradient of each task, None where the task does not sharing it."""
        missing = [item for item in items if item.name not in self.found]
        if missing and (self.found or any(item.is_embedding for item in missing)):
            self._separate(missing if self.found else self.paths.slices)
        elif missing:
            self._begin(all(item.name in self.paths.trunk for item in missing))
        return [self.found[item.name] for item in items]

    def gramian(self, items: Sequence[ParameterSlices]) -> Tensor:
        """(T, T) float64 inner products of the task gradients over the shared slices of some
        parameters.
        """
        size = len(self.losses)
        total = self.losses[0].new_zeros(size, size, dtype=torch.float64)
        for item, grads in zip(items, self.of(items), strict=True):
            reached = [t for t, grad in enumerate(grads) if grad is not None]
            own = [
                grad if item.all_shared else grad * item.expand(item.shared)
                for grad in grads
                if grad is not None
            ]
            if len(own) == size:
                total += inner_products(own)
            elif own:
                places = torch.tensor(reached, device=total.device)
                total[places[:, None], places] += inner_products(own)
        return total

    def at_boundary(self) -> Tensor:
        """The gradient of ``Parting.own``, from one backward pass through all that stands above it."""
        assert self._boundary is not None
        if self._at_boundary is None:
            heads = self.paths.heads
            own, *alone = gradients(
                torch.stack(self.losses).sum(), [self._boundary.task_inputs, *parameters_of(heads)]
            )
            self._alone |= {
                item.name: grad for item, grad in zip(heads, alone, strict=True) if grad is not None
            }
            self._at_boundary = torch.zeros_like(self._boundary.task_inputs) if own is None else own
        return self._at_boundary

    def below_boundary(self, shared: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """The gradients of all that stands beneath, for one of ``Parting.shared``, and (T,) weights
        of the gates.
        """
        boundary = self._boundary
        assert isinstance(boundary, TensorBoundary)
        _, private = boundary.vjp(self.at_boundary())
        of, upstream = [boundary.trunk_output], [shared.view_as(boundary.trunk_output)]
        if boundary.gate_output is not None and private is not None:
            of.append(boundary.gate_output)
            upstream.append(_by_task(private, weights))
        return self._below_boundary(of, upstream)

    def combine(self, weights: Tensor, own: Tensor) -> dict[str, Tensor]:
        """Weighted sums of all parameters' gradients; a parameter without any is left out.

        Args:
            weights: (T,) of what tasks share.
            own: (T,) of slices that a task has for itself.
        """
        same = torch.equal(weights, own)
        if self._boundary is not None and self._at_boundary is not None and not self.found and same:
            out = self._below_boundary(
                [self._boundary.task_inputs], [_by_task(self._at_boundary, weights)]
            )
            return out | self._alone_times(own)  # the tasks need not go apart
        if not self.found:
            self._begin(part=True)
        out = self._alone_times(own)
        for item in self.paths.slices:
            if item.name in self.found:
                total = _by_slice(self.found[item.name], item, weights, own)
                if total is not None:
                    out[item.name] = total
        tables = [
            item for item in self.paths.slices if item.is_embedding and item.name not in self.found
        ]
        out |= self._below_cuts(tables, weights)
        apart = [] if same else [item for item in tables if not item.all_shared]
        for name, grad in self._below_cuts(apart, own).items():
            item = self.paths.by_name[name]
            out[name] = (
                torch.where(item.expand(item.shared), out[name], grad) if name in out else grad
            )
        return out

    def values(
        self, of: Any, items: Sequence[ParameterSlices], upstream: Any = None
    ) -> list[Tensor | None]:
        """Gradients by parameters; of a row-sparse one its values (M, ...), with the rows
        remembered.
        """
        found = gradients(of, parameters_of(items), upstream)
        return [self._values(item, grad) for item, grad in zip(items, found, strict=True)]

    def _values(self, item: ParameterSlices, grad: Tensor | None) -> Tensor | None:
        if grad is None or not grad.is_sparse:
            return grad
        grad = grad.coalesce()
        self.rows[item.name] = grad.indices()  # the rows of the batch, whichever the task
        return grad.values()

    def _begin(self, part: bool) -> None:
        """Compute what :meth:`combine` needs at least, without a pass a task through the tables."""
        if part and self._boundary is not None:
            self._part()
        elif self._cut:
            self._separate([item for item in self.paths.slices if not item.is_embedding], cut=True)
        else:
            self._separate(self.paths.slices)

    def _separate(self, items: Sequence[ParameterSlices], cut: bool = False) -> None:
        """A backward pass for each task, to the parameters, or to those above the cuts."""
        descent = TaskBackward(items, self._products if cut else [], self._cuts if cut else [])
        for t, loss in enumerate(self.losses):
            descent.of_task(t, [loss])
        self._take(descent)

    def _part(self) -> None:
        """One backward pass to where the tasks part, one for their gates, and one a task for what
        they share.
        """
        at_boundary, boundary = self.at_boundary(), self._boundary
        if isinstance(boundary, FirstLayerBoundary):
            self.passes += len(self.losses)
            self._through(boundary.first_layer, boundary.vjp(at_boundary), boundary.column_owners)
            return
        assert isinstance(boundary, TensorBoundary)
        by_task, private = boundary.vjp(at_boundary)
        trunk = [item for item in self.paths.slices if item.name in self.paths.trunk]
        gates = [item for item in self.paths.slices if item.name in self.paths.private]
        descent = TaskBackward(trunk, self._products, self._cuts, gates)
        for t, upstream in enumerate(by_task):
            descent.of_task(t, [boundary.trunk_output], [upstream])
        if boundary.gate_output is not None and private is not None:
            descent.of_all(boundary.gate_output, private)
        self._take(descent)

    def _take(self, descent: TaskBackward) -> None:
        """Keep what a descent has found, and go through the products."""
        self.passes += len(self.losses)
        for item, own in descent.found():
            self.found[item.name] = [self._values(item, grad) for grad in own]
        for item in descent.of_products:
            self.found[item.name] = [None] * len(self.losses)
        self._alone |= descent.found_alone()
        self._at_cuts += [CutGradient(cut, own) for cut, own in descent.found_at_cuts()]
        for product, columns, places in descent.found_at_products():
            self._through(product, columns, places)

    def _through(
        self, product: FirstLayer, columns: Tensor, places: Sequence[tuple[int, int | None]]
    ) -> None:
        """Keep the gradients of a product's layers, and those at its cuts.

        Args:
            product: The product.
            columns: (B, C) gradients of its outputs.
            places: Of all outputs of a layer after the other: the layer, and the task whose
                gradient it is; None where it is that of all tasks, of which each has slices of its
                own.
        """
        assert self._inputs is not None
        by_weight, by_bias, at_cuts = self._inputs.vjp(columns)
        widths = [product.sizes[layer] for layer, _ in places]
        for (place, task), *grads in zip(
            places, by_weight.split(widths), by_bias.split(widths), strict=True
        ):
            layer = product.layers[place]
            for value, grad in zip((layer.weight, layer.bias), grads, strict=True):
                if value is not None:
                    name, own = (
                        self.paths.by_parameter[id(value)].name,
                        grad.view_as(value).to(value.dtype),
                    )
                    if task is None:
                        self._alone[name] = own
                    else:
                        self.found.setdefault(name, [None] * len(self.losses))[task] = own
        layers = [self.paths.by_parameter[id(layer.weight)] for layer in product.layers]
        for cut, at in zip(product.cuts, at_cuts, strict=True):
            pieces = [
                ColumnGradient(*place, own)
                for place, own in zip(places, at.split(widths, 1), strict=True)
            ]
            self._at_cuts.append(
                CutGradient(cut, pieces=pieces, sizes=product.sizes, layers=layers)
            )

    def _below_boundary(
        self, of: Sequence[Tensor], upstream: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        self.passes += 1
        heads = {item.name for item in self.paths.heads}
        items = [item for item in self.paths.slices if item.name not in heads]
        found = self.values(of, items, upstream)
        return {
            item.name: grad for item, grad in zip(items, found, strict=True) if grad is not None
        }

    def _below_cuts(self, tables: Sequence[ParameterSlices], weights: Tensor) -> dict[str, Tensor]:
        """What weighted tasks mean for the tables."""
        if not tables or not self._at_cuts:
            return {}
        found = self.values(
            [c.tensor for c in self._at_cuts], tables, [c.sum(weights) for c in self._at_cuts]
        )
        return {
            item.name: grad for item, grad in zip(tables, found, strict=True) if grad is not None
        }

    def _alone_times(self, own: Tensor) -> dict[str, Tensor]:
        """The gradients of what each task has for itself, with its weight."""
        out = {}
        for name, grad in self._alone.items():
            item = self.paths.by_name[name]
            out[name] = grad * item.expand(item.by_slice(own)).to(grad.dtype)
        return out


def _by_task(grad: Tensor, weights: Tensor) -> Tensor:
    """A gradient (B, T, ...) times the weight (T,) of each task."""
    return grad * weights.to(grad).view(1, -1, *[1] * (grad.dim() - 2))


def _by_slice(
    grads: Sequence[Tensor | None], item: ParameterSlices, weights: Tensor, own: Tensor
) -> Tensor | None:
    if item.all_shared or torch.equal(weights, own):
        return weighted_sum(weights, grads)
    by_slice = torch.where(item.shared, weights[:, None], own[:, None])  # (T, S)
    terms = [
        grad * item.expand(by_slice[t].to(grad)) for t, grad in enumerate(grads) if grad is not None
    ]
    return torch.stack(terms).sum(0) if terms else None
