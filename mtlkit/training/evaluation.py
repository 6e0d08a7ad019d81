"""Evaluation points: the model is scored on validation rows, and its best states are kept."""

from __future__ import annotations

import math
from typing import Any

import torch

from mtlkit.data.groups import RowGroups
from mtlkit.models._architecture import Architecture
from mtlkit.settings import TrainingSettings
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.measures import Measures
from mtlkit.training.result import DivergedError
from mtlkit.training.sampling import sample_rows
from mtlkit.training.scoring import Scores, group_scores, metrics, score_split
from mtlkit.training.seeding import seed_for
from mtlkit.training.selection import BestPoint, selection_value
from mtlkit.training.setup import TrainingSetup

EVAL_ROWS = 50_000  # validation rows scored at an evaluation point, at least
# Rows scored at all points together, as a share of the rows trained on. Scoring a row costs about
# a quarter of training on it.
EVAL_SHARE = 0.3


class Evaluator:
    """Scores a model at evaluation points, and keeps the best state of each group of tasks.

    Args:
        splits: The data on the device; the length of the training split counts as well.
        groups: Positions of the tasks of each group that shares parameters
            (``SharedParameters.components``).
        setup: The rule of selection, the number of points, the patience, the precision, and the
            batch size of scoring.
        measures: The rule of selection, and the metrics that it needs.

    Attributes:
        points: The numbers of steps after which to evaluate; the last one ends the run.
        eval_split: The validation rows that are scored at every point.
        curve: One entry an evaluation point, as it is recorded.
        bests: The best point of each group.
    """

    def __init__(
        self,
        model: Architecture,
        splits: dict[str, DeviceSplit],
        groups: list[list[int]],
        setup: TrainingSetup,
        total_steps: int,
        measures: Measures,
    ) -> None:
        self.model = model
        self.settings = setup.settings
        self.batch_size = setup.execution.eval_batch_size
        self.points = evaluation_points(setup.settings, total_steps)
        self.rule = measures.rule
        self.eval_split, row_groups = self._choose_eval_split(splits, measures.validation)
        self.further = measures.at_points(row_groups)
        self.curve: list[dict[str, Any]] = []
        self.bests = [BestPoint(tasks) for tasks in groups]

    def score(self, split: DeviceSplit) -> Scores:
        """Score a split with the model as it is."""
        return score_split(self.model, split, self.batch_size, self.settings.precision)

    def evaluate(self, step: int, epoch: float, train_loss: dict[str, float | None]) -> Scores:
        """Score the validation rows, add a point to the curve and keep the model where it is best;
        returns the scores.

        Args:
            train_loss: Task to its mean training loss since the last point.

        Raises:
            DivergedError: A validation loss is not finite.
        """
        scores = self.score(self.eval_split)

        # The last steps may have broken the model. Ranks of NaN would be no ranks.
        losses = zip(self.model.tasks, scores.losses.tolist(), strict=True)
        diverged = [task.name for task, loss in losses if not math.isfinite(loss)]
        if diverged:
            raise DivergedError(step, diverged)

        point = {
            "point": len(self.curve),
            "step": step,
            "epoch": round(epoch, 4),
            "train_loss": train_loss,
            "validation": self._metrics(scores),
        }
        self.curve.append(point)

        for best in self.bests:
            self._keep_if_best(best, point, scores)
        return scores

    def _metrics(self, scores: Scores) -> dict[str, dict[str, Any]]:
        """Score name to what is measured at an evaluation point."""
        return metrics(self.model.schema, scores, self.eval_split, self.further)

    def stalled(self) -> bool:
        """Whether no group of tasks got better in the last ``patience`` points."""
        if self.settings.patience is None:
            return False
        last_point = len(self.curve) - 1
        return all(last_point - best.point >= self.settings.patience for best in self.bests)

    def state_dict(self) -> dict[str, Any]:
        """The curve and the best points."""
        bests = [
            {"value": best.value, "point": best.point, "state": best.state} for best in self.bests
        ]
        return {"curve": self.curve, "bests": bests}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.curve = state["curve"]
        targets = self.model.state_dict()
        for best, saved in zip(self.bests, state["bests"], strict=True):
            best.value, best.point = saved["value"], saved["point"]
            best.state = {name: value.to(targets[name]) for name, value in saved["state"].items()}

    def _choose_eval_split(
        self, splits: dict[str, DeviceSplit], groups: RowGroups
    ) -> tuple[DeviceSplit, RowGroups]:
        """The validation rows that are scored at a point, and their groups: all rows, or a fixed
        random sample; of whole groups, where selection ranks rows within groups.
        """
        validation = splits["validation"]
        at_most = eval_rows(self.settings, len(splits["train"]), len(self.points))
        group = self.rule.metric.group if self.rule.metric else None
        codes = groups.codes(group) if group else None
        rows = sample_rows(len(validation), at_most, seed_for(0, "validation"), codes)
        if rows is None:
            return validation, groups
        return validation.subset(torch.from_numpy(rows)), groups.take(rows)

    def _keep_if_best(self, best: BestPoint, point: dict[str, Any], scores: Scores) -> None:
        """Keep the model's state if a point is the best one so far of a group of tasks."""
        schema = self.model.schema
        group = [schema.task_names[t] for t in best.tasks]
        trained = [t for t in best.tasks if schema.tasks[t].scored_by is None]
        group_loss = float(scores.losses[trained].sum())

        # What needs labels that only a generator knows is no basis for a choice, and a task that
        # is not trained only where the rule names it.
        named = (self.rule.which, *self.rule.weights)
        tasks_by_score = {
            score.name: schema.task(score.task)
            for score in group_scores(schema, point["validation"], group)
            if not score.hidden
            and (score.name in named or schema.task(score.task).scored_by is None)
        }

        value = selection_value(self.rule, tasks_by_score, point["validation"], group_loss)
        if value > best.value:
            best.value = value
            best.point = point["point"]
            best.scores = scores
            # It goes where the last one was: new memory would cost more than the copy.
            for name, tensor in self.model.state_dict().items():
                if name in best.state:
                    best.state[name].copy_(tensor)
                else:
                    best.state[name] = tensor.clone()


def evaluation_points(settings: TrainingSettings, total_steps: int) -> list[int]:
    """The numbers of steps after which to evaluate, in order; the last one ends the run.

    There are at least ``evaluations`` of them, and one an epoch if there are more epochs.

    Args:
        settings: ``evaluations`` and ``epochs``.
        total_steps: Steps of the run, at least 1.
    """
    wanted = max(settings.evaluations, math.ceil(settings.epochs))
    count = min(total_steps, wanted)
    return sorted({round(total_steps * (i + 1) / count) for i in range(count)})


def eval_rows(settings: TrainingSettings, train_rows: int, points: int) -> int:
    """How many validation rows to score at an evaluation point, so that scoring stays cheap.

    Args:
        settings: ``validation_rows`` decides if it is set.
    """
    if settings.validation_rows is not None:
        return settings.validation_rows
    affordable = int(EVAL_SHARE * settings.epochs * train_rows / points)
    return max(EVAL_ROWS, affordable)
