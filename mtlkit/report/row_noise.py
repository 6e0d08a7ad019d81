"""The noise of the test rows: how far a difference would move had other rows been drawn.

Seeds say what training again would change, on the rows that are there. Other rows from the same
source would change a metric as well, for two models on the same rows often by as much in the same
direction. Both are needed for a claim about a method and not about a test split.

To first order a metric of N rows moves by the sum of what each row adds to it, its influence
(Hampel, 1974, doi:10.1080/01621459.1974.10482962), so the variance is the sum of the squares. For
the AUC this is the method of DeLong et al. (1988, doi:10.2307/2531595). Rows of one user or session
come together: their influences are added before they are squared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mtlkit.record_check import UnreadableError
from mtlkit.report.blocks import Block
from mtlkit.report.calibration import calibration_counts
from mtlkit.report.frame import Frames
from mtlkit.report.stored_scores import read_scores
from mtlkit.store import Unreadable

ROW_LIMIT = 30_000_000
"""Rows of scores that a report of one block reads, about ten seconds; beyond, no noise is known."""
TOLERANCE = 1e-5
"""How near, in parts of itself or of 1, a metric of stored scores must be to the recorded one."""
GROUPS = ("user", "session")  # groups whose rows come together, the largest first


@dataclass(frozen=True)
class RowNoise:
    """What the test rows of one block add to the metrics of its groups of runs."""

    # (group id, score) to seed to (N,) influences; rows that do not count have 0.
    influence: Mapping[tuple[str, str], Mapping[int, np.ndarray]]
    # (N,) number of the user or session of each row; None if rows stand alone.
    clusters: np.ndarray | None = None
    unreadable: tuple[Unreadable, ...] = ()  # files of scores that were left out, with the reasons
    # (group id, score) to the mean over seeds of its ``calibration_counts``, of binary scores.
    calibration: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    too_many: bool = False  # whether there were more scores than are read

    def error(self, terms: Sequence[tuple[str, str, float]]) -> float:
        """The standard error over test rows of a sum of metrics, each a mean over seeds; NaN where
        the influence of a term is unknown, and for a sum of nothing.

        Of the variance of the mean over n seeds, a part is of what each seed alone makes of the
        rows. That part is in the spread over seeds already, so it is taken out: with V the variance
        of the mean and v the mean variance of a seed, what all seeds share is (n V - v) / (n - 1).

        Args:
            terms: Group id, score and factor of each metric; a difference has the factors 1 and -1.
        """
        known = all((group, score) in self.influence for group, score, _ in terms)
        if not terms or not known or not all(math.isfinite(factor) for *_, factor in terms):
            return math.nan
        by_seed = [self.influence[group, score] for group, score, _ in terms]
        seeds = set.intersection(*(set(seeds) for seeds in by_seed))
        if not seeds:
            return math.nan

        # What each row adds to the sum, in each seed and in the mean over seeds.
        totals = np.zeros((len(seeds), len(by_seed[0][min(seeds)])))  # (n, N)
        for (*_, factor), influence in zip(terms, by_seed, strict=True):
            totals += factor * np.stack([influence[seed] for seed in sorted(seeds)])
        n = len(totals)
        of_mean = self._variance(totals.mean(0))
        of_seed = np.mean([self._variance(total) for total in totals])
        shared = (n * of_mean - of_seed) / (n - 1) if n > 1 else of_mean
        return math.sqrt(max(float(shared), 0.0))

    def _variance(self, influence: np.ndarray) -> float:
        """The variance of a metric: the squares of what its rows, or their clusters, add to it."""
        if self.clusters is not None:
            influence = np.bincount(self.clusters, weights=influence)
        return float(np.square(influence).sum())


def load_row_noise(frames: Frames, block: Block) -> RowNoise:
    """Read the stored test scores of a block, and what each row adds to the primary metrics.

    A metric that has no influence function here, or that the stored scores do not give again, is
    left out, and so are runs without scores. A damaged file costs that run's alone.
    """
    metrics = frames.metrics
    metrics = metrics[(metrics["block"] == block.id) & (metrics["split"] == "test")]
    recorded = {task.name: task.metric for task in block.tasks}
    is_primary = metrics["metric"].astype(str) == metrics["task"].map(recorded).astype(str)
    primary = metrics[is_primary]
    if primary["rows"].sum() > ROW_LIMIT:
        return RowNoise({}, too_many=True)

    # A test split has one length, that of the first run that is read.
    by_run = dict(iter(primary.groupby(["group", "seed"], observed=True)))
    runs = frames.runs[(frames.runs["block"] == block.id) & (frames.runs["status"] == "ok")]
    by_pair: dict[tuple[str, str], dict[int, np.ndarray]] = defaultdict(dict)
    counts: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    binary = {task.name for task in block.tasks if task.kind == "binary"}
    clusters: np.ndarray | None = None
    rows = None
    unreadable = []
    for group, seed, folder in zip(runs["group"], runs["seed"], runs["folder"], strict=True):
        try:
            stored = read_scores(folder)
            recorded_here = by_run.get((group, seed), primary[:0])
            found, counted = _influences(stored, recorded_here, rows, binary)
        except UnreadableError as error:
            unreadable.append(Unreadable(folder / "scores.npz", str(error)))
            continue
        for score, influence in found.items():
            if rows is None:
                rows = len(influence)
                clusters = _clusters(stored, rows)
            by_pair[group, score][seed] = influence
        for score, counts_of_seed in counted.items():
            counts[group, score].append(counts_of_seed)

    calibration = {pair: np.mean(seeds, axis=0) for pair, seeds in counts.items()}
    return RowNoise(by_pair, clusters, tuple(unreadable), calibration)


def _influences(
    stored: dict[str, np.ndarray], recorded: pd.DataFrame, rows: int | None, binary: set[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Score to (N,) float32 influences on its primary metric, where they are known; and score to
    its ``calibration_counts``.

    Args:
        stored: The arrays of one run's scores.
        recorded: Its primary metrics on the test split.
        rows: What N must be; None if any will do.
        binary: Scores that are log-odds.

    Raises:
        UnreadableError: The scores are of other rows than those of the other runs.
    """
    found, counted = {}, {}
    for score, metric, value in zip(
        recorded["task"], recorded["metric"], recorded["value"], strict=True
    ):
        function = INFLUENCE.get(metric)
        if f"score/{score}" not in stored or (function is None and score not in binary):
            continue
        scores, labels = stored[f"score/{score}"], stored.get(f"label/{score}")
        counts = stored.get(f"observed/{score}", np.ones(len(scores), bool))
        if labels is None or scores.ndim != 1 or len(scores) != (rows or len(scores)):
            raise UnreadableError(f"the arrays of {score} are not of the rows of the other runs")

        # What was stored must give the number that was recorded: a metric may be of transformed
        # targets, or the file of another run.
        scores, labels = scores[counts], labels[counts]
        if function is not None:
            again, influence = function(scores.astype(float), labels.astype(float))
            if not abs(again - value) <= TOLERANCE * max(1.0, abs(value)):
                continue
            found[score] = np.zeros(len(counts), np.float32)
            found[score][counts] = influence
        if score in binary:
            counted[score] = calibration_counts(scores, labels)
    return found, counted


