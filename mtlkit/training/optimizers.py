"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtlkit.errors import UsageError
from mtlkit.ops._dispatch import launches
from mtlkit.ops.take_rows import row_sparse, summed_rows
from mtlkit.settings import TrainingSettings
from mtlkit.training.lazy_adam import LazyAdam, learning_rate_of

START = 1 / 25  # of the peak learning rate, where one-cycle begins


@dataclass(frozen=True)
class _Group:
    """What the parameters of an optimiser's group have in common."""

    lazy: bool  # whether gradients are row-sparse
    embedding: bool  # whether the embedding's learning rate and penalty count
    factor: float  # on the learning rate


class Optimizers:
    """The optimisers of a model: one for dense gradients, and a lazy one for row-sparse ones.

    The lazy one reads and writes the rows that a batch holds, and leaves the moments and the decay
    of others alone: their momentum does not fade as it would under a dense one.

    Args:
        model: Its parameters are grouped by name; those without ``requires_grad`` stay as they are.
        settings: Rule, learning rates and penalties.
        factors: Prefix of parameter names to a factor on their learning rate; of several prefixes
            the longest counts.
        sparse: Names of the parameters with row-sparse gradients.

    Attributes:
        dense: The optimiser of dense gradients, or None if there are none.
        lazy: The optimiser of row-sparse gradients, or None if there are none.

    Raises:
        UsageError: The rule has no lazy form.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainingSettings,
        factors: Mapping[str, float] | None = None,
        sparse: Collection[str] = (),
    ) -> None:
        self.settings = settings

        # Parameters with the same learning rate and penalty are one group. The two usual groups
        # come first, whatever comes first in the model.
        members: dict[_Group, list[nn.Parameter]] = {
            _Group(lazy=False, embedding=False, factor=1.0): [],
            _Group(lazy=False, embedding=True, factor=1.0): [],
        }
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                is_embedding = name.startswith("embedding.")
                factor = _learning_rate_factor_of(name, factors or {})
                group = _Group(name in sparse, is_embedding, factor)
                members.setdefault(group, []).append(parameter)

        # Each group gets the options of its optimiser; groups whose options turn out to be the same
        # are one, which a GPU moves at once.
        dense_groups: list[dict[str, Any]] = []
        lazy_groups: list[dict[str, Any]] = []
        for group, parameters in members.items():
            options = _group_options(group, settings)
            groups = lazy_groups if group.lazy else dense_groups
            same = [other for other in groups if options.items() <= other.items()]
            if same:
                same[0]["params"] += parameters
            elif parameters:
                groups.append({"params": parameters, **options})

        self.dense = _dense_optimizer(settings, dense_groups) if dense_groups else None
        self.lazy = _lazy_optimizer(settings, lazy_groups) if lazy_groups else None

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The one or two optimisers."""
        return [optimizer for optimizer in (self.dense, self.lazy) if optimizer is not None]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of both optimisers."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def set_learning_rate(self, factor: float) -> None:
        """Scale every group's peak learning rate."""
        for group in self.param_groups:
            group["lr"] = group["peak"] * factor

    def clip(self, max_norm: float) -> None:
        """Shorten the whole gradient to a norm of at most ``max_norm``."""
        # The norm of a row-sparse gradient is that of its summed rows.
        values = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    rows, summed = summed_rows(parameter.grad)
                    parameter.grad = row_sparse(rows, summed, parameter.shape)
                    values.append(summed)
                else:
                    values.append(parameter.grad)
        if not values:
            return

        norm = torch.linalg.vector_norm(torch.stack([value.norm() for value in values]))
        factor = (max_norm / (norm + 1e-6)).clamp_max(1.0)
        for value in values:
            value.mul_(factor)

    @torch.no_grad()
    def step(self) -> None:
        """Move all parameters that have a gradient."""
        # Lazy optimisers have no penalty of their own.
        for group in self.lazy.param_groups if self.lazy is not None else []:
            for table in group["params"]:
                if group["decay"] and table.grad is not None:
                    self._decay_rows(table, group["decay"], learning_rate_of(group, table))

        for optimizer in self.optimizers:
            optimizer.step()

    def _decay_rows(self, table: nn.Parameter, decay: float, lr: float | Tensor) -> None:
        """The L2 penalty, or adamw's decay, on the rows that the gradient holds."""
        assert table.grad is not None
        rows, summed = summed_rows(table.grad)
        table.grad = row_sparse(rows, summed, table.shape)
        if self.settings.optimizer == "adamw":
            table[rows] *= 1 - lr * decay
            return
        held = table[rows]
        if launches(table):  # of equal rows, the first has the sum
            is_first = rows.diff(prepend=rows.new_full((1,), -1)) != 0
            held = held * is_first.view(-1, *[1] * (held.dim() - 1))
        summed.add_(held, alpha=decay)

    def state_dict(self) -> dict[str, Any]:
        """The state of both optimisers."""
        return {str(i): optimizer.state_dict() for i, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        for i, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state[str(i)])


