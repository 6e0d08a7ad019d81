"""How well the rule by which a generator drew labels ranks them: the ceiling of whoever learns from
the rows.
"""

from __future__ import annotations

from typing import Any

from mtlkit.data.splits import Dataset
from mtlkit.records import PRIMARY_METRIC

ALL_ROWS = "of all simulated test rows"
"""Where the ceilings stand of generated rows of which the test split holds only some: those of that
split differ.
"""


def ceilings(dataset: Dataset) -> dict[str, float]:
    """Score to the primary metric that the planted model reaches on the test split, where a
    generator noted it.
    """
    return _noted(dataset, dataset.details.get("simulation"))


def ceilings_of_all_rows(dataset: Dataset) -> dict[str, float]:
    """The same on more rows than the test split holds, where nothing is known of the split itself."""
    return _noted(dataset, _entry(dataset.details.get("simulation"), ALL_ROWS))


def _noted(dataset: Dataset, facts: Any) -> dict[str, float]:
    kinds = {task.name: task.kind for task in dataset.schema.tasks}
    found = {
        score.name: _entry(
            _entry(facts, f"planted_{PRIMARY_METRIC[kinds[score.task]]}"), score.name
        )
        for score in dataset.schema.scores()
    }
    return {name: float(value) for name, value in found.items() if _is_share(value)}


def _entry(facts: Any, name: str) -> Any:
    """What an object of somebody's file says; nothing if it is no object."""
    return facts.get(name) if isinstance(facts, dict) else None


def _is_share(value: Any) -> bool:
    """Whether it is a number that an AUC or an R² can be; NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1
