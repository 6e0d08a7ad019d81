"""Scoring a split: logits, losses and gate usage of one pass without gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtlkit.models.base import Architecture
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.metrics import task_metrics
from mtlkit.training.reach import owner_losses


@dataclass
class Scores:
    """The outcome of one pass over a split.

    Args:
        logits: Task to (N,) or (N, C).
        spaces: Task to (space, derived).
        losses: (T,) mean losses over batches.
        gate_mean: Gate to (E,) mean weights.
        gate_entropy: Gate to mean entropy in nats.
    """

    logits: dict[str, Tensor]
    spaces: dict[str, tuple[str, bool]]
    losses: Tensor
    gate_mean: dict[str, Tensor] = field(default_factory=dict)
    gate_entropy: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def score(model: Architecture, split: DeviceSplit, batch_size: int, precision: str) -> Scores:
    """Predict a split in evaluation mode."""
    was_training = model.training
    model.eval()
    tasks = model.schema.task_names
    parts: dict[str, list[Tensor]] = {}
    spaces: dict[str, tuple[str, bool]] = {}
    losses = torch.zeros(len(tasks), device=split.all.labels.device)
    sums: dict[str, Tensor] = {}
    entropies: dict[str, Tensor] = {}
    for batch in split.chunks(batch_size):
        with autocast(split.all.labels.device, precision):
            output = model(batch)
        share = len(batch) / len(split)
        losses += torch.stack(owner_losses(model.objectives(output, batch), tasks)) * share
        for prediction in output.predictions:
            parts.setdefault(prediction.task, []).append(prediction.logits.float())
            spaces[prediction.task] = (prediction.space, prediction.derived)
        for name, weights in output.gates.items():
            zero = torch.zeros((), device=weights.device)
            sums[name] = sums.get(name, zero) + weights.mean(0) * share
            entropies[name] = entropies.get(name, zero) - torch.xlogy(weights, weights).sum(-1).mean() * share
    model.train(was_training)
    return Scores({name: torch.cat(values) for name, values in parts.items()}, spaces, losses, sums, entropies)


def metrics(model: Architecture, scores: Scores, split: DeviceSplit) -> dict[str, dict[str, Any]]:
    """Task to its metrics, its space and whether it is derived."""
    out = {}
    for t, task in enumerate(model.tasks):
        observed = None if split.all.observed is None else split.all.observed[:, t]
        space, derived = scores.spaces[task.name]
        values = task_metrics(task, scores.logits[task.name], split.all.labels[:, t], observed)
        out[task.name] = {"space": space, "derived": derived} | values
    return out


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass in the chosen precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
