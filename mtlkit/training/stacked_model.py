"""K models of one shape as one: their parameters, forward pass, batches and draws."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mtlkit.models._architecture import Architecture
from mtlkit.models._types import Batch
from mtlkit.ops._dispatch import plain_operations
from mtlkit.ops.bags import Bags
from mtlkit.training.scoring import autocast
from mtlkit.training.task_losses import owner_active, owner_losses

Draw = Callable[[torch.Generator], Tensor]


class ModelStack:
    """K models of one architecture and shape, which are computed by one program.

    The parameters and statistics of the models become views of stacked tensors: what trains the
    stack trains the models, and each of them can be scored by itself.

    Args:
        models: The K models, on one device.
        generators: Of the dropout of each.
        precision: ``fp32`` or ``bf16``, of the forward pass.

    Attributes:
        module: A model whose parameters are the stacked ones, (K, ...). Only their names and its
            form count.
    """

    def __init__(
        self, models: Sequence[Architecture], generators: Sequence[torch.Generator], precision: str
    ) -> None:
        self.models = list(models)
        self.generators = list(generators)
        self.precision = precision
        self.module = copy.deepcopy(models[0]).train()
        self.parameters: dict[str, Tensor] = dict(self.module.named_parameters())
        self.buffers: dict[str, Tensor] = {}  # statistics of batches; what is not one, all share
        self.device = next(iter(self.parameters.values())).device
        self._cells = torch.arange(len(models), device=self.device)

        members = [dict(model.named_parameters()) for model in models]
        for name, parameter in self.parameters.items():
            parameter.data = _stack_in_place([values[name] for values in members])
        buffers = [dict(model.named_buffers()) for model in models]
        for name, buffer in self.module.named_buffers():
            if buffer.is_floating_point():
                self.buffers[name] = _stack_in_place([values[name] for values in buffers])

    def __len__(self) -> int:
        return len(self.models)

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The losses of a training batch whose tensors have a first axis of K.

        Returns:
            (K, T) losses, attached to the graph, and (K, T) bool, which tasks have a label.
        """
        tensors = _tensors_of(batch)

        def of_one(
            parameters: dict[str, Tensor],
            buffers: dict[str, Tensor],
            batch_tensors: dict[str, Any],
            cell: Tensor,
        ) -> tuple[Tensor, Tensor]:
            state = {f"model.{name}": value for name, value in (parameters | buffers).items()}
            with _DrawsByCell(self.generators, cell):
                return torch.func.functional_call(
                    losses_of, state, (_batch_of(batch_tensors), self.precision)
                )

        losses_of = _LossesOf(self.module)
        with plain_operations():
            losses, active = torch.vmap(of_one)(self.parameters, self.buffers, tensors, self._cells)
        return losses, active

    def losses_again(self, batch: Batch) -> Tensor:
        """(K, T) losses without a graph. Neither draws nor statistics of batches are moved."""
        statistics = {name: value.clone() for name, value in self.buffers.items()}
        states = [generator.get_state() for generator in self.generators]
        with torch.no_grad():
            losses, _ = self.losses(batch)
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_state(state)
        for name, value in self.buffers.items():
            value.copy_(statistics[name])
        return losses


class _LossesOf(nn.Module):
    """A model and its objectives as one module: objectives may read parameters, too."""

    def __init__(self, model: Architecture) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, precision: str) -> tuple[Tensor, Tensor]:
        device, tasks = batch.labels.device, self.model.schema.task_names
        with autocast(device, precision):
            output = self.model(batch)
        objectives = self.model.objectives(output, batch)
        losses = owner_losses(objectives, tasks)
        all_active = torch.ones(len(tasks), dtype=torch.bool, device=device)
        return torch.stack(losses), owner_active(objectives, tasks, all_active)


def _stack_in_place(tensors: Sequence[Tensor]) -> Tensor:
    """(K, ...) the tensors, which become views of it."""
    stacked = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, view in zip(tensors, stacked, strict=True):
        tensor.data = view
    return stacked


# --- draws


class _DrawsByCell(TorchFunctionMode):
    """What a model draws comes from a generator of each cell, as if it ran alone.

    Args:
        generators: One a cell.
        cell: The number of the cell, inside of ``vmap``.
    """

    def __init__(self, generators: Sequence[torch.Generator], cell: Tensor) -> None:
        super().__init__()
        self.generators, self.cell = generators, cell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is torch.rand:
            return self._drawn(lambda generator: func(*args, **kwargs, generator=generator))
        return func(*args, **kwargs)

    def _dropout(
        self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if p == 0 or not training:
            return x

        # PyTorch draws in the order of memory
        order = sorted(range(x.dim()), key=x.stride, reverse=True)
        shape = [x.shape[axis] for axis in order]
        back = [order.index(axis) for axis in range(x.dim())]

        def draw(generator: torch.Generator) -> Tensor:
            kept = torch.empty(shape, dtype=x.dtype, device=x.device)
            return kept.bernoulli_(1 - p, generator=generator).permute(back)

        return x * self._drawn(draw) * (1 / (1 - p))

    def _drawn(self, draw: Draw) -> Tensor:
        return _DrawnByCell.apply(self.cell, draw, self.generators)


class _DrawnByCell(torch.autograd.Function):
    """The draws of all cells, stacked, where ``vmap`` computes one."""

    @staticmethod
    def forward(cell: Tensor, draw: Draw, generators: Sequence[torch.Generator]) -> Tensor:
        return draw(generators[int(cell)])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, cell: Tensor, draw: Draw, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, int]:
        return torch.stack([draw(generator) for generator in generators]), 0


# --- batches


def unflatten(batch: Batch, cells: int) -> Batch:
    """The rows of K batches, one after another, as a batch whose tensors have a first axis of K."""

    return batch.map(
        lambda tensor: tensor.unflatten(0, (cells, -1)), lambda bags: _unflatten_bags(bags, cells)
    )


def _unflatten_bags(bags: Bags, cells: int) -> Bags:
    """The bags of K batches, which have room for K times the ids of the longest: the last bag of
    each is filled up with ids of weight 0, so that all batches have as many.
    """
    batch_size, longest = (len(bags.offsets) - 1) // cells, len(bags.values) // cells
    bounds = bags.offsets[::batch_size]  # (K + 1,)
    position = torch.arange(longest, device=bounds.device)
    is_there = position < bounds.diff()[:, None]  # (K, longest)
    index = torch.where(is_there, bounds[:-1, None] + position, 0)
    starts = bags.offsets[:-1].view(cells, batch_size) - bounds[:-1, None]
    return Bags(
        torch.cat([starts, torch.full_like(starts[:, :1], longest)], 1),
        torch.where(is_there, bags.values[index], 0),
        torch.where(is_there, bags.weights[index], 0.0),
    )


def _tensors_of(batch: Batch) -> dict[str, Any]:
    """What ``vmap`` takes for a batch: dictionaries and tuples of tensors."""
    tensors: dict[str, Any] = {
        field.name: getattr(batch, field.name)
        for field in fields(batch)
        if getattr(batch, field.name) is not None
    }
    tensors["bags"] = {name: tuple(bags)[:3] for name, bags in batch.bags.items()}
    return tensors


def _batch_of(tensors: dict[str, Any]) -> Batch:
    """The inverse of :func:`_tensors_of`."""
    batch = Batch(**tensors)
    return replace(batch, bags={name: Bags(*bags) for name, bags in batch.bags.items()})
