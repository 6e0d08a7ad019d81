"""What a metric is: its label, direction, floor, kinds of task, what it needs, and its name."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from mtlkit.errors import UsageError, did_you_mean, nearest_names

Kinds = tuple[Literal["binary", "regression", "multiclass"], ...]
BINARY: Kinds = ("binary",)
CLASSES: Kinds = ("binary", "multiclass")
REGRESSION: Kinds = ("regression",)


@dataclass(frozen=True)
class Metric:
    """What a metric is, and how it is read.

    Args:
        label: As printed in tables and figures.
        higher_is_better: Its direction.
        floor: The value of a useless model, the zero of relative changes; of an error, 0.
        decimals: Digits after the point in tables.
        kinds: The kinds of task that have it.
        target: The value nearest to which is best, of a metric without a direction.
        takes: What a number after its name means: ``ndcg@10`` is cut off at 10, ``f1@0.3`` has a
            threshold.
        groups: Of a metric within groups of rows: the groups it takes if none is named, in order.
        always: Whether it is computed at every evaluation point.
    """

    label: str
    higher_is_better: bool
    floor: float = 0.0
    decimals: int = 4
    kinds: Kinds = BINARY
    target: float | None = None
    takes: Literal["", "cut", "threshold"] = ""
    groups: tuple[str, ...] = ()
    always: bool = False

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
DEFAULT_CUT = 10
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class MetricName:
    """A metric with all that decides its value, written ``name@number@group@segment``.

    Args:
        name: A key of :data:`METRICS`.
        number: The cut or the threshold; None for the default.
        group: Rows are ranked within this group, such as ``user``.
        segment: The rows that count, such as ``user=cold``; None for all.
    """

    name: str
    number: float | None = None
    group: str | None = None
    segment: str | None = None

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
        number = None if self.number is None else f"{self.number:g}"
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

        Args:
            groups: The groups that the data has.
            data: The name of the data set, for messages.

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
    name, *suffixes = text.strip().split("@")
    if name not in METRICS:
        guess = did_you_mean(nearest_names(name, list(METRICS)))
        raise UsageError(f"There is no metric {name!r}.{guess}", hint)

    # A segment is the last suffix; the value that it names may hold any letter.
    segment = None
    for position, suffix in enumerate(suffixes):
        if "=" in suffix:
            segment = "@".join(suffixes[position:])
            suffixes = suffixes[:position]
            break

    # What is left is a number, a group, or both.
    number, group = None, None
    for suffix in suffixes:
        value = _as_number(suffix)
        if value is not None and number is None and group is None:
            number = value
        elif suffix and value is None and group is None:
            group = suffix
        else:
            raise UsageError(f"The metric {text!r} cannot be read.", hint)
    _check_suffixes(MetricName(name, number, group, segment), text, hint)
    return MetricName(name, number, group, segment)


def _as_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _check_suffixes(read: MetricName, text: str, hint: str) -> None:
    """Raise a :class:`UsageError` if a metric does not take its number or its group."""
    metric, number = read.metric, read.number
    problem = ""
    if read.group is not None and not metric.groups:
        problem = f"{read.name} is not measured within groups"
    elif number is not None and not metric.takes:
        problem = f"{read.name} takes no number"
    elif number is not None and metric.takes == "cut" and not (number >= 1 and number % 1 == 0):
        problem = f"{read.name} is cut off at a whole number from 1 on"
    elif number is not None and metric.takes == "threshold" and not 0 < number < 1:
        problem = f"the threshold of {read.name} lies between 0 and 1"
    if problem:
        raise UsageError(f"The metric {text!r} cannot be read: {problem}.", hint)


def reading(text: str) -> Metric:
    """How a recorded metric is read; one of another version or of a plugin by its name alone."""
    try:
        name = read_metric(text)
    except UsageError:
        return Metric(text, True)
    return replace(name.metric, label=name.label)


def is_metric(text: str) -> bool:
    """Whether a recorded name is that of a metric, as ``rows@user=cold`` is not."""
    return text.partition("@")[0] in METRICS


def find_metric(wanted: str, recorded: Iterable[str]) -> str | None:
    """The recorded metric that is meant: the one of that name, or the first that has all of it.

    ``gauc`` finds ``gauc@user``, and ``ndcg@5`` finds ``ndcg@5@session``; None if nothing fits.

    Raises:
        UsageError: There is no metric of that name.
    """
    if wanted in recorded:
        return wanted
    read = read_metric(wanted)
    for text in filter(is_metric, recorded):
        other = read_metric(text)
        same_number = read.number in (None, other.number)
        same_group = read.group in (None, other.group)
        if read.name == other.name and read.segment == other.segment and same_number and same_group:
            return text
    return None


def default_metrics(groups: Collection[str]) -> tuple[MetricName, ...]:
    """What the final scores are measured by, besides what is computed at every point.

    Args:
        groups: The groups that the data has.
    """
    is_plain = {name: not (metric.always or metric.groups) for name, metric in METRICS.items()}
    names = [MetricName(name) for name in METRICS if is_plain[name]]
    for name, metric in METRICS.items():
        for group in metric.groups:
            # Ranks among all rows that a user ever sees are of no use where there are sessions.
            is_listwise = metric.takes == "cut"
            if group in groups and (group == metric.groups[0] or not is_listwise):
                names.append(MetricName(name).resolve([group], ""))
    return tuple(names)
