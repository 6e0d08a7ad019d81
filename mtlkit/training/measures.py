"""What a run is measured by: the rule of selection, and which metrics are computed when."""

from __future__ import annotations

from dataclasses import dataclass

from mtlkit.data.groups import RowGroups
from mtlkit.data.splits import Dataset
from mtlkit.metrics.definitions import MetricName, default_metrics
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.training.metrics import FurtherMetrics
from mtlkit.training.selection import SelectionRule, requested_metrics


@dataclass(frozen=True)
class Measures:
    """What a run is measured by, besides what is always computed."""

    rule: SelectionRule  # what picks the best point
    requested: tuple[MetricName, ...]  # metrics that the user asks for
    validation: RowGroups  # groups of the validation rows
    test: RowGroups  # groups of the test rows

    @classmethod
    def of(
        cls, dataset: Dataset, settings: TrainingSettings, execution: ExecutionSettings
    ) -> Measures:
        """The measures of a run.

        Raises:
            UsageError: The data cannot give a metric that a setting names.
        """
        return cls(
            SelectionRule.read(settings, dataset),
            requested_metrics(execution.metrics, dataset),
            RowGroups(dataset, "validation"),
            RowGroups(dataset, "test"),
        )

    def at_points(self, groups: RowGroups) -> FurtherMetrics:
        """Of every evaluation point: what selection needs, and no more."""
        metric = self.rule.metric
        return FurtherMetrics(() if metric is None else (metric,), groups)

    def final(self, split: str) -> FurtherMetrics:
        """Of the selected point: everything, by segment on the test split alone."""
        groups = self.test if split == "test" else self.validation
        segments = groups.all_segments() if split == "test" else ()
        names = [*default_metrics(groups.names), *self.requested]
        if self.rule.metric is not None:
            names.append(self.rule.metric)
        return FurtherMetrics(tuple(dict.fromkeys(names)), groups, segments)
