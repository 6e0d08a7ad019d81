"""From frames to the rows of one table: means over seeds and paired differences to single-task."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mtlkit.equivalences import notices
from mtlkit.report.blocks import Block, RunGroup, TaskInfo
from mtlkit.report.frame import Frames
from mtlkit.report.gains import Paired
from mtlkit.report.references import Counts, References, TaskValues, find_references, with_floors
from mtlkit.report.row_noise import RowNoise, load_row_noise
from mtlkit.report.run_warnings import listed, run_warnings
from mtlkit.report.statistics import (
    MARGIN,
    Comparison,
    Interval,
    Word,
    chance_error,
    mean_over_tasks,
    pareto_front,
    recovered,
    t_interval,
)

SPLIT = "test"
TaskMeans = Mapping[str, Interval]  # task to the mean of its primary metric over seeds
FEW_POSITIVES = 100
"""Below this number, the draw of the test rows moves an AUC more than most seeds do."""
SHOWN = 6  # rows that a warning lists by name


@dataclass(frozen=True)
class Row:
    """One group of runs."""

    group: RunGroup
    values: Mapping[str, Mapping[int, float]]  # score to seed to its primary metric
    metric: Mapping[str, Interval]  # score to mean and interval
    reference_of: frozenset[str]  # the scores whose reference this row is
    # Score to the paired difference to its reference, where there is another row that is.
    delta: Mapping[str, Interval]
    # Mean relative gain over all tasks (delta m), as a fraction; unknown for references.
    gain: Interval
    word: Word  # what is said of the gain
    weighted: Interval  # mean of the scores by ``select_weights``; unknown without them
    seeds_to_tell: float  # seeds that would tell it from 0, where it is not told apart
    derived: frozenset[str]  # scores that the model does not predict itself
    # Score to the share of test rows whose derived probability would exceed 1.
    capped: Mapping[str, float]
    on_front: bool  # whether no other row's means are at least as good on all tasks
    parameters: float  # mean over seeds, as the next four
    flops_per_row: float  # operations of the matrix products of a forward pass, by row
    rows_per_second: float  # training rows a second
    seconds: float  # training seconds
    peak_memory: float  # bytes


@dataclass(frozen=True)
class Summary:
    """The rows of one data set block, best first."""

    block: Block
    # Of the methods, sorted by gain over single-task where there is one, else by mean metric.
    rows: tuple[Row, ...]
    # Rows of what is no network, which takes no part in any comparison of methods.
    baselines: tuple[Row, ...]
    best: Mapping[str, str]  # task to the id of the group with the best mean
    references: References  # what most rows are compared with
    # Task to (positives, rows) of the test split; NaN when unknown or not the same in all runs.
    counts: Counts
    warnings: tuple[str, ...]  # what a reader must know before comparing rows
    noise: RowNoise  # what the test rows add to differences
    margin: float  # relative gains up to this one do not matter

    @property
    def finished(self) -> tuple[Row, ...]:
        """Rows with at least one finished run."""
        return tuple(row for row in self.rows if row.group.seeds)

    @property
    def all_rows(self) -> tuple[Row, ...]:
        """Those of the methods, and below them those of baselines."""
        return self.rows + self.baselines

    def row(self, group: str) -> Row:
        """The row of a group, by the id of the group."""
        return next(row for row in self.all_rows if row.group.id == group)

    def recovered(self, task: TaskInfo) -> float:
        """The share of the planted model's distance from a useless one that the best mean covers;
        NaN if unknown.
        """
        best = self.best.get(task.name)
        if best is None:
            return math.nan
        return recovered(self.row(best).metric[task.name].mean, task.ceiling, task.reading)

    def worse(self, task: TaskInfo, row: Row) -> bool:
        """Whether a row's interval lies clear of the best mean's interval."""
        best = self.best.get(task.name)
        if best is None:
            return False
        best_interval = self.row(best).metric[task.name]
        return not row.metric[task.name].overlaps(best_interval)


def summarise(frames: Frames, block: Block, margin: float = MARGIN) -> Summary:
    """Aggregate one block over seeds."""
    # Of the frames, what belongs to the block: metrics on the test split, and finished runs.
    metrics = frames.metrics
    metrics = metrics[(metrics["block"] == block.id) & (metrics["split"] == SPLIT)]
    runs = frames.runs
    runs = runs[(runs["block"] == block.id) & (runs["status"] == "ok")]

    # The metric of each seed, and its mean over seeds.
    values: dict[str, TaskValues] = {}
    means: dict[str, TaskMeans] = {}
    by_group = dict(iter(metrics.groupby("group", observed=True)))
    for group in block.groups:
        by_task = task_values(by_group.get(group.id, metrics[:0]), block.tasks)
        values[group.id] = by_task
        means[group.id] = {
            task: t_interval(list(seeds.values())) for task, seeds in by_task.items()
        }

    # What each score is compared with, by training settings.
    counts = {task.name: _counts(metrics, task) for task in block.tasks}
    block = with_floors(block, counts, runs["folder"].tolist())
    derived = _derived(metrics, block)
    trainings = Counter(group.training for group in block.methods)
    usual, _ = trainings.most_common(1)[0]
    references = {
        training: find_references(block, training, values, derived, counts)
        for training in trainings
    }

    # A row a group, best first.
    noise = load_row_noise(frames, block)
    methods = {group.id: means[group.id] for group in block.methods}
    front = _front(block, methods)
    capped = _capped(metrics, block)
    rows = []
    for group in block.groups:
        compared_with = references.get(group.training, references[usual])
        paired = Paired(group.id, values[group.id], compared_with.ids, compared_with.values, noise)
        gain = _gain(block, paired, group, compared_with, margin)
        group_runs = runs[runs["group"] == group.id]
        row = Row(
            group=group,
            values=values[group.id],
            metric=means[group.id],
            reference_of=compared_with.is_of(group),
            delta={
                score: paired.difference(score)
                for score, reference in compared_with.groups.items()
                if reference is not group
            },
            gain=gain.interval,
            word=gain.word,
            weighted=_weighted_mean(block, values[group.id], group),
            seeds_to_tell=gain.seeds_to_tell,
            derived=derived[group.id],
            capped=capped[group.id],
            on_front=front.get(group.id, False),
            parameters=_mean(group_runs, "parameters"),
            flops_per_row=_mean(group_runs, "flops_per_row"),
            rows_per_second=_mean(group_runs, "rows_per_second"),
            seconds=_mean(group_runs, "train_seconds"),
            peak_memory=_mean(group_runs, "peak_memory_bytes"),
        )
        rows.append(row)
    rows.sort(key=lambda row: _rank(row, block))
    baselines = tuple(row for row in rows if row.group.id not in methods)
    rows = [row for row in rows if row.group.id in methods]

    # Figures show the references of the settings that most rows have.
    usual_references = references[usual]
    best = _best(block, methods)
    found = _warnings(block, counts, references.values(), rows)
    beaten = behind_baselines(block, rows, baselines, best, noise)
    warnings = (*filter(None, [beaten]), *found, *run_warnings(frames, block))
    return Summary(
        block, tuple(rows), baselines, best, usual_references, counts, warnings, noise, margin
    )


def task_values(metrics: pd.DataFrame, tasks: tuple[TaskInfo, ...]) -> TaskValues:
    """Task to seed to primary metric, from the metric rows of one group and split."""
    values: dict[str, dict[int, float]] = {task.name: {} for task in tasks}
    primary = {task.name: task.metric for task in tasks}
    columns = [metrics[name].tolist() for name in ("task", "metric", "seed", "value")]
    for task, metric, seed, value in zip(*columns, strict=True):
        if primary.get(task) == metric and not math.isnan(value):
            values[task][int(seed)] = float(value)
    return values


def _derived(metrics: pd.DataFrame, block: Block) -> dict[str, frozenset[str]]:
    """Group to the scores that it does not predict itself."""
    is_derived = metrics["derived"].astype(bool)
    scores = metrics[is_derived].groupby("group", observed=True)["task"].agg(frozenset).to_dict()
    return {group.id: scores.get(group.id, frozenset()) for group in block.groups}


def _capped(metrics: pd.DataFrame, block: Block) -> dict[str, dict[str, float]]:
    """Group to score to the share of rows whose derived probability would exceed 1, on average."""
    known = metrics.dropna(subset=["capped"])
    shares = known.groupby(["group", "task"], observed=True)["capped"].mean().reset_index()
    capped: dict[str, dict[str, float]] = {group.id: {} for group in block.groups}
    for group, score, share in zip(*(shares[name] for name in shares), strict=True):
        capped[group][score] = float(share)
    return capped


def beside(row: Row, other: Row, noise: RowNoise) -> Paired:
    """A row and another one, with which it is compared in every score."""
    ids = dict.fromkeys(other.values, other.group.id)
    return Paired(row.group.id, row.values, ids, other.values, noise)


def _gain(
    block: Block, paired: Paired, group: RunGroup, references: References, margin: float
) -> Comparison:
    """The mean relative gain over all tasks, over common seeds."""
    if references.is_of(group) or references.useless:
        return Comparison()

    # A task without any reference would be missing from the mean.
    compared = [task for task in block.comparable if task.name in references.groups]
    tasks = {block.task_of[task.name] for task in compared}
    if tasks != set(block.task_of.values()):
        return Comparison()
    return paired.compare_gains(compared, block.task_of, margin)


def _weighted_mean(block: Block, values: TaskValues, group: RunGroup) -> Interval:
    """The mean of the scores that the user has weighted, as for ``select=weighted``: a score that
    has no weight counts 1, or its part of that where its task has several.
    """
    chosen = (group.resolved.get("training") or {}).get("select_weights")
    if not chosen:
        return Interval()
    scores_of_task = Counter(block.task_of[score.name] for score in block.comparable)
    weights = [
        chosen.get(score.name, 1 / scores_of_task[block.task_of[score.name]])
        for score in block.comparable
    ]
    if not sum(weights):
        return Interval()

    seeds = set.intersection(*(set(values[score.name]) for score in block.comparable))
    means = []
    for seed in sorted(seeds):
        heights = [score.reading.goodness(values[score.name][seed]) for score in block.comparable]
        means.append(float(np.average(heights, weights=weights)))
    return t_interval(means)


def _front(block: Block, means: Mapping[str, TaskMeans]) -> dict[str, bool]:
    """Group to whether it is on the Pareto front of the means, higher being better."""
    if not block.comparable:
        return dict.fromkeys(means, False)
    points = [[signed_mean(task, one) for task in block.comparable] for one in means.values()]
    on_front = pareto_front(np.array(points))  # of (groups, scores)
    return {group: bool(on) for group, on in zip(means, on_front, strict=True)}


def signed_mean(task: TaskInfo, means: TaskMeans) -> float:
    """The mean of a task, on a scale on which higher is better."""
    return task.reading.goodness(means[task.name].mean)


def _mean(runs: pd.DataFrame, column: str) -> float:
    """The mean of a column over the runs that have it; NaN where none has."""
    known_values = runs[column].dropna()
    return float(known_values.mean()) if len(known_values) else math.nan


def _rank(row: Row, block: Block) -> tuple[bool, bool, float, str]:
    """Sorts rows: by gain, then those without one by mean metric, then those without any metric."""
    signed_means = {task.name: signed_mean(task, row.metric) for task in block.comparable}
    mean_metric = mean_over_tasks(signed_means, block.task_of)

    # Highest first; NaN cannot be compared with anything.
    height = row.gain.mean if row.gain.known else mean_metric
    descending = 0.0 if math.isnan(height) else -height
    return math.isnan(mean_metric), not row.gain.known, descending, row.group.label


def _best(block: Block, means: Mapping[str, TaskMeans]) -> dict[str, str]:
    """Task to the group of the best mean."""
    best = {}
    for task in block.tasks:
        known = [group for group, by_task in means.items() if by_task[task.name].known]
        if known:
            best[task.name] = max(known, key=lambda group: signed_mean(task, means[group]))
    return best


def _counts(metrics: pd.DataFrame, task: TaskInfo) -> tuple[float, float]:
    """(positives, rows) of a task; NaN where the runs do not agree."""
    task_metrics = metrics[metrics["task"] == task.name]
    distinct = task_metrics[["positives", "rows"]].drop_duplicates()
    if len(distinct) != 1:
        return math.nan, math.nan
    counts = distinct.iloc[0]
    return float(counts["positives"]), float(counts["rows"])


def behind_baselines(
    block: Block,
    rows: Sequence[Row],
    baselines: Sequence[Row],
    best: Mapping[str, str],
    noise: RowNoise,
) -> str:
    """On which tasks no network reaches a baseline, a sentence each with both numbers, and with the
    difference where seeds are common; empty without any. Of several baselines the best one counts.
    """
    by_id = {row.group.id: row for row in rows}
    sentences = []
    for task in block.comparable:
        known = [row for row in baselines if row.metric[task.name].known]
        if not known or task.name not in best:
            continue
        baseline = max(known, key=lambda row: signed_mean(task, row.metric))
        network = by_id[best[task.name]]
        if signed_mean(task, network.metric) >= signed_mean(task, baseline.metric):
            continue
        delta = beside(network, baseline, noise).difference(task.name)
        digits = task.reading.decimals
        reached, other = (f"{row.metric[task.name].mean:.{digits}f}" for row in (baseline, network))
        interval = f" ± {delta.half:.{digits}f}" if delta.bounded else ""
        is_worse = task.reading.goodness(delta.mean) < 0  # it may be better on the common seeds
        worse = f", worse by {abs(delta.mean):.{digits}f}{interval}" if is_worse else ""
        sentences.append(
            f"No network reaches the {baseline.group.label} baseline on {task.title}: "
            f"{task.reading.label} {reached} against {other} of {network.group.label}{worse}."
        )
    return " ".join(sentences)


def _warnings(
    block: Block, counts: Counts, references: Collection[References], rows: Sequence[Row]
) -> list[str]:
    """What a reader must know before comparing rows, a sentence each."""
    # A check that finds nothing says nothing.
    warnings = [
        _unequal_seeds(block),
        _several_trainings(block),
        _few_positives(block, counts),
        *dict.fromkeys(found.useless for found in references),
        _without_reference(block, references),
        _capped_rows(block, rows),
        *copies(block),
    ]
    return [warning for warning in warnings if warning]


def copies(block: Block) -> list[str]:
    """Which balancers of a block are one method, a sentence each."""
    balancers = []
    for group in block.groups:
        options = group.resolved["balancer"].get("options") or {}
        balancers.append((group.balancer_name, options))
    return notices(balancers, block.trained)


def _without_reference(block: Block, references: Collection[References]) -> str:
    """Which scores are not compared with single-task, and why; empty if all are."""
    with_reference = set[str]().union(*(found.groups for found in references))
    if not with_reference:
        return ""
    untrained = [task.title for task in block.comparable if task.name not in with_reference]
    hidden = [task.title for task in block.tasks if task.hidden]

    sentences = []
    if untrained:
        sentences.append(
            f"No single-task model was trained for {', '.join(untrained)}: there is no difference "
            "to one, and Δm leaves it out, or is unknown where nothing else of its task is left."
        )
    if hidden:
        sentences.append(
            f"{', '.join(hidden)} needs labels that only the simulator knows: no model can be "
            "trained for it, so it has no difference, and no part in Δm and the front."
        )
    return " ".join(sentences)


def _capped_rows(block: Block, rows: Sequence[Row]) -> str:
    """Whose derived probabilities exceed 1, and how often; empty where none do."""
    affected = []
    for task in block.comparable:
        for row in rows:
            share = row.capped.get(task.name, 0.0)
            if share > 0:
                affected.append((share, f"{task.title} of {row.group.label} {100 * share:.3g} %"))
    if not affected:
        return ""

    texts = [text for _, text in sorted(affected, reverse=True)]
    return (
        "A probability that is derived as a quotient of two estimates may exceed 1. Share of the "
        f"test rows: {listed(texts, SHOWN)}. The quotients rank such rows as they are."
    )


def _few_positives(block: Block, counts: Counts) -> str:
    """A warning about AUCs of few positives; empty where there are enough."""
    # There is an AUC where some rows are positive and some are not.
    few = {}
    for task in block.tasks:
        positives, rows = counts[task.name]
        has_auc = task.metric == "auc" and 0 < positives < rows
        if has_auc and positives < FEW_POSITIVES:
            few[task.title] = (positives, rows)
    if not few:
        return ""

    # For the task with the fewest: the standard error of the AUC of useless scores.
    positives, rows = min(few.values())
    error = chance_error(positives, rows)
    listed = ", ".join(f"{title} {positives:.0f}" for title, (positives, _) in few.items())
    return (
        f"Few positives in the test split: {listed}. With {positives:.0f} of them the standard "
        f"error of an AUC over test rows is about {error:.2f}, and intervals over seeds leave it "
        "out."
    )


def _unequal_seeds(block: Block) -> str:
    """A warning about rows that are means over other seeds than most; empty without any."""
    counts = Counter(group.seeds for group in block.methods)
    if len(counts) == 1:
        return ""

    # Most seeds first, then most groups: what a row should have.
    usual = max(counts, key=lambda seeds: (len(seeds), counts[seeds], seeds))
    rows = [group for group in block.methods if group.seeds != usual]
    others = [f"{group.label} ({_seed_list(group.seeds)})" for group in rows]
    return (
        f"Not all rows are means over the same seeds. Most complete: {_seed_list(usual)}. "
        f"Others: {listed(others, SHOWN)}. Means of such rows are not strictly comparable; "
        "differences to single-task use common seeds only."
    )


def _seed_list(seeds: tuple[int, ...]) -> str:
    """Seeds in words, such as ``seeds 0, 1``."""
    if not seeds:
        return "no finished seed"
    noun = "seeds" if len(seeds) > 1 else "seed"
    listed = ", ".join(map(str, seeds))
    return f"{noun} {listed}"


def _several_trainings(block: Block) -> str:
    """A warning about rows of different training settings; empty where all are the same."""
    by_digest = {group.training: group.resolved.get("training") or {} for group in block.methods}
    if len(by_digest) == 1:
        return ""

    # Which settings make the difference; values are compared as text, as some are lists.
    trainings = list(by_digest.values())
    keys = sorted(set[str]().union(*trainings))
    differing = [key for key in keys if len({str(one.get(key)) for one in trainings}) > 1]
    return (
        f"Rows were trained under {len(trainings)} different settings "
        f"(they differ in {', '.join(differing)}). "
        "Each is compared with single-task under its own settings, where that was run."
    )