def _clusters(stored: dict[str, np.ndarray], rows: int) -> np.ndarray | None:
    """(N,) number of the user or session of each row, from 0 on; None if neither was stored."""
    for name in GROUPS:
        codes = stored.get(f"group/{name}")
        if codes is not None:
            # a row of no known group stands alone
            distinct = np.where(codes < 0, -1 - np.arange(rows), codes)
            return np.unique(distinct, return_inverse=True)[1]
    return None


# --- what a row adds to a metric: each function gives the metric, and (N,) influences of sum 0 ----


def auc_influence(scores: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """A positive adds the share of negatives below it, a negative the share of positives above it,
    each less the AUC; these are the structural components of DeLong et al.

    Args:
        scores: (N,) any scale.
        labels: (N,) 0 or 1.
    """
    is_positive = labels > 0
    if is_positive.all() or not is_positive.any():
        return math.nan, np.zeros(len(scores))

    # Rows in the order of their scores; those with one score are a step.
    order = np.argsort(scores)
    ordered, is_positive_here = scores[order], is_positive[order]
    step = np.cumsum(np.diff(ordered, prepend=ordered[:1]) != 0)
    below = np.empty((2, len(scores)))  # of each row, the share of negatives and of positives
    for others, counts in enumerate((~is_positive_here, is_positive_here)):
        in_step = np.bincount(step, weights=counts)
        share = (np.cumsum(in_step) - in_step / 2) / counts.sum()  # ties count half
        below[others, order] = share[step]
    won_by_positive = below[0, is_positive]
    won_from_negative = 1 - below[1, ~is_positive]
    auc, of_positives = mean_influence(won_by_positive)
    _, of_negatives = mean_influence(won_from_negative)
    influence = np.empty(len(scores))
    influence[is_positive] = of_positives
    influence[~is_positive] = of_negatives
    return auc, influence


def mean_influence(per_row: np.ndarray) -> tuple[float, np.ndarray]:
    """Of a mean of n rows: the squares add up to s² / n, with divisor n - 1 in the variance s²."""
    mean = float(per_row.mean())
    n = len(per_row)
    return mean, (per_row - mean) / math.sqrt(n * max(n - 1, 1))


def logloss_influence(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The log loss is a mean: log(1 + e^z) - y z."""
    return mean_influence(np.logaddexp(0, logits) - labels * logits)


def mse_influence(values: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean squared error is a mean."""
    return mean_influence((values - labels) ** 2)


def rmse_influence(values: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Of the root, by the chain rule: that of the mean over twice the root."""
    mse, influence = mse_influence(values, labels)
    root = math.sqrt(mse)
    return root, influence / (2 * root) if root else influence


def mae_influence(values: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """So is the mean absolute error."""
    return mean_influence(np.abs(values - labels))


def r2_influence(values: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """R² is 1 - u / v with u the mean squared error and v the variance of the labels: a row adds
    (-du + (1 - R²) dv) / v.
    """
    mse, of_mse = mse_influence(values, labels)
    variance, of_variance = mean_influence((labels - labels.mean()) ** 2)
    if not variance:
        return math.nan, np.zeros(len(values))
    unexplained = mse / variance
    return 1 - unexplained, (unexplained * of_variance - of_mse) / variance


Influence = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]
INFLUENCE: dict[str, Influence] = {
    "auc": auc_influence,
    "logloss": logloss_influence,
    "mse": mse_influence,
    "rmse": rmse_influence,
    "mae": mae_influence,
    "r2": r2_influence,
}
"""Metric of a binary or a regression task to its influence function."""
