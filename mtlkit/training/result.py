"""What a run leaves behind, and how it fails."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


class DivergedError(ArithmeticError):
    """The loss of tasks is no longer finite after so many steps."""

    def __init__(self, step: int, tasks: list[str]) -> None:
        super().__init__(f"the loss of {' and '.join(tasks)} is not finite")
        self.step = step


@dataclass
class FitResult:
    """The outcome of training; the fields are those of a run record.

    Args:
        curve: One entry an evaluation point.
        timing: Seconds by activity.
        warnings: Sentences for the user.
        notes: Sentences for the log of the run: shortcuts that this model does not allow.
        metrics: Split to score name to metrics, at the selected evaluation points.
        best: Task to the point that was selected for it.
        cost: Parameters, operations a row, rows per second, backward passes a step.
        probes: Arrays of the probes, if they are recorded.
        scores: Test logits, labels and masks by score name, if they are kept.
        weights: Parameters and buffers at the best points, if they are kept.
    """

    curve: list[dict[str, Any]]
    timing: dict[str, float]
    warnings: list[str]
    notes: list[str]
    metrics: dict[str, dict[str, dict[str, Any]]] = field(
        default_factory=lambda: {"validation": {}, "test": {}}
    )
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, np.ndarray] = field(default_factory=dict)
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
