"""A baseline fitted to every score of a data set, and measured as networks are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from mtlkit.baselines._baseline import Baseline, Fit, FitProblem
from mtlkit.baselines.base_rate import BaseRate
from mtlkit.data.splits import SPLITS, Dataset, Split
from mtlkit.data.types import Score, Task
from mtlkit.errors import MissingError
from mtlkit.metrics.definitions import PRIMARY_METRIC, reading
from mtlkit.models._losses import row_weight
from mtlkit.records import Cell
from mtlkit.registry import BASELINES
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.finish import KEPT_SCORES_ROWS, worth_keeping
from mtlkit.training.measures import Measures
from mtlkit.training.metrics import task_metrics
from mtlkit.training.result import FitResult
from mtlkit.training.scoring import Scores, metrics, score_arrays, score_labels
from mtlkit.training.seeding import seed_for
from mtlkit.training.timing import RunTimer

PREDICTED_ROWS = 1 << 17
"""Rows that are encoded at a time when a split is predicted."""
CPU = torch.device("cpu")


def fit_baseline(
    cell: Cell,
    dataset: Dataset,
    execution: ExecutionSettings,
    on_progress: Callable[[float], None] = lambda share: None,
) -> FitResult:
    """Fit a baseline to each score that is no other one's consequence, and measure it.

    Args:
        cell: Its model is a baseline.
        dataset: Packed splits.
        execution: The number of threads, and what is kept.
        on_progress: Called with the share of scores done.
    """
    schema, planned = dataset.schema, cell.resolved["model"]
    timer = RunTimer(CPU)
    timer.start()
    result = FitResult([], timer.seconds, [], [])
    fitting = _Fitting(planned, dataset, seed_for(cell.seed, "rows") % 2**32)
    scores = {split: Scores({}, {}, torch.zeros(0)) for split in ("validation", "test")}

    # A score at a time. What the solvers warn of is said once.
    measured = [score for score in schema.scores() if not score.hidden]
    with threadpool_limits(execution.threads), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, score in enumerate(measured, start=1):
            with timer.measure("train"):
                baseline, fit = fitting.fit(score)
            result.best[score.name] = {**fit.settings, "value": fit.value}
            for split in scores:
                with timer.measure("evaluation"):
                    logits = _predict(baseline, fit, dataset.splits[split])
                scores[split].logits[score.name] = torch.from_numpy(logits)
            on_progress(number / len(measured))
    result.warnings += dict.fromkeys(str(one.message).partition("\n")[0] for one in caught)

    # All rows of validation and test are measured, however many were fitted on.
    measures = Measures.of(
        dataset, TrainingSettings.model_validate(cell.resolved["training"]), execution
    )
    for split in scores:
        result.metrics[split] = metrics(
            schema, scores[split], fitting.splits[split], measures.final(split)
        )
    if worth_keeping(execution.save_scores, len(dataset.splits["test"]), KEPT_SCORES_ROWS):
        test = fitting.splits["test"]
        result.scores = score_arrays(schema, scores["test"], test, measures.test)
    result.cost = fitting.cost
    if fitting.cost:
        used, of_all = fitting.cost["fitted_rows"], fitting.cost["labelled_rows"]
        result.warnings.append(
            f"{planned['name']} was fitted on {used:,} of {of_all:,} training rows, drawn by the "
            f"seed; {planned['name']}[rows=none] takes all"
        )
    timer.stop()
    return result


class _Fitting:
    """What all scores of a cell have in common.

    Attributes:
        splits: The labels of the splits as tensors, without the inputs.
        cost: How many rows were fitted on, and of how many, where that is not all of them.
    """

    def __init__(self, planned: dict[str, Any], dataset: Dataset, seed: int) -> None:
        self.dataset, self.rng = dataset, np.random.default_rng(seed)
        baseline_class = BASELINES.load_planned(planned)
        options = baseline_class.Options.model_validate(planned["options"])
        self.most_rows: int | None = options.rows
        self.splits = {name: DeviceSplit.load(dataset.splits[name], CPU) for name in SPLITS}
        self.cost: dict[str, Any] = {}
        train = dataset.splits["train"]
        arguments = (dataset.schema, options, train, self._draw(np.arange(len(train))), seed)
        self.baseline: Baseline = baseline_class(*arguments)
        self.constant = BaseRate(*arguments)

    def fit(self, score: Score) -> tuple[Baseline, Fit]:
        """The fit of a score on the rows on which it is defined, and what encodes its inputs.

        Where train has one value of the label alone, there is nothing to fit but that.
        """
        schema = self.dataset.schema
        task = schema.tasks[schema.task_names.index(score.task)]
        rows, labels = self._labelled("train", score)
        if not len(rows):
            raise MissingError(
                f"No row of train has a label of {score.label}.",
                "mtlkit bench --tasks with the others",
            )
        drawn = self._draw(np.arange(len(rows)))
        if len(drawn) < len(rows) > self.cost.get("labelled_rows", 0):
            self.cost = {"fitted_rows": len(drawn), "labelled_rows": len(rows)}
        rows, labels = rows[drawn], labels[drawn]
        weight = row_weight(schema, task, self.splits["train"].columns)
        seen, seen_labels = self._labelled("validation", score)
        drawn = self._draw(np.arange(len(seen)))
        seen, seen_labels = seen[drawn], seen_labels[drawn]

        varies = len(np.unique(labels)) > 1
        baseline = self.baseline if varies else self.constant
        problem = FitProblem(
            task=task,
            inputs=baseline.encode(self.dataset.splits["train"], rows),
            labels=labels,
            weight=None if weight is None else weight.numpy()[rows].astype(float),
            validation=baseline.encode(self.dataset.splits["validation"], seen),
            value=lambda logits: _goodness(task, logits, torch.from_numpy(seen_labels)),
        )
        return baseline, baseline.fit(problem)

    def _labelled(self, split: str, score: Score) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a split on which a score is defined, and their labels."""
        targets = score_labels(self.dataset.schema, score, self.splits[split])
        assert targets is not None  # no generator is asked
        labels, mask = (None if part is None else part.numpy() for part in targets)
        assert labels is not None
        rows = np.arange(len(labels)) if mask is None else np.flatnonzero(mask)
        return rows, labels[rows]

    def _draw(self, rows: np.ndarray) -> np.ndarray:
        """As many of some rows as the options allow, in their order."""
        if self.most_rows is None or len(rows) <= self.most_rows:
            return rows
        return np.sort(self.rng.choice(rows, self.most_rows, replace=False))


def _predict(baseline: Baseline, fit: Fit, split: Split) -> np.ndarray:
    """The logits (N,) or (N, C) of all rows of a split."""
    parts = []
    for start in range(0, max(1, len(split)), PREDICTED_ROWS):
        rows = np.arange(start, min(start + PREDICTED_ROWS, len(split)))
        parts.append(fit.predict(baseline.encode(split, rows)).astype(np.float32))
    return np.concatenate(parts)


def _goodness(task: Task, logits: np.ndarray, labels: Tensor) -> float:
    """The primary metric, higher is better; far below any where it is not defined."""
    metric = PRIMARY_METRIC[task.kind]
    value = task_metrics(task, torch.from_numpy(logits.copy()), labels, None).get(metric)
    return -1e9 if value is None else reading(metric).goodness(value)