def _learning_rate_factor_of(name: str, factors: Mapping[str, float]) -> float:
    """The factor of the longest prefix of a parameter's name; 1 if there is none."""
    prefixes = [prefix for prefix in factors if name.startswith(prefix)]
    return factors[max(prefixes, key=len)] if prefixes else 1.0


def _group_options(group: _Group, settings: TrainingSettings) -> dict[str, float]:
    """Learning rate and penalty of a group.

    Lazy optimisers do not know ``weight_decay``; :meth:`Optimizers.step` reads ``decay``.
    """
    peak, penalty = settings.lr, settings.l2_dense
    if group.embedding:
        peak = settings.embedding_lr or settings.lr
        penalty = settings.l2_embedding
    rate = group.factor * peak
    return {"lr": rate, "peak": rate, "decay" if group.lazy else "weight_decay": penalty}


def _dense_optimizer(
    settings: TrainingSettings, groups: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """The rule for dense gradients; fused, one kernel for all tensors, where that exists."""
    match settings.optimizer:
        case "adam":
            return torch.optim.Adam(groups, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, fused=True)
        case "adagrad":
            return torch.optim.Adagrad(groups, foreach=True)
        case "sgd":
            return torch.optim.SGD(groups, momentum=settings.momentum, fused=True)


def _lazy_optimizer(
    settings: TrainingSettings, groups: list[dict[str, Any]]
) -> torch.optim.Optimizer:
    """The rule for row-sparse gradients; a :class:`UsageError` if it has no such form."""
    match settings.optimizer:
        case "adam" | "adamw":
            return LazyAdam(groups)
        case "adagrad":
            return torch.optim.Adagrad(groups, foreach=False)
        case "sgd":
            if settings.momentum:
                raise UsageError(
                    "sgd with momentum has no lazy form for large embedding tables.",
                    "--set momentum=0, or --set sparse_rows=1000000000 for dense gradients",
                )
            return torch.optim.SGD(groups, foreach=False)


def learning_rate_factor(settings: TrainingSettings, step: int, total: int) -> float:
    """The learning rate of a step as a share of its peak.

    ``onecycle`` rises from 1/25 and falls to 0, both along a cosine; ``cosine`` and ``linear`` rise
    in a straight line from 0 and fall to 0; ``constant`` is 1.

    Args:
        settings: ``schedule`` and ``warmup``.
        step: Number of steps before this one.
        total: Number of steps of the run.
    """
    if settings.schedule == "constant":
        return 1.0

    # The rise, in the first share of the steps.
    rising_steps = settings.warmup * total
    if step < rising_steps:
        progress = (step + 1) / (rising_steps + 1)
        if settings.schedule == "onecycle":
            return START + (1 - START) * (1 - math.cos(math.pi * progress)) / 2
        return progress

    # The fall.
    progress = (step - rising_steps) / max(total - rising_steps, 1)
    if settings.schedule == "linear":
        return 1 - progress
    return (1 + math.cos(math.pi * progress)) / 2
