"""Backward passes of the tasks, one after the other, and what they have left where they stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtlkit.models._embedded_batch import FirstLayer
from mtlkit.training.parameter_slices import ParameterSlices, gradients


@dataclass
class ColumnGradient:
    """The gradient (rows, n * O) of the outputs of a layer in a product, of one task or (None) of
    all.
    """

    layer: int
    task: int | None
    columns: Tensor


@dataclass
class CutGradient:
    """The gradients at a tensor through which tables are reached.

    Args:
        tensor: The tensor.
        by_task: The gradient of each task.
        pieces: In the stead of these, gradients of some of its columns, which are the outputs of a
            product's layers.
        sizes: How many columns each layer has.
        layers: The weights of these layers.
    """

    tensor: Tensor
    by_task: Sequence[Tensor | None] = ()
    pieces: Sequence[ColumnGradient] = ()
    sizes: Sequence[int] = ()
    layers: Sequence[ParameterSlices] = ()

    def sum(self, weights: Tensor) -> Tensor | None:
        """The weighted sum over the tasks (T,)."""
        if not self.pieces:
            return weighted_sum(weights, self.by_task)
        out = torch.zeros_like(self.tensor)
        parts = out.split(list(self.sizes), 1)
        for piece in self.pieces:
            part, columns = parts[piece.layer], piece.columns
            if piece.task is None:
                factor = self.layers[piece.layer].by_slice(weights)  # (n,)
                part.addcmul_(
                    columns, factor.to(out.dtype).repeat_interleave(part.shape[1] // len(factor))
                )
            else:
                part.addcmul_(columns, weights[piece.task].to(out.dtype))
        return out


class TaskBackward:
    """Backward passes of the tasks, one after the other, to parameters, to the ends of products and
    to cuts.

    Args:
        items: The parameters that each task is differentiated by.
        products: The layers that read the embedding, at whose outputs to stop.
        cuts: Other tensors at which to stop; those of products are left out.
        alone: Parameters of one task each, which all tasks are differentiated by at once.
    """

    def __init__(
        self,
        items: Sequence[ParameterSlices],
        products: Sequence[FirstLayer],
        cuts: Sequence[Tensor],
        alone: Sequence[ParameterSlices] = (),
    ) -> None:
        made = {id(value) for product in products for value in product.parameters()}
        under = {id(cut) for product in products for cut in product.cuts}
        self.items = [item for item in items if id(item.parameter) not in made]
        self.of_products = [item for item in items if id(item.parameter) in made]
        self.alone = [item for item in alone if id(item.parameter) not in made]
        self.cuts = [cut for cut in cuts if id(cut) not in under]
        self.endpoints = [(product, *end) for product in products for end in product.endpoints]
        self._tensors = [tensor for _, tensor, _ in self.endpoints]
        self._by_task: list[tuple[Tensor | None, ...]] = []
        self._at_once: tuple[Tensor | None, ...] = (None,) * (len(self.alone) + len(self.endpoints))

    def of_task(self, t: int, of: Sequence[Tensor], upstream: Any = None) -> None:
        """Go down from some tensors that only task t is differentiated by."""
        reached = [item for item in self.items if item.reached_by[t].any()]
        found = gradients(of, [*parameters_of(reached), *self._tensors, *self.cuts], upstream)
        by_item = {item.name: grad for item, grad in zip(reached, found, strict=False)}
        self._by_task.append(
            (*(by_item.get(item.name) for item in self.items), *found[len(reached) :])
        )

    def of_all(self, of: Tensor, upstream: Tensor) -> None:
        """Go down from a tensor beneath which no parameter belongs to two tasks, for all of them at
        once.
        """
        self._at_once = gradients(of, [*parameters_of(self.alone), *self._tensors], upstream)

    def found(self) -> Iterator[tuple[ParameterSlices, list[Tensor | None]]]:
        """By parameter, the gradient of each task."""
        for k, item in enumerate(self.items):
            yield item, [own[k] for own in self._by_task]

    def found_alone(self) -> dict[str, Tensor]:
        """The gradients of all tasks at once."""
        pairs = zip(self.alone, self._at_once, strict=False)
        return {item.name: grad for item, grad in pairs if grad is not None}

    def found_at_cuts(self) -> Iterator[tuple[Tensor, list[Tensor | None]]]:
        """By cut, the gradient of each task."""
        for k, cut in enumerate(self.cuts, len(self.items) + len(self.endpoints)):
            yield cut, [own[k] for own in self._by_task]

    def found_at_products(
        self,
    ) -> Iterator[tuple[FirstLayer, Tensor, list[tuple[int, int | None]]]]:
        """By product, the gradients of its outputs as :meth:`TaskGradients` takes them."""
        for product in dict.fromkeys(product for product, _, _ in self.endpoints):
            columns: list[Tensor] = []
            places: list[tuple[int, int | None]] = []
            for k, (owner, _, layers) in enumerate(self.endpoints):
                if owner is product:
                    own: list[tuple[int | None, Tensor | None]] = [
                        (None, self._at_once[len(self.alone) + k])
                    ]
                    own += [
                        (t, grads[len(self.items) + k]) for t, grads in enumerate(self._by_task)
                    ]
                    for task, grad in own:
                        if grad is not None:
                            columns.append(grad)
                            places += [(layer, task) for layer in layers]
            if columns:
                yield product, columns[0] if len(columns) == 1 else torch.cat(columns, 1), places


def parameters_of(items: Sequence[ParameterSlices]) -> list[Tensor]:
    """Their parameters."""
    return [item.parameter for item in items]


def weighted_sum(weights: Tensor, values: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of tensors times weights (T,); None when all are."""
    total: Tensor | None = None
    for weight, value in zip(weights, values, strict=True):
        if value is not None:
            weight = weight.to(value.dtype)
            total = value * weight if total is None else total.addcmul_(value, weight)
    return total
