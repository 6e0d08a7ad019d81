"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from mtlkit.errors import UsageError
from mtlkit.settings import TrainingSettings
from mtlkit.training.lazy_adam import LazyAdam

START = 1 / 25  # of the peak learning rate, where one-cycle begins


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
        members: dict[tuple[bool, bool, float], list[nn.Parameter]] = {
            (False, False, 1.0): [],
            (False, True, 1.0): [],
        }
        for name, value in model.named_parameters():
            if value.requires_grad:
                prefix = max(
                    (prefix for prefix in factors or {} if name.startswith(prefix)),
                    key=len,
                    default=None,
                )
                factor = 1.0 if prefix is None or factors is None else factors[prefix]
                members.setdefault(
                    (name in sparse, name.startswith("embedding."), factor), []
                ).append(value)
        groups: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for (lazy, embeds, factor), values in members.items():
            rate = factor * ((settings.embedding_lr or settings.lr) if embeds else settings.lr)
            decay = settings.l2_embedding if embeds else settings.l2_dense
            if values:
                own = {"params": values, "lr": rate, "peak": rate}
                groups[lazy].append(own | ({"decay": decay} if lazy else {"weight_decay": decay}))
        self.dense = _dense(settings, groups[False]) if groups[False] else None
        self.lazy = _lazy(settings, groups[True]) if groups[True] else None

    @property
    def all(self) -> list[torch.optim.Optimizer]:
        return [optimizer for optimizer in (self.dense, self.lazy) if optimizer is not None]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.all for group in optimizer.param_groups]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    def set_learning_rate(self, factor: float) -> None:
        """Scale every group's peak learning rate."""
        for group in self.param_groups:
            group["lr"] = group["peak"] * factor

    def clip(self, most: float) -> None:
        """Shorten the whole gradient to a norm of at most ``most``."""
        parameters = [
            p for group in self.param_groups for p in group["params"] if p.grad is not None
        ]
        for parameter in parameters:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()
        values = [p.grad.values() if p.grad.is_sparse else p.grad for p in parameters]
        if values:
            norm = torch.linalg.vector_norm(torch.stack([value.norm() for value in values]))
            factor = (most / (norm + 1e-6)).clamp_max(1.0)
            for value in values:
                value.mul_(factor)

    @torch.no_grad()
    def step(self) -> None:
        """Move all parameters that have a gradient."""
        for group in self.lazy.param_groups if self.lazy is not None else []:
            for table in group["params"]:
                if group["decay"] and table.grad is not None:
                    self._decay_rows(table, group["decay"], group["lr"])
        for optimizer in self.all:
            optimizer.step()

    def _decay_rows(self, table: nn.Parameter, decay: float, lr: float) -> None:
        """The L2 penalty, or adamw's decay, on the rows that the gradient holds."""
        assert table.grad is not None
        table.grad = table.grad.coalesce()
        rows = table.grad.indices()[0]
        if self.settings.optimizer == "adamw":
            table[rows] *= 1 - lr * decay
        else:
            table.grad.values().add_(table[rows], alpha=decay)

    def state_dict(self) -> dict[str, Any]:
        """State of both."""
        return {str(place): optimizer.state_dict() for place, optimizer in enumerate(self.all)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        for place, optimizer in enumerate(self.all):
            optimizer.load_state_dict(state[str(place)])


def _dense(settings: TrainingSettings, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Fused where there is such a form: one kernel for all tensors."""
    match settings.optimizer:
        case "adam":
            return torch.optim.Adam(groups, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, fused=True)
        case "adagrad":
            return torch.optim.Adagrad(groups, foreach=True)
        case "sgd":
            return torch.optim.SGD(groups, momentum=settings.momentum, fused=True)


def _lazy(settings: TrainingSettings, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
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
    """
    if settings.schedule == "constant":
        return 1.0
    rise = settings.warmup * total
    if step < rise:
        done = (step + 1) / (rise + 1)
        if settings.schedule == "onecycle":
            return START + (1 - START) * (1 - math.cos(math.pi * done)) / 2
        return done
    done = (step - rise) / max(total - rise, 1)
    if settings.schedule == "linear":
        return 1 - done
    return (1 + math.cos(math.pi * done)) / 2
