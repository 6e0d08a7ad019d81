"""Search spaces: what tuning may change, between which bounds, and the points that it tries.

A dimension is written alike in a method's file and in YAML: its kind, and its bounds or choices.

=============================  =======================================================
``{"float": [0, 0.5]}``        evenly between two numbers
``{"log": [1e-4, 1e-2]}``      evenly between their logarithms
``{"int": [1, 4]}``            whole numbers, both ends included
``{"choice": [8, 16]}``        one of a list, whose order should mean something
``{"simplex": 0.1}``           a weight a task; they sum to T, none is below this
=============================  =======================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtlkit.errors import MissingError, UsageError, short_repr

TRAINING: dict[str, dict[str, Any]] = {
    "lr": {"log": [5e-4, 2e-2]},
    "embedding_lr": {"log": [5e-4, 2e-2]},
    "l2_dense": {"log": [1e-8, 1e-4]},
    "l2_embedding": {"log": [1e-8, 1e-4]},
}
"""The dimensions of every run's training."""

MODEL: dict[str, dict[str, Any]] = {
    "embedding": {"choice": [8, 16]},
    "dropout": {"float": [0, 0.5]},
}
"""The dimensions of every model. Those of its sizes stand in its file: with the widest embedding,
the largest has at most ``LARGEST`` times the dense parameters of the defaults.
"""
LARGEST = 7

OWNERS = 16
"""Columns of a point that are kept for what all share, for a model, and for a balancer: so the
dimensions of one do not move those of another.
"""
COLUMNS = 256
KINDS = ("float", "log", "int", "choice", "simplex")
STARTUP = 10  # points before those that Optuna chooses: they are the ones of the other sampler
EXAMPLE = "write it as in tune: {space: {lr: {log: [0.0001, 0.01]}, dropout: null}}"


@dataclass(frozen=True)
class Dimension:
    """What values a setting may take."""

    kind: str  # one of ``KINDS``
    values: tuple[Any, ...]  # the two bounds, the choices, or the least weight

    @classmethod
    def read(cls, name: str, written: Any) -> Dimension:
        """A dimension from plain values.

        Raises:
            UsageError: It is none, or its range is empty, or has no logarithm.
        """
        kind, values = next(iter(written.items())) if is_dimension(written) else ("", [])
        listed = list(values) if isinstance(values, (list, tuple)) else [values]
        numbers = [] if kind == "choice" else _numbers(listed)
        problem = ""
        if not kind:
            problem = f"needs one of {', '.join(KINDS)}, with values"
        elif kind == "choice":
            if not listed or listed == [values]:
                problem = "must be a list of choices, not empty"
        elif len(numbers) != (1 if kind == "simplex" else 2):
            problem = f"cannot be {kind}: {short_repr(values)}"
        elif kind == "simplex":
            if not 0 < numbers[0] < 1:
                problem = "must have a least weight between 0 and 1"
        elif not numbers[0] < numbers[1]:
            problem = f"is empty: {numbers[0]:g} is not below {numbers[1]:g}"
        elif kind == "log" and numbers[0] <= 0:
            problem = "has no logarithm: it must begin above 0"
        elif kind == "int" and not all(number.is_integer() for number in numbers):
            problem = "must be of whole numbers"
        if problem:
            raise UsageError(f"The range of {name} {problem}.", EXAMPLE)
        return cls(kind, tuple(numbers or listed))

    def at(self, point: np.ndarray) -> Any:
        """The value at a point of the unit cube: one coordinate, or of a simplex one a task."""
        u = float(point[0])
        if self.kind == "choice":
            return self.values[min(int(u * len(self.values)), len(self.values) - 1)]
        if self.kind == "simplex":
            # -log of uniform numbers, divided by their sum, is uniform on the simplex
            spread = -np.log(np.clip(point, 1e-12, 1 - 1e-12))
            least = self.values[0]
            weights = least + (1 - least) * len(point) * spread / spread.sum()
            return [float(f"{weight:.3g}") for weight in weights]

        low, high = self.values
        if self.kind == "int":
            return int(min(low + int(u * (high - low + 1)), high))
        value = low * (high / low) ** u if self.kind == "log" else low + u * (high - low)
        # three digits can be typed, and a bound stays one
        return min(max(float(f"{value:.3g}"), low), high)

    def plain(self) -> dict[str, Any]:
        """As it is written."""
        values = list(self.values)
        return {self.kind: values[0] if self.kind == "simplex" else values}

    def __str__(self) -> str:
        """For people."""
        if self.kind == "choice":
            shown = (":".join(map(str, v)) if isinstance(v, list) else str(v) for v in self.values)
            return f"one of {', '.join(shown)}"
        if self.kind == "simplex":
            return f"a weight a task, from {self.values[0]:g}; they sum to T"
        words = {"float": "", "log": ", logarithmic", "int": ", whole numbers"}
        return f"{self.values[0]:g} to {self.values[1]:g}{words[self.kind]}"


