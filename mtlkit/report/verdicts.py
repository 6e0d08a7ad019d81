"""Every balancer against the best fixed weights: the paired verdict of a scalarization sweep."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtlkit.report.blocks import Block, TaskInfo
from mtlkit.report.frame import Frames
from mtlkit.report.references import say_if_useless
from mtlkit.report.run_warnings import listed
from mtlkit.report.statistics import (
    Comparison,
    Interval,
    Word,
    distance_beyond,
    holm,
    hypervolume,
    mean_over_tasks,
    pareto_front,
    relative_gain,
    t_interval,
)
from mtlkit.report.summary import Row, Summary, beside, signed_mean, task_values
from mtlkit.report.tables import (
    PLANTED,
    Table,
    TableCell,
    are,
    both_noises_note,
    csv_interval,
    csv_key,
    csv_number,
    difference,
    equivalence_note,
    fixed,
)

HEADROOM = (
    "Planted model: how far the rule by which the simulator drew the labels lies above the "
    "reference; no balancer passes it but by luck."
)
SWEEP = 3  # the least number of fixed weightings that make a sweep
BEYOND = "beyond front, %"
MOST_SCORES = 4
"""Of so many scores at most the hypervolume is computed; beyond, it takes too long."""


@dataclass(frozen=True)
class Verdict:
    """One balancer beside the best fixed weights."""

    row: Row  # the balancer's row
    delta: Mapping[str, Interval]  # task to the paired difference
    gain: Comparison  # mean relative gain over all tasks, as a fraction, and what is said of it
    survives: bool  # whether it differs after Holm's correction for all verdicts of the table
    # How far it lies beyond the front of fixed weights, as a relative gain in every score; below 0
    # if some weighting is better in all. NaN where that is unknown.
    beyond: float = math.nan

    @property
    def word(self) -> Word:
        """What is said of the gain."""
        return self.gain.word


@dataclass(frozen=True)
class Verdicts:
    """All balancers of one model under one training."""

    model: str  # label of the model
    best: Row  # the fixed weights of the best mean on validation
    weightings: int  # how many of them there are
    # Whether no other of them gives some task a larger share, so that a better one may lie beyond.
    at_end: bool
    verdicts: tuple[Verdict, ...]  # best gain first
    # A sentence if the fixed weights are not clearly better than a useless model, so that nothing
    # can be told.
    useless: str = ""
    tuned: bool = False  # whether they were tuned, as the balancers were
    # The hypervolume of the fixed weights, and of them and all balancers; NaN if unknown.
    volumes: tuple[float, float] = (math.nan, math.nan)

    @property
    def has_front(self) -> bool:
        """Whether the fixed weights are a front to be measured by."""
        return not (self.tuned or self.useless)

    @property
    def outcome(self) -> str:
        """The whole table in one sentence, before which the model is to be named."""
        words = Counter(verdict.word for verdict in self.verdicts)
        words["not told apart"] += words.pop("unknown", 0)
        better = words.pop("better", 0)
        told = [f"{better or 'none'} {are(better or 1)} better"]
        others: tuple[Word, ...] = ("worse", "equivalent", "not told apart")
        told += [f"{words[word]} {are(words[word])} {word}" for word in others if words[word]]
        survivors = sum(
            verdict.survives and verdict.word in ("better", "worse") for verdict in self.verdicts
        )

        winners = [
            verdict.row.group.balancer
            for verdict in self.verdicts
            if verdict.survives and verdict.word == "better"
        ]
        beat = f"; those that beat them: {listed(winners, noun='balancers')}" if winners else ""

        # Verbs follow the numbers.
        outlast = "outlasts" if survivors < 2 else "outlast"
        return (
            f"balancers against {'tuned ' if self.tuned else ''}fixed weights: "
            f"beside {self.best.group.balancer}, the best of {self.weightings} weightings on "
            f"validation, of {len(self.verdicts)} balancers {', '.join(told)}; "
            f"{survivors or 'none'} of the differences {outlast} Holm's correction{beat}."
        )


def judge(frames: Frames, summary: Summary) -> tuple[Verdicts, ...]:
    """The verdicts of a block, for each model that was trained under enough fixed weights and any
    other balancer.
    """
    rows_by_setting: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in summary.finished:
        rows_by_setting[row.group.model, row.group.training].append(row)

    # By model and training; not every one of them has a sweep.
    all_verdicts = []
    for setting in sorted(rows_by_setting):
        verdicts = _judge(frames, summary, rows_by_setting[setting])
        if verdicts is not None:
            all_verdicts.append(verdicts)
    return tuple(all_verdicts)


def find_sweeps(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of fixed weights of each model that was trained under enough of them, in their
    order; tuned weights are no sweep.
    """
    by_setting: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.group.constant_weights and not _weights_are_tuned(row):
            by_setting[row.group.model, row.group.training].append(row)
    return [found for found in by_setting.values() if len(found) >= SWEEP]


