"""The test metrics of a run once more, from its stored scores: a record may claim anything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from mtlkit.data.types import Task
from mtlkit.errors import one_line
from mtlkit.metrics.definitions import PRIMARY_METRIC, recorded_metric
from mtlkit.models._funnel import MOST_LOGIT
from mtlkit.records import RunRecord
from mtlkit.training.metrics import FurtherMetrics, task_metrics

TOLERANCE = 1e-5  # how near, in parts of itself or of 1, a metric must be to the recorded one
NOT_MEASURED = {"space", "derived", "capped"}


def wrong_numbers(record: RunRecord, stored: Mapping[str, np.ndarray]) -> Iterator[str]:
    """A sentence for each metric of the test split that the stored scores do not give. Metrics of
    segments are left aside: which rows are in one is not stored.

    Args:
        stored: Its scores, as :func:`mtlkit.training.scoring.score_arrays` makes them.
    """
    kinds = {score["name"]: score.get("kind") for score in record.tasks}
    for name, recorded in record.metrics["test"].items():
        try:
            again = _metrics(name, kinds[name], stored, recorded)
        except Exception as error:  # arrays that do not fit together fail in many ways
            reason = f"{type(error).__name__}: {one_line(error)}"
            yield f"the metrics of {name} cannot be computed from its scores ({reason})"
            continue
        for metric, value in recorded.items():
            found = again.get(metric)
            if metric in NOT_MEASURED or "=" in metric or value is found is None:
                continue
            bound = TOLERANCE * max(1.0, abs(value or 0.0))
            if value is None or found is None or not abs(found - value) <= bound:
                yield f"{metric} of {name} is {value} in the record, and {found} from its scores"

    # a report compares by the primary metrics, which must be among those above
    for score in record.tasks:
        if score.get("metric") not in (None, PRIMARY_METRIC.get(str(score.get("kind")))):
            yield f"{score['metric']} is not what {score['name']} is compared by"


def _metrics(
    name: str, kind: Any, stored: Mapping[str, np.ndarray], recorded: Mapping[str, Any]
) -> dict[str, Any]:
    """The metrics of a score: those that are always measured, and those that were recorded."""
    scores, labels = (torch.tensor(stored[f"{what}/{name}"]) for what in ("score", "label"))
    mask = stored.get(f"observed/{name}")
    observed = None if mask is None else torch.tensor(mask)
    classes = scores.shape[1] if scores.ndim > 1 else 2
    task = Task(name=name, kind=kind, classes=classes)  # stored regressions are on their own scale
    bound = MOST_LOGIT if "capped" in recorded else math.inf
    rows = (task, scores, labels, observed, bound)
    known = task_metrics(*rows)

    names = [found for metric in recorded if (found := recorded_metric(metric))]
    groups: Any = SimpleNamespace(codes=lambda group: stored[f"group/{group}"])
    further = FurtherMetrics(tuple(found for found in names if found.segment is None), groups)
    return known | further.of_task(*rows, known)