def is_dimension(written: Any) -> bool:
    """Whether plain values look like a dimension, and not like the options of a method."""
    return isinstance(written, Mapping) and len(written) == 1 and next(iter(written)) in KINDS


def _numbers(values: Sequence[Any]) -> list[float]:
    """Finite numbers, also as texts, as which YAML reads ``1e-4``; empty if one is none."""
    try:
        numbers = [float(value) for value in values if not isinstance(value, bool)]
    except (TypeError, ValueError):
        return []
    return numbers if len(numbers) == len(values) and np.isfinite(numbers).all() else []


@dataclass(frozen=True)
class Axis:
    """A dimension, and the column of a point that it reads."""

    dimension: Dimension
    column: int


Space = Mapping[str, Axis]
"""Name to axis. A name is a training setting, an option that models share (``dropout``), or a
method's own option (``mmoe.experts``).
"""


def settings_at(space: Space, point: np.ndarray, tasks: int) -> dict[str, Any]:
    """Name to value, at a point of the unit cube (COLUMNS,)."""
    return {
        name: axis.dimension.at(point[axis.column :][: _width(axis, tasks)])
        for name, axis in space.items()
    }


def _width(axis: Axis, tasks: int) -> int:
    """The number of columns that an axis reads."""
    return tasks if axis.dimension.kind == "simplex" else 1


def sobol_points(count: int, seed: int) -> np.ndarray:
    """(count, COLUMNS) points of a scrambled Sobol sequence; more of them begin with the same."""
    from scipy.stats import qmc  # here: it takes a second to import, and few runs need it

    sequence = qmc.Sobol(COLUMNS, scramble=True, seed=np.random.default_rng(seed))
    return sequence.random_base2(max(1, int(count - 1).bit_length()))[:count]


def check_optuna() -> None:
    """Raise a :class:`MissingError` where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        message = "sampler=optuna needs Optuna, which is not installed."
        raise MissingError(message, "pip install 'mtlkit[optuna]'") from None


def tpe_point(
    space: Space, tasks: int, tried: np.ndarray, values: Sequence[float | None], seed: int
) -> np.ndarray:
    """The point that Optuna's TPE would try next. It follows from its arguments alone, so a study
    that was killed goes on as it would have.

    Args:
        space: What is tuned.
        tasks: Number of tasks.
        tried: (trials, COLUMNS) the points so far.
        values: What came of them, higher is better; None for failures, which count as the worst.
        seed: Of the sampler.
    """
    import optuna

    # it searches the unit cube, in the columns that this space reads
    widths = {axis.column: _width(axis, tasks) for axis in space.values()}
    columns = [column + i for column, width in widths.items() for i in range(width)]
    uniform: dict[str, Any] = {
        str(column): optuna.distributions.FloatDistribution(0, 1) for column in columns
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed + len(tried), n_startup_trials=1)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    worst = min((value for value in values if value is not None), default=0.0)
    for point, value in zip(tried, values, strict=True):
        params = {str(column): float(point[column]) for column in columns}
        study.add_trial(
            optuna.trial.create_trial(
                params=params, distributions=uniform, value=worst if value is None else value
            )
        )
    point = np.zeros(COLUMNS)
    for column, value in study.ask(uniform).params.items():
        point[int(column)] = value
    return point