def _judge(frames: Frames, summary: Summary, rows: list[Row]) -> Verdicts | None:
    """The verdicts of one model under one training; None without a sweep, or without another
    balancer.
    """
    block = summary.block
    # A method that is a point of a sweep is no balancer to be judged; uniform is both.
    weightings = [row for row in rows if row.group.constant_weights]
    candidates = [row for row in rows if row.group.has_balancer and not row.group.weights_option]

    # Tuned weights were chosen among the trials of their study.
    tuned = [row for row in weightings if _weights_are_tuned(row)]
    if tuned:
        best, study = tuned[0], tuned[0].group.study
        assert study is not None
        verdicts, useless = _compare(summary, candidates, best)
        return Verdicts(best.group.model, best, study.budget, False, verdicts, useless, tuned=True)

    # Fixed weights without a score on validation cannot be the best ones.
    scores = {}
    for row in weightings:
        score = _validation_score(frames, block, row)
        if not math.isnan(score):
            scores[row.group.id] = score
    if len(scores) < SWEEP or all(row in weightings for row in candidates):
        return None

    # The reference is chosen on validation, so that the comparison on test stays fair.
    best_id = max(scores, key=lambda group: scores[group])
    best = next(row for row in weightings if row.group.id == best_id)
    candidates = [row for row in candidates if row is not best]
    swept = [row for row in weightings if row.group.id in scores]
    verdicts, useless = _compare(summary, candidates, best, swept)

    # At an end of the sweep, some task has a share that no other weighting exceeds.
    best_shares = _shares(best, block.trained)  # (T,)
    shares = np.array([_shares(row, block.trained) for row in weightings])  # (weightings, T)
    at_end = bool((best_shares >= shares.max(0)).any())
    volumes = (math.nan, math.nan) if useless else _volumes(block, swept, candidates, best)
    return Verdicts(best.group.model, best, len(scores), at_end, verdicts, useless, volumes=volumes)


def _weights_are_tuned(row: Row) -> bool:
    """Whether a study chose the fixed weights of a row."""
    group = row.group
    option = f"{group.balancer_name}.{group.weights_option}"
    return group.study is not None and option in group.study.space


def _compare(
    summary: Summary, candidates: list[Row], best: Row, swept: Sequence[Row] = ()
) -> tuple[tuple[Verdict, ...], str]:
    """The verdicts of some balancers against the best of the fixed weights that were swept over,
    best gain first; and a sentence if it is hardly better than a useless model, so that no gain is
    known.
    """
    block = summary.block
    means = {task: best.metric[task.name] for task in block.comparable}
    useless = say_if_useless(best.group.label, means, summary.counts)

    # Gains on test, paired seed by seed; Holm's correction looks at all of them together.
    paired = [beside(row, best, summary.noise) for row in candidates]
    comparisons = [
        Comparison()
        if useless
        else one.compare_gains(block.comparable, block.task_of, summary.margin)
        for one in paired
    ]
    survives = holm([gain.p_value for gain in comparisons])

    verdicts = []
    for row, one, gain, survived in zip(candidates, paired, comparisons, survives, strict=True):
        delta = {task.name: one.difference(task.name) for task in block.tasks}
        gains = _gains(block, [row, *swept], best)  # (1 + W, S)
        beyond = distance_beyond(gains[0], gains[1:]) if len(gains) > 1 else math.nan
        verdicts.append(Verdict(row, delta, gain, survived, beyond))
    return tuple(sorted(verdicts, key=_order)), useless


