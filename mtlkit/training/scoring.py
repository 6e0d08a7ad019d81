"""Scoring a split: logits, losses and gate usage of one pass without gradients, and the metrics.

A *score* is a quantity that every model is measured by (:class:`mtlkit.data.types.Score`): a task
on all rows, or a step of a funnel on the rows on which the step before was taken.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlkit.data.groups import RowGroups
from mtlkit.data.types import Schema, Score
from mtlkit.losses._build import prediction as predicted_value
from mtlkit.models._architecture import Architecture
from mtlkit.models._funnel import MOST_LOGIT, labels_in, product, ratio
from mtlkit.models._output import Output
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.metrics import FurtherMetrics, task_metrics
from mtlkit.training.task_losses import owner_losses

FUNNEL_SCORING = 2
"""Version of how the scores of a funnel are measured and select a point; raise it when the same
training gives other numbers from now on.
"""


@dataclass
class Scores:
    """The outcome of one pass over a split."""

    # Score name to (N,) or (N, C), for the scores that the model predicts.
    logits: dict[str, Tensor]
    # Score name to whether the model itself says that it follows from other scores.
    derived: dict[str, bool]
    losses: Tensor  # (T,) mean losses over batches
    gate_mean: dict[str, Tensor] = field(default_factory=dict)  # gate to (E,) mean weights
    gate_entropy: dict[str, Tensor] = field(default_factory=dict)  # gate to mean entropy in nats

    def replace_tasks(self, other: Scores, schema: Schema, tasks: Collection[str]) -> None:
        """Put the predictions of another pass in place of those of some tasks."""
        names = {score.name for score in schema.scores() if schema.predictor(score) in tasks}
        names |= set(tasks)  # others may follow from one that is not reported
        self.logits |= {name: value for name, value in other.logits.items() if name in names}
        self.derived |= {name: value for name, value in other.derived.items() if name in names}


@torch.no_grad()
def score_split(model: Architecture, split: DeviceSplit, batch_size: int, precision: str) -> Scores:
    """Predict a split in evaluation mode.

    Args:
        model: The model; its mode is restored.
        split: N rows.
    """
    was_training = model.training
    model.eval()
    schema = model.schema
    scores = Scores({}, {}, torch.zeros(len(schema.tasks), device=split.batch_device))

    start = 0
    for batch in split.chunks(batch_size):
        with autocast(split.batch_device, precision):
            output = model(batch)

        # Means over the split are sums over batches, each with its share of the rows.
        share = len(batch) / len(split)
        losses = owner_losses(model.objectives(output, batch), schema.task_names)
        scores.losses += torch.stack(losses) * share
        _add_gates(scores, output, share)

        # Logits are put where the columns are: a GPU may have no room for all of them.
        stop = start + len(batch)
        for name, logits in _batch_logits(model, output, scores.derived).items():
            if name not in scores.logits:
                shape = (len(split), *logits.shape[1:])
                scores.logits[name] = torch.empty(shape, device=split.storage_device)
            scores.logits[name][start:stop] = logits
        start = stop

    model.train(was_training)
    return scores


def _batch_logits(
    model: Architecture, output: Output, derived: dict[str, bool]
) -> dict[str, Tensor]:
    """Score name to the logits (B,) or (B, C) of a batch; of several predictions the first counts.

    ``derived`` is filled in for scores that are not in it yet.
    """
    batch_logits: dict[str, Tensor] = {}
    for prediction in [*output.predictions, *output.further]:
        task = model.schema.task(prediction.task)
        name = model.schema.score_name(prediction.task, model.space(prediction))
        if name not in batch_logits:
            batch_logits[name] = predicted_value(task, prediction.logits).float()
        derived.setdefault(name, prediction.derived)
    return batch_logits


def probabilities(model: Architecture, output: Output) -> dict[str, Tensor]:
    """What is predicted for each row of a batch, (B,) by name: the probability of each binary
    score, that of each class of a multiclass one (``<score>-<class>``), and the value of a
    regression one.
    """
    schema = model.schema
    derived: dict[str, bool] = {}
    logits = _batch_logits(model, output, derived)
    available = complete(schema, Scores(logits, derived, torch.zeros(0)))
    columns: dict[str, Tensor] = {}
    for score in schema.scores():
        if score.hidden or score.name not in available:
            continue
        task, scored = schema.task(score.task), available[score.name]
        if task.kind == "multiclass":
            for position, column in enumerate(torch.softmax(scored.logits, -1).unbind(-1)):
                columns[f"{score.name}-{position}"] = column
        elif task.kind == "regression":
            columns[score.name] = task.original(scored.logits)
        else:
            bound = MOST_LOGIT if scored.quotient else math.inf
            columns[score.name] = torch.sigmoid(scored.logits.clamp_max(bound))
    return columns


def _add_gates(scores: Scores, output: Output, share: float) -> None:
    """Count a batch's share of the mean weights and entropies of all gates in."""
    for name, weights in output.gates.items():  # (B, E)
        zero = torch.zeros((), device=weights.device)
        mean = weights.mean(0)
        negative_entropy = torch.xlogy(weights, weights).sum(-1).mean()
        scores.gate_mean[name] = scores.gate_mean.get(name, zero) + mean * share
        scores.gate_entropy[name] = scores.gate_entropy.get(name, zero) - negative_entropy * share


