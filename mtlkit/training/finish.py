"""After the last step: test scores at the best points, weights, probes and cost of a run."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training.ablation import ablate
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.cost import flops_per_row
from mtlkit.training.evaluation import Evaluator
from mtlkit.training.measures import Measures
from mtlkit.training.probe_log import ProbeLog
from mtlkit.training.result import FitResult
from mtlkit.training.scoring import Scores, group_scores, metrics, score_arrays
from mtlkit.training.selection import BestPoint
from mtlkit.training.sharing import SharedParameters
from mtlkit.training.stratified import StratifiedSampler
from mtlkit.training.timing import RunTimer

FLOPS_ROWS = 64  # rows of the batch on which the operations of a forward pass are counted
KEPT_WEIGHTS_BYTES = 32 * 2**20  # weights up to this size are kept without being asked for
KEPT_SCORES_ROWS = 2**20  # test scores of up to this many rows are kept without being asked for


class FinishedRun(Protocol):
    """What is read of a trainer whose steps are done."""

    splits: dict[str, DeviceSplit]  # the data on the device: ``train``, ``validation`` and ``test``
    measures: Measures  # which metrics are computed
    settings: TrainingSettings  # what moved the numbers
    execution: ExecutionSettings  # what is recorded and kept
    sharing: SharedParameters  # which task reaches which parameter
    # How batches were drawn if rare rows were drawn more often, or None.
    sampler: StratifiedSampler | None
    evaluator: Evaluator  # the model, the curve and the best point of each group of tasks
    probes: ProbeLog  # what was recorded besides the scores
    timer: RunTimer  # the seconds so far. The clock of the whole run is stopped by :func:`finish`
    warnings: list[str]  # sentences for the user
    notes: list[str]  # sentences for the log of the run
    steps: int  # optimiser steps done
    backward_passes: int  # backward passes of all steps


def finish(run: FinishedRun) -> FitResult:
    """Turn a run into its result. The model is left at the best point of the last group."""
    execution = run.execution
    result = FitResult(run.evaluator.curve, run.timer.seconds, run.warnings, run.notes)

    kept = run.evaluator.model.state_dict() if execution.save_weights == "last" else None
    last = None if kept is None else {name: value.clone() for name, value in kept.items()}

    with run.timer.measure("evaluation"):
        # Every group of tasks is scored with the model of its own best point.
        ablation: dict[str, np.ndarray] = {}
        scores_at_best = {name: Scores({}, {}, torch.zeros(0)) for name in ("validation", "test")}
        for best in run.evaluator.bests:
            ablation |= _score_best_point(run, best, scores_at_best, result)

        # Replace what a single point could not settle.
        if _needs_rescoring(run):
            _rescore(run, scores_at_best, result)

        # Keep what later analyses read, unless it is too large.
        test = run.splits["test"]
        if worth_keeping(execution.save_scores, len(test), KEPT_SCORES_ROWS):
            schema = run.evaluator.model.schema
            result.scores = score_arrays(schema, scores_at_best["test"], test, run.measures.test)
        result.weights = _weights(run, last)
    run.timer.stop()

    if execution.probes:
        result.probes = run.probes.arrays() | ablation
    result.cost = _cost(run)
    return result


def _score_best_point(
    run: FinishedRun, best: BestPoint, scores_at_best: dict[str, Scores], result: FitResult
) -> dict[str, np.ndarray]:
    """Score a group of tasks at its best point, and write its metrics into the result.

    Args:
        best: The best point of the group. The model is put into that state.
        scores_at_best: Split to the scores of all groups; those of this group are added.
        result: Metrics and best points are added.

    Returns:
        The ablation of the model in that state; empty if none is asked for.
    """
    evaluator, execution = run.evaluator, run.execution
    schema = evaluator.model.schema
    test = run.splits["test"]
    group = [schema.task_names[t] for t in best.tasks]

    # Score the splits with the model of that point.
    evaluator.model.load_state_dict(best.state)
    test_scores = evaluator.score(test)
    scores_at_best["test"].replace_tasks(test_scores, schema, group)
    if _needs_rescoring(run):
        validation_scores = evaluator.score(run.splits["validation"])
        scores_at_best["validation"].replace_tasks(validation_scores, schema, group)

    # At the point, only what selection needs was computed.
    measures = run.measures
    test_metrics = metrics(schema, test_scores, test, measures.final("test"))
    point = evaluator.curve[best.point]
    validation_metrics = point["validation"]
    if not _needs_rescoring(run):
        # A run that went on from a checkpoint may have its best point before that.
        validation = run.splits["validation"]
        scores = best.scores if best.scores is not None else evaluator.score(validation)
        validation_metrics = metrics(schema, scores, validation, measures.final("validation"))
    for score in group_scores(schema, test_metrics, group):
        if score.name in validation_metrics:
            result.metrics["validation"][score.name] = validation_metrics[score.name]
        result.metrics["test"][score.name] = test_metrics[score.name]

    for name in group:
        result.best[name] = {key: point[key] for key in ("point", "step", "epoch")}
        result.best[name]["value"] = best.value

    if not execution.ablation:
        return {}
    precision = run.settings.precision
    return ablate(evaluator.model, evaluator.eval_split, execution.eval_batch_size, precision)


def _needs_rescoring(run: FinishedRun) -> bool:
    """Whether the validation metrics of the best points are not yet those to report.

    They are not where a score of a funnel is made of tasks with several best points, or where only
    a sample of the validation rows was scored at the points.
    """
    evaluator = run.evaluator
    several_points = len(evaluator.bests) > 1 and evaluator.model.schema.funnel is not None
    return several_points or evaluator.eval_split is not run.splits["validation"]


def _rescore(run: FinishedRun, scores_at_best: dict[str, Scores], result: FitResult) -> None:
    """Replace the metrics by those of all rows, with each task at its own best point."""
    evaluator, splits = run.evaluator, run.splits
    validation_scores = scores_at_best["validation"]
    schema, measures = evaluator.model.schema, run.measures
    result.metrics["validation"] = metrics(
        schema, validation_scores, splits["validation"], measures.final("validation")
    )
    if len(evaluator.bests) > 1:
        result.metrics["test"] = metrics(
            schema, scores_at_best["test"], splits["test"], measures.final("test")
        )


def _weights(run: FinishedRun, last: dict[str, Tensor] | None) -> dict[str, np.ndarray]:
    """The weights that are kept, by name: of the last step if they are given, else every parameter
    as it was at the best point of the tasks that reach it; empty if weights are not kept.
    """
    if last is not None:
        return {name: value.cpu().numpy() for name, value in last.items()}
    first, *others = run.evaluator.bests
    size = sum(value.numel() * value.element_size() for value in first.state.values())
    choice = run.execution.save_weights
    if not worth_keeping(None if choice is None else choice == "best", size, KEPT_WEIGHTS_BYTES):
        return {}

    # Groups share no slice, so each other group fills in the slices that its tasks reach.
    weights = dict(first.state)
    for best in others:
        for sliced in run.sharing.parameters:
            reached = sliced.expand(sliced.reached_by[best.tasks].any(0))
            name = sliced.name
            weights[name] = torch.where(reached, best.state[name], weights[name])

            # The statistics of a stacked norm are those of the slices of its scale.
            for statistic in ("running_mean", "running_var"):
                buffer = f"{name.removesuffix('scale')}batch_norm.{statistic}"
                if name.endswith("scale") and buffer in weights:
                    own = reached.expand_as(sliced.parameter).flatten()
                    weights[buffer] = torch.where(own, best.state[buffer], weights[buffer])
    return {name: value.cpu().numpy() for name, value in weights.items()}


def _cost(run: FinishedRun) -> dict[str, Any]:
    """Size of the model and work of the training: parameters, operations, rows per second."""
    model, train = run.evaluator.model, run.splits["train"]
    batches = run.steps * run.settings.accumulate
    rows = batches * run.settings.batch_size
    counted_rows = torch.arange(min(FLOPS_ROWS, len(train)))

    cost: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "embedding_parameters": sum(
            sliced.parameter.numel() for sliced in run.sharing.parameters if sliced.is_embedding
        ),
        "flops_per_row": flops_per_row(model, train.take(counted_rows)),
        "steps": run.steps,
        "train_rows_per_second": rows / max(run.timer.seconds["train_seconds"], 1e-9),
        "backward_passes_per_step": run.backward_passes / batches,
    }
    if run.sampler is not None:
        cost["covering"] = run.sampler.summary()
    return cost


def worth_keeping(asked: bool | None, size: int, limit: int) -> bool:
    """Whether to keep something: as the user asked, or else if it is small."""
    return size <= limit if asked is None else asked