def _gains(block: Block, rows: Sequence[Row], reference: Row) -> np.ndarray:
    """(R, S) relative gains of some rows in every score, by means over the seeds that all of them
    and the reference finished; (0, S) without such a seed.
    """
    scores = block.comparable
    finished = [row.values[score.name].keys() for row in (*rows, reference) for score in scores]
    seeds = set.intersection(*map(set, finished))

    def mean(row: Row, score: TaskInfo) -> float:
        return float(np.mean([row.values[score.name][seed] for seed in seeds]))

    gains = [
        [relative_gain(mean(row, s), mean(reference, s), s.reading) for s in scores]
        for row in (rows if seeds else ())
    ]
    return np.array(gains).reshape(-1, len(scores))


def _volumes(
    block: Block, swept: Sequence[Row], candidates: Sequence[Row], best: Row
) -> tuple[float, float]:
    """The hypervolume of fixed weights, and of them and the balancers, above gains of -100 %; NaN
    where it is unknown, or takes too long.
    """
    points = 1 + _gains(block, [*swept, *candidates], best)
    if not len(points) or points.shape[1] > MOST_SCORES or np.isnan(points).any():
        return math.nan, math.nan
    fixed_weights = points[: len(swept)]
    alone, together = (some[pareto_front(some)] for some in (fixed_weights, points))
    return hypervolume(alone), hypervolume(together)


def _order(verdict: Verdict) -> tuple[bool, float]:
    """Best gain first, and those without one last."""
    gain = verdict.gain.interval
    return (False, -gain.mean) if gain.known else (True, 0.0)


def _shares(row: Row, tasks: int) -> np.ndarray:
    """(T,) fixed weights that sum to 1."""
    options = row.group.resolved["balancer"].get("options", {})
    weights = options.get(row.group.weights_option) or np.ones(tasks)
    shares = np.asarray(weights, dtype=float)
    return shares / shares.sum()


def _validation_score(frames: Frames, block: Block, row: Row) -> float:
    """Mean over tasks and seeds of the primary metrics, higher being better; NaN without any.

    A score that needs hidden labels exists on the test split alone, and does not count.
    """
    metrics = frames.metrics
    in_group = (metrics["group"] == row.group.id) & (metrics["block"] == block.id)
    on_validation = in_group & (metrics["split"] == "validation")
    values = task_values(metrics[on_validation], block.comparable)

    signed_means = {}
    for task in block.comparable:
        seeds = values[task.name]
        if seeds:
            mean = t_interval(list(seeds.values()))
            signed_means[task.name] = signed_mean(task, {task.name: mean})
    return mean_over_tasks(signed_means, block.task_of)


def verdict_table(summary: Summary, verdicts: Verdicts) -> Table:
    """The verdicts of one model as a table."""
    block, best = summary.block, verdicts.best
    deltas = [f"Δ {task.title} {task.reading.label}" for task in block.tasks]
    front = (BEYOND,) if verdicts.has_front else ()
    columns = ("balancer", "verdict", "Δm, %", *deltas, *front, "seeds", "would tell")

    # The reference comes first, then what is compared with it.
    name = TableCell(best.group.balancer)
    seeds = TableCell(str(len(best.group.seeds)))
    compared_cells = [TableCell("ref.")] * (len(columns) - 3)
    rows = [(name, *compared_cells, seeds, TableCell(""))]
    for verdict in verdicts.verdicts:
        rows.append(_cells(block, verdict, verdicts.has_front))

    # Simulated data have a last line.
    ceiling = _headroom(block, best, len(columns))
    notes = (*_notes(verdicts, summary), *block.budget)
    if ceiling:
        notes = (*notes, HEADROOM)

    title = f"{block.label}: balancers of {verdicts.model} against the best fixed weights"
    return Table(title, columns, tuple(rows), notes, ceiling, texts=("verdict", "would tell"))


