"""A baseline fitted to every score of a data set, and measured as networks are."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from mtlkit.baselines._baseline import Baseline, Columns
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

PREDICTED_ROWS = 1 << 17  # rows that are encoded at a time when a split is predicted
EVERY = 10  # stages between two looks at validation
LEAST = 1e-16  # the lowest probability, such as of a class that train lacks
CPU = torch.device("cpu")


def fit_baseline(
    cell: Cell, dataset: Dataset, execution: ExecutionSettings, on_progress: Callable[[float], None]
) -> FitResult:
    """Fit a baseline to each score by itself, and measure it.

    Args:
        execution: The number of threads, and what is kept.
        on_progress: Called with the share of scores done.

    Raises:
        MissingError: A score has no row of train.
    """
    schema, name = dataset.schema, cell.resolved["model"]["name"]
    timer = RunTimer(CPU)
    timer.start()
    result = FitResult([], timer.seconds, [], [])
    labels = {split: DeviceSplit.load(dataset.splits[split], CPU) for split in SPLITS}
    fitting = _Fitting(cell, dataset, labels)
    found = {split: Scores({}, {}, torch.zeros(0)) for split in ("validation", "test")}

    # A score at a time. What the solvers warn of is said once.
    scores = [score for score in schema.scores() if not score.hidden]
    with threadpool_limits(execution.threads), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number, score in enumerate(scores, start=1):
            with timer.measure("train"):
                fit, result.best[score.name] = fitting.fit(score)
            for split in found:
                with timer.measure("evaluation"):
                    logits = fitting.predict(fit, dataset.splits[split])
                found[split].logits[score.name] = torch.from_numpy(logits)
            on_progress(number / len(scores))
    result.warnings += dict.fromkeys(str(one.message).partition("\n")[0] for one in caught)

    # All rows of validation and test are measured, however many were fitted on.
    settings = TrainingSettings.model_validate(cell.resolved["training"])
    measures = Measures.of(dataset, settings, execution)
    for split in found:
        final = measures.final(split)
        result.metrics[split] = metrics(schema, found[split], labels[split], final)
    if worth_keeping(execution.save_scores, len(labels["test"]), KEPT_SCORES_ROWS):
        result.scores = score_arrays(schema, found["test"], labels["test"], measures.test)
    result.cost = fitting.cost
    if fitting.cost:
        result.warnings.append(
            f"{name} was fitted on {fitting.cost['fitted_rows']:,} of "
            f"{fitting.cost['labelled_rows']:,} training rows; {name}[rows=none] takes all"
        )
    timer.stop()
    return result


@dataclass(frozen=True)
class _Fit:
    """An estimator that was fitted: what encodes its inputs, and how many stages of it count."""

    task: Task
    encoder: Baseline
    estimator: Any
    stages: int = 1

    def logits(self, inputs: Any) -> Iterator[np.ndarray]:
        """(n,) or (n, C) after each stage; an estimator without stages has one."""
        staged = "staged_" if hasattr(self.estimator, "staged_predict") else ""
        what = "predict" if self.task.kind == "regression" else "predict_proba"
        found = getattr(self.estimator, staged + what)(inputs)
        for values in found if staged else [found]:
            yield values if self.task.kind == "regression" else self._of_all_classes(values)

    def _of_all_classes(self, probabilities: np.ndarray) -> np.ndarray:
        classes = self.task.classes if self.task.kind == "multiclass" else 2
        logits = np.full((len(probabilities), classes), np.log(LEAST))
        known = self.estimator.classes_.astype(int)
        logits[:, known] = np.log(np.maximum(probabilities, LEAST))
        return logits if self.task.kind == "multiclass" else logits[:, 1] - logits[:, 0]


class _Fitting:
    """What all scores of a cell have in common.

    Attributes:
        cost: How many rows were fitted on, and of how many, where that is not all of them.
    """

    def __init__(self, cell: Cell, dataset: Dataset, labels: dict[str, DeviceSplit]) -> None:
        self.dataset, self.labels = dataset, labels
        self.schema, train = dataset.schema, dataset.splits["train"]
        seed = seed_for(cell.seed, "rows") % 2**32
        self.rng = np.random.default_rng(seed)
        baseline_class = BASELINES.load_planned(cell.resolved["model"])
        options = baseline_class.Options.model_validate(cell.resolved["model"]["options"])
        self.most_rows: int | None = options.rows
        seen = Columns.of(self.schema, train, self._draw(np.arange(len(train))))
        self.baseline: Baseline = baseline_class(self.schema, options, seen, seed)
        self.constant: Baseline = BASELINES.load("base-rate")(self.schema, options, seen, seed)
        self.cost: dict[str, int] = {}

    def fit(self, score: Score) -> tuple[_Fit, dict[str, Any]]:
        """The best trial on validation, or on train where that cannot tell, and its settings.

        Where train has one value of the label alone, there is nothing to fit but that.
        """
        task = self.schema.task(score.task)
        rows, labels = self._labelled("train", score)
        seen_split = "validation"
        seen, seen_labels = self._labelled(seen_split, score)
        if len(np.unique(seen_labels)) < 2:  # no metric tells trials apart
            message = f"validation has no two values of {score.label}: train chose"
            warnings.warn(message, stacklevel=1)
            seen_split, seen, seen_labels = "train", rows, labels
        weight = row_weight(self.schema, task, self.labels["train"].columns)
        given = {} if weight is None else {"sample_weight": weight.numpy()[rows]}
        encoder = self.baseline if len(np.unique(labels)) > 1 else self.constant
        inputs = self._encode(encoder, self.dataset.splits["train"], rows)
        seen_inputs = self._encode(encoder, self.dataset.splits[seen_split], seen)

        best: tuple[_Fit, dict[str, Any]] | None = None
        for settings, estimator in encoder.trials(task):
            estimator.fit(inputs, labels, **given)
            stages = enumerate(_Fit(task, encoder, estimator).logits(seen_inputs), start=1)
            for stage, logits in stages:
                if stage > 1 and stage % EVERY:
                    continue
                value = _goodness(task, logits, seen_labels)
                if best is None or value > best[1]["value"]:
                    chosen = {**settings, "stages": stage, "value": value}
                    best = _Fit(task, encoder, estimator, stage), chosen
        assert best is not None
        return best

    def predict(self, fit: _Fit, split: Split) -> np.ndarray:
        """The logits (N,) or (N, C) of all rows of a split."""
        parts = []
        for start in range(0, len(split), PREDICTED_ROWS):
            rows = np.arange(start, min(start + PREDICTED_ROWS, len(split)))
            stages = fit.logits(self._encode(fit.encoder, split, rows))
            parts.append(next(islice(stages, fit.stages - 1, None)).astype(np.float32))
        return np.concatenate(parts)

    def _encode(self, encoder: Baseline, split: Split, rows: np.ndarray) -> Any:
        return encoder.encode(Columns.of(self.schema, split, rows))

    def _labelled(self, split: str, score: Score) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a split on which a score is defined, and their labels."""
        targets = score_labels(self.schema, score, self.labels[split])
        assert targets is not None  # the score is not hidden
        labels, mask = targets
        rows = np.arange(len(labels)) if mask is None else np.flatnonzero(mask.numpy())
        drawn = self._draw(rows)
        if split == "train" and not len(rows):
            raise MissingError(
                f"No row of train has a label of {score.label}.", "mtlkit bench --tasks"
            )
        if split == "train" and len(drawn) < len(rows) > self.cost.get("labelled_rows", 0):
            self.cost = {"fitted_rows": len(drawn), "labelled_rows": len(rows)}
        return drawn, labels.numpy()[drawn]

    def _draw(self, rows: np.ndarray) -> np.ndarray:
        """As many of some rows as the options allow, in their order."""
        if self.most_rows is None or len(rows) <= self.most_rows:
            return rows
        return np.sort(self.rng.choice(rows, self.most_rows, replace=False))


def _goodness(task: Task, logits: np.ndarray, labels: np.ndarray) -> float:
    """The primary metric, higher is better; far below any where it is not defined."""
    metric = PRIMARY_METRIC[task.kind]
    value = task_metrics(task, torch.from_numpy(logits), torch.from_numpy(labels), None).get(metric)
    return -1e9 if value is None else reading(metric).goodness(value)
