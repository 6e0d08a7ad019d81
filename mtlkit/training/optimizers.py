"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mtlkit.config import TrainingSettings

START = 1 / 25  # of the peak learning rate, where one-cycle begins


def build_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimiser of a model, with a group of its own for the embeddings. Fused: one kernel for all tensors."""
    tables = {name: value for name, value in model.named_parameters() if name.startswith("embedding.")}
    dense = [value for name, value in model.named_parameters() if name not in tables]
    groups: list[dict[str, Any]] = [
        {"params": dense, "lr": settings.lr, "weight_decay": settings.l2_dense},
        {
            "params": list(tables.values()),
            "lr": settings.embedding_lr or settings.lr,
            "weight_decay": settings.l2_embedding,
        },
    ]
    groups = [group | {"peak": group["lr"]} for group in groups if group["params"]]
    match settings.optimizer:
        case "adam":
            return torch.optim.Adam(groups, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, fused=True)
        case "adagrad":
            return torch.optim.Adagrad(groups, foreach=True)
        case "sgd":
            return torch.optim.SGD(groups, momentum=settings.momentum, fused=True)


def learning_rate_factor(settings: TrainingSettings, step: int, total: int) -> float:
    """The learning rate of a step as a share of its peak.

    ``onecycle`` rises from 1/25 and falls to 0, both along a cosine; ``cosine`` and ``linear`` rise in a straight line
    from 0 and fall to 0; ``constant`` is 1.
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


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Scale every group's peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