def _notes(verdicts: Verdicts, summary: Summary) -> tuple[str, ...]:
    """What a reader of the table must know."""
    end = ""
    if verdicts.at_end:
        end = " It lies at an end of the sweep: weights beyond it were not tried."
    return (
        f"Paired differences to {verdicts.best.group.balancer}, of {verdicts.weightings} fixed "
        "weightings the one of the best mean on validation, over common seeds on the test split."
        f"{end}",
        "The verdict follows from Δm, the mean over tasks of the change relative to the "
        f"reference's distance from a useless model. {equivalence_note(summary.margin)}",
        both_noises_note(summary),
        *_front_notes(verdicts),
        "Would tell: the number of seeds at which such a difference would be told apart, if any.",
        f"¶ differs after Holm's correction for the {len(verdicts.verdicts)} comparisons of this "
        "table; of differences without this mark expect one in twenty by chance.",
        "* the interval of the difference excludes 0.",
        *([verdicts.useless] if verdicts.useless else []),
    )


def _front_notes(verdicts: Verdicts) -> Iterator[str]:
    """What is said of the front of fixed weights; nothing where there is none."""
    if not verdicts.has_front:
        return
    yield (
        "Beyond front: the relative gain that a balancer may lose in every score until one of the "
        "fixed weightings is as good in all; below 0, what it would have to gain. Of means over "
        "common seeds, so no test."
    )
    alone, together = verdicts.volumes
    if not math.isnan(alone):
        yield (
            "Hypervolume of the scores' relative gains, where the reference has 1 and a useless "
            f"model 0: {fixed(alone, 4)} of the fixed weights, {fixed(together, 4)} with the "
            f"balancers. It is not computed of more than {MOST_SCORES} scores."
        )


def _headroom(block: Block, best: Row, width: int) -> tuple[TableCell, ...]:
    """How far the planted model of simulated data lies above the reference: what a balancer could
    have gained. Empty where that is unknown.
    """
    gaps = [task.ceiling - best.metric[task.name].mean for task in block.tasks]
    if all(math.isnan(gap) for gap in gaps):
        return ()

    # As in the other rows: the relative gain in percent, then a difference a task.
    gains = {}
    for task in block.comparable:
        gains[task.name] = relative_gain(task.ceiling, best.metric[task.name].mean, task.reading)
    percent = 100 * mean_over_tasks(gains, block.task_of)
    texts = [*PLANTED, fixed(percent, 2, sign=True)]
    for task, gap in zip(block.tasks, gaps, strict=True):
        texts.append(fixed(gap, task.reading.decimals, sign=True))

    # Nothing in the columns that are left.
    texts += [""] * (width - len(texts))
    return tuple(TableCell(text) for text in texts)


def _cells(block: Block, verdict: Verdict, has_front: bool) -> tuple[TableCell, ...]:
    """One balancer's row of the table."""
    group = verdict.row.group
    seeds = len(group.seeds)

    # The verdict, set off where it is better or worse.
    mark = "¶" if verdict.survives else ""
    word = TableCell(verdict.word, verdict.word == "better", mark, verdict.word == "worse")

    # What it rests on.
    differences = [difference(verdict.gain.interval.scaled(100), 2, seeds)]
    for task in block.tasks:
        delta = verdict.delta[task.name]
        differences.append(difference(delta, task.reading.decimals, seeds))
    if has_front:
        differences.append(TableCell(fixed(100 * verdict.beyond, 2, sign=True)))
    # What would settle an open case.
    needed = verdict.gain.seeds_to_tell
    would_tell = ""
    if not math.isnan(needed):
        would_tell = "more test rows" if math.isinf(needed) else f"{needed:.0f} seeds"
    last = TableCell(str(seeds)), TableCell(would_tell)
    return TableCell(group.balancer), word, *differences, *last


def verdict_rows(block: Block, all_verdicts: Iterable[Verdicts]) -> list[dict[str, object]]:
    """The same as plain values: one line a model x balancer x task, and one for all tasks."""
    rows: list[dict[str, object]] = []
    for verdicts in all_verdicts:
        for verdict in verdicts.verdicts:
            common = csv_key(block, verdict.row.group) | {
                "reference": verdicts.best.group.balancer,
                "verdict": verdict.word,
                "after_holm": verdict.survives,
                "beyond_front": csv_number(verdict.beyond),
                "hypervolume_fixed": csv_number(verdicts.volumes[0]),
                "hypervolume_all": csv_number(verdicts.volumes[1]),
            }
            differences = {"delta_m": verdict.gain.interval, **verdict.delta}
            for name, interval in differences.items():
                numbers = {"difference": name, **csv_interval(interval), "seeds": interval.n}
                rows.append(common | numbers)
    return rows
