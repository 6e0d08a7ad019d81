"""Ceilings of simulated data: how well the rule that drew the labels predicts them.

A generator notes the metrics of its planted model in ``Dataset.details["simulation"]``. The details
come from a file, which somebody may have written by hand: whatever is no ceiling is left out.
"""

from __future__ import annotations

from typing import Any

from mtlkit.data.splits import Dataset
from mtlkit.metrics.definitions import PRIMARY_METRIC

ALL_SIMULATED_ROWS = "of all simulated test rows"
"""The key of ceilings that hold for more generated rows than the test split has."""


def ceilings(dataset: Dataset) -> dict[str, float]:
    """The primary metric of the planted model on the test split, by score.

    Scores for which the generator noted nothing are left out.
    """
    return _noted(dataset, dataset.details.get("simulation"))


def ceilings_of_all_rows(dataset: Dataset) -> dict[str, float]:
    """The same on more rows than the test split has, where the split itself was not measured."""
    simulation = dataset.details.get("simulation")
    return _noted(dataset, _entry(simulation, ALL_SIMULATED_ROWS))


def _noted(dataset: Dataset, simulation: Any) -> dict[str, float]:
    """The ceilings that stand in the notes of a generator."""
    task_kinds = {task.name: task.kind for task in dataset.schema.tasks}
    # AUC of a binary task, R² of a regression.
    values = {}
    for score in dataset.schema.scores():
        metric = PRIMARY_METRIC[task_kinds[score.task]]
        value = _entry(_entry(simulation, f"planted_{metric}"), score.name)
        if _can_be_ceiling(value):
            values[score.name] = float(value)
    return values


def _entry(notes: Any, key: str) -> Any:
    """The value of a key; None if the notes are no object or lack it."""
    return notes.get(key) if isinstance(notes, dict) else None


def _can_be_ceiling(value: Any) -> bool:
    """Whether a value is a number that an AUC or an R² can be, which NaN is not."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= 1
