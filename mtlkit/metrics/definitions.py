"""What a metric is: its label, direction, floor, kinds of task, what it needs, and its name."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from mtlkit.errors import UsageError, did_you_mean, nearest_names

Kinds = tuple[Literal["binary", "regression", "multiclass"], ...]
BINARY: Kinds = ("binary",)
CLASSES: Kinds = ("binary", "multiclass")
REGRESSION: Kinds = ("regression",)


@dataclass(frozen=True)
class Metric:
    """What a metric is, and how it is read."""

    label: str  # as printed in tables and figures
    higher_is_better: bool  # its direction
    floor: float = 0.0  # the value of a useless model, the zero of relative changes; of an error, 0
    decimals: int = 4  # digits after the point in tables
    kinds: Kinds = BINARY  # the kinds of task that have it
    # The value nearest to which is best, of a metric without a direction.
    target: float | None = None
    # What a number after its name means: ``ndcg@10`` is cut off at 10, ``f1@0.3`` has a threshold.
    takes: Literal["", "cut", "threshold"] = ""
    # Of a metric within groups of rows: the groups it takes if none is named, in order.
    groups: tuple[str, ...] = ()
    always: bool = False  # whether it is computed at every evaluation point

    def goodness(self, value: float) -> float:
        """The value on a scale on which higher is better."""
        if self.target is not None:
            return -abs(value - self.target)
        return value if self.higher_is_better else -value

    @property
    def direction(self) -> str:
        """Which values are better, in words."""
        if self.target is not None:
            return f"nearest to {self.target:g} is best"
        return f"{'higher' if self.higher_is_better else 'lower'} is better"


BY_USER = ("user", "session")
BY_SESSION = ("session", "user")

METRICS = {
    "auc": Metric("AUC", True, 0.5, kinds=CLASSES, always=True),
    "gauc": Metric("GAUC", True, 0.5, groups=BY_USER),
    "gauc_unweighted": Metric("unweighted GAUC", True, 0.5, groups=BY_USER),
    "ndcg": Metric("NDCG", True, takes="cut", groups=BY_SESSION),
    "recall": Metric("recall", True, takes="cut", groups=BY_SESSION),
    "average_precision": Metric("average precision", True),
    "logloss": Metric("log loss", False, kinds=CLASSES, always=True),
    "normalized_entropy": Metric("normalised entropy", False, always=True),
    "calibration": Metric("calibration", False, 1.0, 3, target=1.0, always=True),
    "ece": Metric("ECE", False),
    "accuracy": Metric("accuracy", True, kinds=CLASSES, takes="threshold"),
    "f1": Metric("F1", True, takes="threshold"),
    "mse": Metric("MSE", False, kinds=REGRESSION, always=True),
    "rmse": Metric("RMSE", False, kinds=REGRESSION),
    "mae": Metric("MAE", False, kinds=REGRESSION, always=True),
    "r2": Metric("R²", True, kinds=REGRESSION, always=True),
    "spearman": Metric("Spearman's ρ", True, kinds=REGRESSION),
}

PRIMARY_METRIC = {"binary": "auc", "regression": "r2", "multiclass": "accuracy"}
"""The metric by which a task of each kind is selected and ranked, unless the user says otherwise.
"""
NAME = re.compile(
    r"(?P<name>\w+)(@(?P<number>\d*\.?\d+))?(@(?P<group>[^@=]+))?(@(?P<segment>[^@=]+=.*))?", re.S
)
"""How a metric is written; what is no number is a group, and what has an equals sign a segment."""
DEFAULT_CUT = 10
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class MetricName:
    """A metric with all that decides its value, written ``name@number@group@segment``."""

    name: str  # a key of :data:`METRICS`
    number: float | None = None  # the cut or the threshold; None for the default
    group: str | None = None  # rows are ranked within this group, such as ``user``
    segment: str | None = None  # the rows that count, such as ``user=cold``; None for all

    @property
    def metric(self) -> Metric:
        return METRICS[self.name]

    def applies_to(self, kind: str) -> bool:
        """Whether tasks of a kind have it: a threshold needs one probability a row."""
        has_threshold = self.metric.takes == "threshold" and self.number is not None
        return kind in self.metric.kinds and not (has_threshold and kind != "binary")

    @property
    def cut(self) -> int:
        """Rows from the top that count."""
        return DEFAULT_CUT if self.number is None else int(self.number)

    @property
    def threshold(self) -> float:
        """The least probability that is a yes."""
        return DEFAULT_THRESHOLD if self.number is None else self.number

    def __str__(self) -> str:
        number = None if self.number is None else f"{self.number:.12g}"
        suffixes = [text for text in (number, self.group, self.segment) if text is not None]
        return "@".join([self.name, *suffixes])

    @property
    def label(self) -> str:
        """As printed in tables and figures."""
        label = self.metric.label
        if self.number is not None:
            label += f"@{self.number:g}" if self.metric.takes == "cut" else f" at {self.number:g}"
        if self.group is not None:
            label += f" by {self.group}"
        return label if self.segment is None else f"{label}, {segment_label(self.segment)}"

    def resolve(self, groups: Collection[str], data: str) -> MetricName:
        """The same with the group and the cut that it takes by default.

        Raises:
            UsageError: The data does not have the group.
        """
        if not self.metric.groups:
            return self
        wanted = (self.group,) if self.group else self.metric.groups
        group = next((name for name in wanted if name in groups), None)
        if group is None:
            known = f"it has the groups {', '.join(groups)}; " if groups else ""
            raise UsageError(
                f"{self} needs rows grouped by {' or '.join(wanted)}, which {data} does not have.",
                f"{known}in the YAML of a table, roles: {{{wanted[0]}: COLUMN}} names one",
            )
        cut = float(self.cut) if self.metric.takes == "cut" else None
        return replace(self, group=group, number=cut)


def segment_label(segment: str) -> str:
    """A segment in words: ``cold users``, ``country DE``."""
    column, _, value = segment.partition("=")
    return f"{value} {column}s" if value in ("cold", "warm") else f"{column} {value}"


def read_metric(text: str) -> MetricName:
    """Read the name of a metric, such as ``auc``, ``gauc@user``, ``ndcg@10``, ``auc@user=cold``.

    Raises:
        UsageError: There is no such metric, or it does not take what stands after its name.
    """
    hint = f"the metrics are {', '.join(METRICS)}; such as gauc@user, ndcg@10, auc@user=cold"
    name = text.partition("@")[0]
    if name not in METRICS:
        guess = did_you_mean(nearest_names(name, list(METRICS)))
        raise UsageError(f"There is no metric {name!r}.{guess}", hint)

    metric, match = METRICS[name], NAME.fullmatch(text)
    number = float(match["number"]) if match and match["number"] else None
    problem = ""
    if match is None:
        problem = "it is written name@number@group@segment"
    elif match["group"] and not metric.groups:
        problem = f"{name} is not measured within groups"
    elif number is not None and not metric.takes:
        problem = f"{name} takes no number"
    elif number is not None and metric.takes == "cut" and (number < 1 or number % 1):
        problem = f"{name} is cut off at a whole number from 1 on"
    elif number is not None and metric.takes == "threshold" and not 0 < number < 1:
        problem = f"the threshold of {name} lies between 0 and 1"
    if match is None or problem:
        raise UsageError(f"The metric {text!r} cannot be read: {problem}.", hint)
    return MetricName(name, number, match["group"], match["segment"])


def recorded_metric(text: str) -> MetricName | None:
    """The metric of a name in a record; None for what is none, such as ``rows@user=cold``."""
    try:
        return read_metric(text)
    except UsageError:
        return None


def reading(text: str) -> Metric:
    """How a recorded metric is read; one of another version or of a plugin by its name alone."""
    name = recorded_metric(text)
    return Metric(text, True) if name is None else replace(name.metric, label=name.label)


def find_metric(wanted: str, recorded: Collection[str]) -> str | None:
    """The recorded metric that is meant: the one of that name, or the first that has all of it.

    ``gauc`` finds ``gauc@user``, and ``ndcg@5`` finds ``ndcg@5@session``; None if nothing fits.

    Raises:
        UsageError: There is no metric of that name.
    """
    if wanted in recorded:
        return wanted
    read = read_metric(wanted)
    for text in recorded:
        other = recorded_metric(text)
        # What is left open may be anything, but for the segment.
        if other is not None and other == replace(
            read, number=read.number or other.number, group=read.group or other.group
        ):
            return text
    return None


def default_metrics(groups: Collection[str]) -> tuple[MetricName, ...]:
    """What the final scores are measured by, besides what is computed at every point."""
    names = []
    for name, metric in METRICS.items():
        if not (metric.always or metric.groups):
            names.append(MetricName(name))
        # The rows of a user are no list that anybody saw: lists are those of sessions, if any.
        wanted = metric.groups[:1] if metric.takes == "cut" else metric.groups
        names += [MetricName(name).resolve([group], "") for group in wanted if group in groups]
    return tuple(names)
