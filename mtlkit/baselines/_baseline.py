"""The base class of baselines: models without a network, fitted to one score at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from mtlkit.data.splits import Split
from mtlkit.data.types import Schema, Task
from mtlkit.settings import Settings

Predict = Callable[[Any], np.ndarray]
"""From encoded rows to logits (n,) or (n, C), or to values on the scale of packed labels (n,)."""


@dataclass(frozen=True)
class FitProblem:
    """One score to be fitted.

    Args:
        task: Its kind says what the labels are.
        inputs: n rows of train on which the label counts, as the baseline encodes them.
        labels: (n,), of two or more values.
        weight: (n,) how much each row counts, or None for all alike.
        validation: Rows of validation on which it counts, encoded.
        value: How good predictions of those are, higher is better.
    """

    task: Task
    inputs: Any
    labels: np.ndarray
    weight: np.ndarray | None
    validation: Any
    value: Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Fit:
    """What came of a fit.

    Args:
        predict: Of any encoded rows.
        settings: What the search chose.
        value: Of the chosen settings on validation, higher is better.
    """

    predict: Predict
    settings: dict[str, Any] = field(default_factory=dict)
    value: float = -np.inf


class Baseline(ABC):
    """A model without a network, to see what the networks are worth.

    It is fitted to one score at a time, on the rows on which the score is defined, and shares
    nothing between them. Its search is fixed, and sees the validation split alone.

    Args:
        schema: Features and tasks.
        options: Of the baseline.
        train: The training split, from which encodings may be learnt.
        rows: (n,) rows of it, at most as many as the options say.
        seed: Source of all that is drawn, below 2**32.
    """

    class Options(Settings):
        """What all baselines take."""

        rows: int | None = Field(
            None, gt=0, description="most rows of train, and of validation, that are fitted on"
        )

    shares_parameters: ClassVar[bool] = False

    def __init__(
        self, schema: Schema, options: Any, train: Split, rows: np.ndarray, seed: int
    ) -> None:
        self.schema = schema
        self.options = options
        self.seed = seed

    def encode(self, split: Split, rows: np.ndarray) -> Any:
        """Rows (n,) of a split as :meth:`fit` wants them; by default nothing of them is seen."""
        return np.zeros((len(rows), 0))

    @abstractmethod
    def fit(self, problem: FitProblem) -> Fit:
        """Fit a score."""


def best_of(fits: Iterable[Fit]) -> Fit:
    """The fit of the highest value, of equal ones the first."""
    return max(fits, key=lambda fit: fit.value)


def all_classes(task: Task, raw: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Logits (n, C) of all classes of a task from those (n, K) of the classes that train has; a
    class that it lacks is far below the others. Those of two classes may be (n,).
    """
    if task.kind != "multiclass":
        return raw
    if raw.ndim == 1:
        raw = np.column_stack([np.zeros_like(raw), raw])
    logits = np.repeat(raw.min(1, keepdims=True) - 10, task.classes, 1)
    logits[:, known.astype(int)] = raw
    return logits