@dataclass(frozen=True)
class ScoreLogits:
    """The logits by which the rows of a split are scored."""

    logits: Tensor  # (N,) or (N, C)
    derived: bool  # whether they follow from those of other scores
    # Whether they are those of a quotient, which may exceed 1 (:func:`ratio`).
    quotient: bool = False


def complete(schema: Schema, scores: Scores) -> dict[str, ScoreLogits]:
    """Every score that can be had: those that the model predicts, and those that follow from them.

    Along a funnel, the probability of a step is that of the step before times its conditional one;
    the conditional one is the quotient.
    """
    available = {
        name: ScoreLogits(logits, scores.derived.get(name, False))
        for name, logits in scores.logits.items()
    }

    # Fill in what follows from neighbours, from the first step of the funnel to the last.
    for step in schema.funnel or ():
        steps_before = schema.before(step)
        if not steps_before or steps_before[-1] not in available:
            continue
        before_logits = available[steps_before[-1]].logits
        conditional = schema.score_name(step, "given")
        if step not in available and conditional in available:
            conditional_logits = available[conditional].logits
            step_logits = product(before_logits.double(), conditional_logits.double())
            available[step] = ScoreLogits(step_logits.float(), derived=True)
        if conditional not in available and step in available:
            quotient = ratio(available[step].logits, before_logits).float()
            available[conditional] = ScoreLogits(quotient, derived=True, quotient=True)

    # A task that is not trained is scored by another one.
    for task in schema.tasks:
        if task.scored_by in available:
            available[task.name] = available[task.scored_by]

    # A hidden score has other labels, but the prediction of the conditional one.
    for score in schema.scores():
        conditional = schema.score_name(score.task, score.space)
        if score.hidden and conditional in available:
            available[score.name] = available[conditional]
    return available


def score_labels(
    schema: Schema, score: Score, split: DeviceSplit
) -> tuple[Tensor, Tensor | None] | None:
    """Labels (N,) of a score and the mask (N,) of its rows (None: all).

    None where only a generator would know the labels, and the split does not come from one.
    """
    if not score.hidden:
        return labels_in(schema, schema.task(score.task), score.space, split.columns)
    if score.task in split.hidden:
        return split.hidden[score.task], None
    return None


def metrics(
    schema: Schema, scores: Scores, split: DeviceSplit, further: FurtherMetrics | None = None
) -> dict[str, dict[str, Any]]:
    """Score name to its metrics, its space and whether it is derived.

    Args:
        further: Metrics besides those that are always computed.
    """
    available = complete(schema, scores)
    metrics_by_score: dict[str, dict[str, Any]] = {}
    for score in schema.scores():
        targets = score_labels(schema, score, split)
        if targets is None or score.name not in available:
            continue
        labels, mask = targets
        scored = available[score.name]
        description: dict[str, Any] = {"space": score.space, "derived": scored.derived}

        # Quotients rank rows as they are, but probabilities end at 1.
        bound = math.inf
        if scored.quotient:
            bound = MOST_LOGIT
            description["capped"] = _capped_share(scored.logits, mask)
        rows = (schema.task(score.task), scored.logits, labels, mask, bound)
        values = task_metrics(*rows)
        if further is not None:
            values |= further.of_task(*rows, values)
        metrics_by_score[score.name] = description | values
    return metrics_by_score


def _capped_share(logits: Tensor, mask: Tensor | None) -> float:
    """The share of a score's rows whose quotient is larger than any probability."""
    capped = logits > MOST_LOGIT
    if mask is not None:
        capped = capped[mask]
    return float(capped.double().mean()) if len(capped) else 0.0


def score_arrays(
    schema: Schema, scores: Scores, split: DeviceSplit, groups: RowGroups
) -> dict[str, np.ndarray]:
    """What is stored of a split: logits, labels, masks and spaces of every score, and once the
    codes of the groups of all rows, so that a report can rank or draw whole users. Regressions are
    on the original scale, as they are measured.
    """
    available = complete(schema, scores)
    arrays: dict[str, np.ndarray] = {}
    for name in groups.names:
        arrays[f"group/{name}"] = groups.codes(name).astype(np.int32)
    for score in schema.scores():
        name = score.name
        targets = score_labels(schema, score, split)
        if targets is None or name not in available:
            continue
        labels, mask = targets
        scored, task = available[name], schema.task(score.task)
        logits = scored.logits
        if task.kind == "regression":
            logits, labels = (task.original(values.double()).float() for values in (logits, labels))
        arrays[f"score/{name}"] = logits.float().cpu().numpy()
        arrays[f"label/{name}"] = labels.cpu().numpy()
        arrays[f"space/{name}"] = np.array(score.space)
        arrays[f"derived/{name}"] = np.array(scored.derived)
        if mask is not None:
            arrays[f"observed/{name}"] = mask.cpu().numpy()
    return arrays


def group_scores(
    schema: Schema, metrics_by_score: dict[str, dict[str, Any]], tasks: Collection[str]
) -> list[Score]:
    """The scores that a group of tasks settles by itself: predicted ones, and those derived from
    tasks of the group alone.

    Args:
        metrics_by_score: Score name to its metrics.
    """
    settled = []
    for score in schema.scores():
        if score.name not in metrics_by_score or schema.predictor(score) not in tasks:
            continue
        derived = metrics_by_score[score.name].get("derived", False)
        if not derived or set(schema.before(score.task)) <= set(tasks):
            settled.append(score)
    return settled


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass in the chosen precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
