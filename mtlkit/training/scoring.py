"""Scoring a split: logits, losses and gate usage of one pass without gradients, and the metrics of
every score.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlkit.data.types import Schema, Score
from mtlkit.models._architecture import Architecture
from mtlkit.models._funnel import labels_in, product, ratio
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.metrics import task_metrics
from mtlkit.training.task_losses import owner_losses


@dataclass
class Scores:
    """The outcome of one pass over a split.

    Args:
        logits: Score (``Schema.scores``) to (N,) or (N, C); those that the model predicts.
        derived: Score to whether the model itself says that it follows from others.
        losses: (T,) mean losses over batches.
        gate_mean: Gate to (E,) mean weights.
        gate_entropy: Gate to mean entropy in nats.
    """

    logits: dict[str, Tensor]
    derived: dict[str, bool]
    losses: Tensor
    gate_mean: dict[str, Tensor] = field(default_factory=dict)
    gate_entropy: dict[str, Tensor] = field(default_factory=dict)

    def take(self, other: Scores, schema: Schema, tasks: Collection[str]) -> None:
        """Take another pass's predictions of some tasks."""
        names = {score.name for score in schema.scores() if score.task in tasks}
        self.logits |= {name: value for name, value in other.logits.items() if name in names}
        self.derived |= {name: value for name, value in other.derived.items() if name in names}


@torch.no_grad()
def score(model: Architecture, split: DeviceSplit, batch_size: int, precision: str) -> Scores:
    """Predict a split in evaluation mode."""
    was_training = model.training
    model.eval()
    schema = model.schema
    scored: dict[str, Tensor] = {}
    derived: dict[str, bool] = {}
    losses = torch.zeros(len(schema.tasks), device=split.target)
    sums: dict[str, Tensor] = {}
    entropies: dict[str, Tensor] = {}
    for start, batch in zip(
        range(0, len(split), batch_size), split.chunks(batch_size), strict=True
    ):
        with autocast(split.target, precision):
            output = model(batch)
        share = len(batch) / len(split)
        losses += (
            torch.stack(owner_losses(model.objectives(output, batch), schema.task_names)) * share
        )
        found: dict[str, Tensor] = {}
        for prediction in [*output.predictions, *output.further]:
            name = schema.score(prediction.task, model.space(prediction))
            found.setdefault(name, prediction.logits.float())
            derived.setdefault(name, prediction.derived)
        for name, logits in found.items():
            if name not in scored:
                scored[name] = torch.empty(len(split), *logits.shape[1:], device=split.home)
            scored[name][start : start + len(batch)] = logits
        for name, weights in output.gates.items():
            zero = torch.zeros((), device=weights.device)
            sums[name] = sums.get(name, zero) + weights.mean(0) * share
            entropies[name] = (
                entropies.get(name, zero) - torch.xlogy(weights, weights).sum(-1).mean() * share
            )
    model.train(was_training)
    return Scores(scored, derived, losses, sums, entropies)


def complete(schema: Schema, scores: Scores) -> dict[str, tuple[Tensor, bool]]:
    """Every score that can be had: logits, and whether they are derived from those of other scores.

    Along a funnel, the probability of a step is that of the step before times its conditional one;
    the conditional one is the quotient, which cannot exceed 1.
    """
    found = {
        name: (logits, scores.derived.get(name, False)) for name, logits in scores.logits.items()
    }
    for step in schema.funnel or ():
        for before in schema.before(step)[-1:]:
            given = schema.score(step, "given")
            if step not in found and given in found and before in found:
                found[step] = (
                    product(found[before][0].double(), found[given][0].double()).float(),
                    True,
                )
            if given not in found and step in found and before in found:
                found[given] = ratio(found[step][0], found[before][0]).float(), True
    for score in schema.scores():
        given = schema.score(score.task, score.space)
        if score.hidden and given in found:
            found[score.name] = found[given]
    return found


def targets(schema: Schema, of: Score, split: DeviceSplit) -> tuple[Tensor, Tensor | None] | None:
    """Labels of a score and the mask of its rows (None: all); None where only a generator would
    know them.
    """
    if of.hidden:
        return (split.hidden[of.task], None) if of.task in split.hidden else None
    return labels_in(schema, schema.tasks[schema.task_names.index(of.task)], of.space, split.all)


def metrics(model: Architecture, scores: Scores, split: DeviceSplit) -> dict[str, dict[str, Any]]:
    """Score to its metrics, its space and whether it is derived."""
    schema = model.schema
    found = complete(schema, scores)
    out = {}
    for of in schema.scores():
        wanted = targets(schema, of, split)
        if wanted is None or of.name not in found:
            continue
        logits, derived = found[of.name]
        task = schema.tasks[schema.task_names.index(of.task)]
        out[of.name] = {"space": of.space, "derived": derived} | task_metrics(task, logits, *wanted)
    return out


def score_arrays(schema: Schema, scores: Scores, split: DeviceSplit) -> dict[str, np.ndarray]:
    """What is stored of a split: scores, labels, masks, spaces."""
    found = complete(schema, scores)
    out: dict[str, np.ndarray] = {}
    for of in schema.scores():
        wanted = targets(schema, of, split)
        if wanted is None or of.name not in found:
            continue
        labels, mask = wanted
        out[f"score/{of.name}"] = found[of.name][0].float().cpu().numpy()
        out[f"label/{of.name}"] = labels.cpu().numpy()
        out[f"space/{of.name}"] = np.array(of.space)
        out[f"derived/{of.name}"] = np.array(found[of.name][1])
        if mask is not None:
            out[f"observed/{of.name}"] = mask.cpu().numpy()
    return out


def own_scores(
    schema: Schema, found: dict[str, dict[str, Any]], tasks: Collection[str]
) -> list[Score]:
    """The scores that a group of tasks settles among itself: predicted ones, and those derived
    within the group.

    Args:
        schema: Of the data.
        found: Score to its metrics.
        tasks: The tasks of the group.
    """
    out = []
    for of in schema.scores():
        if of.name in found and of.task in tasks:
            derived = found[of.name].get("derived", False)
            if not derived or set(schema.before(of.task)) <= set(tasks):
                out.append(of)
    return out


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass in the chosen precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
