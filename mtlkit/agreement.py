"""Whether two runs of one cell have the same numbers.

On the same kernels they must, to the last digit. Other versions, another processor or another
number of threads sum in another order, and training makes small differences larger. Then the
honest question is whether the runs differ by more than a change of seed would make them differ.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mtlkit.records import RunRecord

FEWEST_SEEDS = 3  # finished seeds from which a spread is known; of two, it could be anything

MISSED = 0.05
"""How often a run of another seed would fall outside of the bound in at least one score."""

NO_CAUSE = {"cores", "git_commit", "plugin_commits"}
"""What a record says of its surroundings that moves no digit; plugins have digests of their own."""
NOT_COMPARED = {"started", "finished", "compile_seconds", "execution"}
NO_BOUND = f"no bound is known with fewer than {FEWEST_SEEDS} seeds"


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was; ``moves_digits`` tells whether numbers may follow it."""

    what: str
    before: Any
    now: Any
    moves_digits: bool


@dataclass(frozen=True)
class Compared:
    """A metric that was measured of both runs; ``difference`` is None where one has no number."""

    split: str
    task: str
    metric: str
    before: float | None
    now: float | None
    difference: float | None
    bound: float | None  # the largest difference that counts as the same; None where there is none


Found = tuple[str, str, tuple[Compared, ...], tuple[Difference, ...]]
"""``same digits``, ``within bound`` or ``differs``; a sentence on how that was found; every metric
of both splits that both have; what else differs.
"""


def compare_runs(
    record: RunRecord,
    again: RunRecord,
    siblings: Iterable[RunRecord] = (),
    changed: Iterable[Difference] = (),
    tolerance: float | None = None,
) -> Found:
    """Compare a run with another one of the same cell.

    Args:
        record: The run that was there first.
        again: The other one.
        siblings: Finished runs of the same row, whose spread over seeds gives bounds.
        changed: What is known to differ besides their surroundings.
        tolerance: The bound on all differences, instead of one by seeds.
    """
    differences = (*changed, *_surroundings(record.environment, again.environment))
    if not (record.ok and again.ok):
        return _compare_failures(record, again, differences)
    bounds = _bounds(record, siblings) if tolerance is None else {}
    metrics = _compare(record, again, bounds, tolerance)
    return (*_judge(metrics, differences, record, tolerance), metrics, differences)


def _surroundings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """What the two records say differently of versions and machines."""
    return [
        Difference(key, before.get(key), now.get(key), key not in NO_CAUSE)
        for key in {**before, **now}
        if key not in NOT_COMPARED and before.get(key) != now.get(key)
    ]


def _values(record: RunRecord) -> dict[tuple[str, str, str], float | None]:
    """(split, task, metric) to each number of a record."""
    return {
        (split, task, metric): value
        for split, scores in record.metrics.items()
        for task, score in scores.items()
        for metric, value in score.items()
        if metric not in {"space", "derived"}
    }


def _compare(
    record: RunRecord,
    again: RunRecord,
    bounds: Mapping[tuple[str, str, str], float],
    tolerance: float | None,
) -> tuple[Compared, ...]:
    before, now = _values(record), _values(again)
    compared = []
    for key in [key for key in before if key in now]:
        old, new = before[key], now[key]
        difference = None if old is None or new is None else new - old
        compared.append(Compared(*key, old, new, difference, bounds.get(key, tolerance)))
    return tuple(compared)


def _bounds(record: RunRecord, siblings: Iterable[RunRecord]) -> dict[tuple[str, str, str], float]:
    """For the primary metrics on the test split: how far two runs that differ by their seed alone
    lie apart, all but ``MISSED`` of the time. Empty with too few seeds.

    The difference of two draws from one normal distribution has sqrt(2) times its deviation s,
    which n seeds estimate with n - 1 degrees of freedom: |d| <= t(n - 1) s sqrt(2). The share that
    is missed is spread over the scores.
    """
    from scipy.stats import t

    numbers = [_values(other) for other in siblings]
    scores = [("test", str(task["name"]), str(task.get("metric"))) for task in record.tasks]
    bounds = {}
    for key in scores:
        values = [value for other in numbers if (value := other.get(key)) is not None]
        if len(values) >= FEWEST_SEEDS:
            quantile = float(t.ppf(1 - MISSED / len(scores) / 2, len(values) - 1))
            bounds[key] = quantile * statistics.stdev(values) * math.sqrt(2)
    return bounds


def _judge(
    metrics: tuple[Compared, ...],
    differences: tuple[Difference, ...],
    record: RunRecord,
    tolerance: float | None,
) -> tuple[str, str]:
    """The verdict, and a sentence on how it was found."""
    if not metrics:
        return "differs", "they have no metric in common"
    if all(one.before == one.now for one in metrics):
        return "same digits", "all metrics are the same to the last digit"

    # on the same kernels nothing but a mistake, or a GPU that sums as it likes, moves a digit
    causes = [difference.what for difference in differences if difference.moves_digits]
    is_exact = record.environment.get("device_type") == "cpu" or record.environment.get(
        "deterministic"
    )
    if not causes and is_exact and tolerance is None:
        return "differs", "versions and kernels are the same, so digits should be"

    bounded = [one for one in metrics if one.bound is not None]
    source = "the tolerance given" if tolerance is not None else "what a change of seed makes"
    if not bounded:
        return "differs", NO_BOUND
    if all(_is_within(one) for one in bounded):
        return "within bound", f"no difference is larger than {source}"
    return "differs", f"a difference is larger than {source}"


def _is_within(one: Compared) -> bool:
    if one.difference is None or one.bound is None:
        return one.before == one.now
    return abs(one.difference) <= one.bound


def _compare_failures(
    record: RunRecord, again: RunRecord, differences: tuple[Difference, ...]
) -> Found:
    """The verdict where a run has no numbers: the same kind of end is the same."""
    ends = [one.error.type if one.error else one.status for one in (record, again)]
    reason = f"the run ended with {ends[0]}, and now with {ends[1]}"
    if again.error:
        reason += f" ({again.error.type}: {again.error.message})"
    verdict = "same digits" if ends[0] == ends[1] else "differs"
    return verdict, reason, (), differences
