"""Ceilings of generated data: how well the rule by which labels were drawn ranks them."""

from __future__ import annotations

from typing import Any

from mtlkit.data.splits import Dataset
from mtlkit.records import PRIMARY_METRIC

ALL_SIMULATED_ROWS = "of all simulated test rows"
"""Under this name stand ceilings of more rows than the test split holds; those of the split differ.
"""


def ceilings(dataset: Dataset) -> dict[str, float]:
    """Score to the primary metric that the planted model reaches on the test split, where a
    generator noted it.
    """
    return _noted(dataset, dataset.details.get("simulation"))


def ceilings_of_all_rows(dataset: Dataset) -> dict[str, float]:
    """The same on more rows than the test split holds, where those of the split are not known."""
    return _noted(dataset, _entry(dataset.details.get("simulation"), ALL_SIMULATED_ROWS))


def _noted(dataset: Dataset, facts: Any) -> dict[str, float]:
    """The ceilings of all scores among the facts that a generator noted."""
    kinds = {task.name: task.kind for task in dataset.schema.tasks}
    ceilings = {}
    for score in dataset.schema.scores():
        metric = PRIMARY_METRIC[kinds[score.task]]
        value = _entry(_entry(facts, f"planted_{metric}"), score.name)
        if _is_score(value):
            ceilings[score.name] = float(value)
    return ceilings


def _entry(facts: Any, name: str) -> Any:
    """What an object in a user's file says; None if it is no object."""
    return facts.get(name) if isinstance(facts, dict) else None


def _is_score(value: Any) -> bool:
    """Whether it is a number that an AUC or an R² can be; NaN is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1
