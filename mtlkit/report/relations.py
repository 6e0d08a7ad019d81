"""What tasks have to do with each other: evidence for each pair, a verdict, groups of tasks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import special
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from mtlkit.record_check import UnreadableError
from mtlkit.report.blocks import Block, RunGroup, TaskInfo
from mtlkit.report.experts import levels_of, overlap, shares
from mtlkit.report.frame import Frames
from mtlkit.report.probe_frames import Probes, load_probes, mean_over
from mtlkit.report.statistics import TINY, Interval, is_useful, t_interval
from mtlkit.report.stored_scores import read_scores
from mtlkit.report.summary import SPLIT, Summary, task_values
from mtlkit.report.tables import NA, Table, TableCell, csv_block, csv_number, fixed, spread
from mtlkit.settings import training_of_tasks
from mtlkit.store import Unreadable

MOST_TASKS = 40
"""With more, there are too many pairs for a table."""
MOST_ROWS = 100_000
"""Test rows, evenly spread, of which predictions are ranked."""
MOST_RUNS = 10
"""Runs whose predictions are read."""
SHOWN = 20
"""Pairs in the table of the page; the CSV file has all."""
WEAK = 0.1
"""A correlation or cosine that is as good as none."""
MANY = 10
"""From this number of compared pairs on, the reader is warned of chance."""
LEAST_GAIN = 0.01
"""Of the distance from a useless model: what is smaller, or within the margin of the report, is no
gain, however sure. It is larger than the usual margin, as intervals leave test rows out here."""
BY_CHANCE = 1e-3
"""How likely a nested pair of labels may be among independent ones."""
NOTES = (
    "gain: what a task's metric gains when it is trained with the other task alone, over "
    "single-task, in percent of its distance from a useless model, with the 95 % t-interval over "
    "common seeds. Of many pairs some exceed their interval by chance.",
    "labels: Pearson's correlation (phi of two binary tasks), Spearman's of two regressions, on "
    "test rows that have both labels. predictions: Spearman's, of single-task, or else of the best "
    "row. gradients: cosine with respect to all shared parameters, over all evaluation points of "
    "all multi-task runs. gates: what the mean gate weights of two tasks have in common, from 0 "
    "to 1.",
)
Pair = tuple[str, str]


@dataclass(frozen=True)
class Relations:
    """What is known of the tasks of a block."""

    # A row a pair: task, other, verdict (complementary, conflicting, hierarchical, independent, not
    # known) and evidence, a sentence; then mean, ``_low`` and ``_high`` of labels, predictions,
    # gradients, gates, gain (of the task from the other), gain_of_other and affinity (the mean of
    # both gains; fractions), NaN where unknown, and gradients_by_part. Empty if nothing is known.
    pairs: pd.DataFrame = field(default_factory=pd.DataFrame)
    # Suggested groups of tasks; empty where affinities are not known.
    groups: tuple[tuple[str, ...], ...] = ()
    unreadable: tuple[Unreadable, ...] = ()  # files of scores that could not be read

    @property
    def sentences(self) -> list[str]:
        """The verdicts and the groups, a sentence each."""
        if self.pairs.empty:
            return []
        words = Counter(self.pairs["verdict"])
        counts = ", ".join(f"{count} {word}" for word, count in words.items())
        sentences = [f"Task relations: of {len(self.pairs)} pairs of tasks, {counts}."]
        if len(self.pairs) == 1:
            task, other, word = self.pairs.loc[0, ["task", "other", "verdict"]]
            sentences = [f"Task relations: {task} and {other}: {word}."]
        bounded = int((self.pairs["seeds"] > 1).sum())
        if bounded >= MANY:
            by_chance = max(1, round(0.05 * bounded))
            sentences[0] += (
                f" By chance alone, up to about {by_chance} would be called complementary or "
                "conflicting."
            )
        if self.groups:
            listed = "; ".join(" + ".join(group) for group in self.groups)
            sentences.append(
                f"Suggested groups of tasks: {listed}. Tasks are joined while the mean gain "
                "between groups is above 0; a gain within its interval counts as 0."
            )
        return sentences


def find_relations(
    frames: Frames, summary: Summary, probes: Mapping[str, Probes] | None = None
) -> Relations:
    """The relations of a block's tasks; empty with one task, very many, or without evidence."""
    block = summary.block
    tasks = block.task_names
    if not (1 < len(tasks) <= MOST_TASKS and summary.finished):
        return Relations()
    if probes is None:
        probes = load_probes(frames, block).by_group

    unreadable: list[Unreadable] = []
    stored = _stored_scores(frames, summary, unreadable)
    gains = _gains(frames, summary)
    inside = _Inside.of(summary, probes)
    kinds = {task.name: task.kind for task in block.tasks}
    pairs = [
        _Pair(
            tasks=pair,
            labels=_Labels.of(stored, pair, kinds),
            predictions=t_interval([_rank_correlation(scores, pair) for scores in stored]),
            cosines=inside.cosines(pair),
            gates=inside.gates(pair),
            gains=gains.get(pair, ({}, {})),
            least_gain=max(LEAST_GAIN, summary.margin),
        )
        for pair in combinations(tasks, 2)
    ]
    if not any(pair.is_known for pair in pairs):
        return Relations(unreadable=tuple(unreadable))
    frame = pd.DataFrame([pair.row() for pair in pairs])
    return Relations(frame, suggested_groups(frame), tuple(unreadable))


# --- one pair and its verdict ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Labels:
    """How the labels of two tasks go together."""

    # With the ends of its interval; NaN if unknown.
    correlation: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    nested: str = ""  # a sentence if the positives of one are among those of the other

    @classmethod
    def of(
        cls, stored: list[dict[str, np.ndarray]], pair: Pair, kinds: Mapping[str, str]
    ) -> _Labels:
        """From the scores of a run; all runs have the same labels."""
        scores = next((run for run in stored if all(f"label/{task}" in run for task in pair)), None)
        if scores is None or any(kinds.get(task) == "multiclass" for task in pair):
            return cls()
        both = np.ones(len(scores[f"label/{pair[0]}"]), bool)
        for task in pair:
            both &= scores.get(f"observed/{task}", both)
        one, other = (scores[f"label/{task}"][both].astype(np.float64) for task in pair)
        if len(one) < 4 or one.min() == one.max() or other.min() == other.max():
            return cls()

        regressions = all(kinds.get(task) == "regression" for task in pair)
        if regressions:
            one, other = _ranks(one), _ranks(other)
        # The interval is Fisher's; scipy.stats has it too, but takes a second to import.
        r = float(np.clip(np.corrcoef(one, other)[0, 1], -1, 1))
        half = special.ndtri(0.975) / math.sqrt(len(one) - 3)
        with np.errstate(divide="ignore"):
            low, high = np.tanh(np.arctanh(r) + np.array([-half, half]))
        nested = ""
        if all(kinds.get(task) == "binary" for task in pair):
            nested = _nested(one > 0, other > 0, pair) or _nested(other > 0, one > 0, pair[::-1])
        return cls((r, float(low), float(high)), nested)


def _nested(outer: np.ndarray, inner: np.ndarray, names: Pair) -> str:
    """A sentence if no row is positive inside and negative outside, and that is no accident."""
    positives = int(inner.sum())
    by_chance = outer.mean() ** positives  # were they independent
    if not positives or (inner & ~outer).any() or by_chance > BY_CHANCE or positives == outer.sum():
        return ""
    return (
        f"all {positives:,} test rows with {names[1]} are among the {int(outer.sum()):,} with "
        f"{names[0]}"
    )


@dataclass(frozen=True)
class _Pair:
    """The evidence on two tasks; of the gains, seed to the relative gain of each, and what is so
    small that it is none.
    """

    tasks: Pair
    labels: _Labels
    predictions: Interval
    cosines: dict[str, Interval]
    gates: Interval
    gains: tuple[Mapping[int, float], Mapping[int, float]]
    least_gain: float
    affinity: Interval = field(init=False)

    def __post_init__(self) -> None:
        one, other = self.gains
        # a task that is not reported has no gain, and the other's is all there is
        if one and other:
            means = [(one[seed] + other[seed]) / 2 for seed in sorted(one.keys() & other.keys())]
        else:
            means = [*one.values(), *other.values()]
        object.__setattr__(self, "affinity", t_interval(means))

    @property
    def gradients(self) -> Interval:
        """The cosine with respect to all shared parameters, which stand first."""
        return next(iter(self.cosines.values()), Interval())

    @property
    def is_known(self) -> bool:
        """Whether there is any evidence."""
        known = self.predictions.known or self.gradients.known or self.affinity.known
        return known or not math.isnan(self.labels.correlation[0])

    def verdict(self) -> tuple[str, str]:
        """A word and its evidence in a sentence."""
        one, other = self.tasks
        first, second = (t_interval(list(gains.values())) for gains in self.gains)
        if self.labels.nested:
            return "hierarchical", f"{self.labels.nested}{self._gained(first, second)}"

        affinity = self.affinity
        if self._is_clear(affinity):
            word = "complementary" if affinity.mean > 0 else "conflicting"
            return word, self._gained(first, second).removeprefix("; ")

        correlation, low, high = self.labels.correlation
        labels = f"the labels correlate by {fixed(correlation, 2)}"
        unrelated = low > -WEAK and high < WEAK
        gained = zip(self.tasks, (first, second), strict=True)
        moved = [task for task, gain in gained if self._is_clear(gain)]
        pulls = self.gradients.known and abs(self.gradients.mean) >= WEAK
        open_gain = affinity.known and not (affinity.bounded and affinity.half <= WEAK)
        if unrelated and not (moved or pulls or open_gain):
            ends = f"{fixed(low, 2)} to {fixed(high, 2)}"
            return "independent", f"{labels} ({ends}){self._gained(first, second)}"
        if not affinity.known:
            unknown = "no gain over a single-task that is clearly better than useless is known"
            trained = f"mtlkit bench --relations trains {one} and {other} alone"
            return "not known", f"{unknown}: {trained}"
        if moved:
            changed = f"{' and '.join(moved)} {'changes' if len(moved) == 1 else 'change'}"
            gains = self._gained(first, second)
            return "not known", f"{changed} clearly, the mean of both tasks does not{gains}"
        if not affinity.bounded:
            return "not known", f"one common seed gives no interval{self._gained(first, second)}"
        return "not known", f"the seeds cannot tell{self._gained(first, second)}"

    def _is_clear(self, gain: Interval) -> bool:
        """Whether a gain is clear of 0, and large enough."""
        return gain.excludes_zero and abs(gain.mean) >= self.least_gain

    def _gained(self, first: Interval, second: Interval) -> str:
        """What training together gives, as the end of a sentence; empty where it is not known."""
        gains = [
            f"{task} {spread(gain.scaled(100), 1, sign=True)} %"
            for task, gain in zip(self.tasks, (first, second), strict=True)
            if gain.known
        ]
        if not gains:
            return ""
        listed = " and ".join(gains)
        mean = spread(self.affinity.scaled(100), 1, sign=True)
        return f"; trained together, {listed} over single-task (mean {mean} %)"

    def row(self) -> dict[str, Any]:
        """As it stands in the pairs of :class:`Relations`."""
        word, sentence = self.verdict()
        intervals = {
            "predictions": self.predictions,
            "gradients": self.gradients,
            "gates": self.gates,
            "gain": t_interval(list(self.gains[0].values())),
            "gain_of_other": t_interval(list(self.gains[1].values())),
            "affinity": self.affinity,
        }
        fields: dict[str, Any] = dict(zip(("task", "other"), self.tasks, strict=True))
        fields |= {"verdict": word, "evidence": f"{sentence[:1].upper()}{sentence[1:]}."}
        ends = ("", "_low", "_high")
        fields |= {f"labels{end}": x for end, x in zip(ends, self.labels.correlation, strict=True)}
        for name, interval in intervals.items():
            numbers = (interval.mean, interval.low, interval.high)
            fields |= {f"{name}{end}": x for end, x in zip(ends, numbers, strict=True)}
        by_part = [f"{part} {fixed(c.mean, 2, sign=True)}" for part, c in self.cosines.items()]
        return fields | {"seeds": self.affinity.n, "gradients_by_part": ", ".join(by_part[1:])}


# --- the evidence ---------------------------------------------------------------------------------


def _stored_scores(
    frames: Frames, summary: Summary, unreadable: list[Unreadable]
) -> list[dict[str, np.ndarray]]:
    """The test scores of some runs of single-task, or else of the best row."""
    rows = sorted(summary.finished, key=lambda row: not row.group.is_reference)
    runs = frames.runs[(frames.runs["block"] == summary.block.id) & (frames.runs["status"] == "ok")]
    for row in rows:
        folders = runs[runs["group"] == row.group.id].sort_values("seed")["folder"]
        stored = []
        for folder in folders[:MOST_RUNS]:
            try:
                scores = read_scores(folder)
            except UnreadableError as error:
                unreadable.append(Unreadable(folder / "scores.npz", str(error)))
                continue
            if scores:
                stored.append(scores)
        if stored:
            return stored
    return []


def _ranks(values: np.ndarray) -> np.ndarray:
    """(N,) ranks, ties in their middle."""
    return np.asarray(pd.Series(values).rank())


def _rank_correlation(scores: dict[str, np.ndarray], pair: Pair) -> float:
    """Spearman's correlation of the predictions of two tasks; NaN where there is none."""
    predicted = [scores.get(f"score/{task}") for task in pair]
    if any(column is None or column.ndim != 1 for column in predicted):
        return math.nan
    step = -(-len(scores[f"score/{pair[0]}"]) // MOST_ROWS) or 1
    ranks = [_ranks(column[::step]) for column in predicted if column is not None]
    if any(len(column) < 2 or column.std() < TINY for column in ranks):
        return math.nan
    return float(np.corrcoef(ranks)[0, 1])


@dataclass(frozen=True)
class _Inside:
    """The probes of all multi-task rows, and their levels of experts."""

    probes: tuple[Probes, ...]
    levels: tuple[Any, ...]

    @classmethod
    def of(cls, summary: Summary, probes: Mapping[str, Probes]) -> _Inside:
        rows = [row for row in summary.rows if not row.group.is_reference]
        found = tuple(probes[row.group.id] for row in rows if row.group.id in probes)
        return cls(found, tuple(level for each in found for level in levels_of(each)))

    def cosines(self, pair: Pair) -> dict[str, Interval]:
        """Part of the model to the cosine of two tasks' gradients, all that is shared first."""
        by_part: dict[str, list[float]] = {}
        for probes in self.probes:
            if not set(pair) <= set(probes.tasks):
                continue
            one, other = (probes.tasks.index(task) for task in pair)
            for index, part in enumerate(probes.modules):
                over_points = mean_over(probes.cosine[:, :, index, one, other], axis=1)  # (S,)
                by_part.setdefault(part, []).extend(over_points.tolist())
        return {part: found for part, c in by_part.items() if (found := t_interval(c)).known}

    def gates(self, pair: Pair) -> Interval:
        """How far the gates of two tasks agree, over runs and levels."""
        values: list[float] = []
        for level in self.levels:
            if set(pair) <= set(level.gates):
                lines = [level.gates.index(task) for task in pair]
                values += overlap(shares(level.weights[:, lines])).tolist()
        return t_interval(values)


def _gains(
    frames: Frames, summary: Summary
) -> dict[Pair, tuple[Mapping[int, float], Mapping[int, float]]]:
    """Pair to what each of its tasks gains by seed, where the two were trained alone."""
    block = summary.block
    infos = {task.name: task for task in block.tasks}
    gains: dict[Pair, tuple[Mapping[int, float], Mapping[int, float]]] = {}
    for paired in (*frames.pairs, *frames.blocks):
        if paired.data != block.data or len(paired.task_names) != 2:
            continue
        pair = tuple(task for task in block.task_names if task in paired.task_names)
        match = _trained_alike(summary, paired) if len(pair) == 2 else None
        if match is None:
            continue
        group, reference = match
        metrics = frames.metrics
        in_group = (metrics["block"] == paired.id) & (metrics["group"] == group.id)
        single = summary.row(reference.id)
        # what is relative to a useless model says nothing
        known = tuple(
            infos[task]
            for task in pair
            if task in infos
            and is_useful(single.metric[task], infos[task].reading, *summary.counts[task])
        )
        values = task_values(metrics[in_group & (metrics["split"] == SPLIT)], known)
        one, other = (
            _relative_gains(infos[task], values[task], single.values[task])
            if task in values
            else {}
            for task in pair
        )
        gains[pair[0], pair[1]] = (one, other)
    return gains


def _trained_alike(summary: Summary, paired: Block) -> tuple[RunGroup, RunGroup] | None:
    """A multi-task group of a pair, and the reference of the same training; None without both."""
    groups = [group for group in paired.methods if group.seeds and not group.is_reference]
    groups.sort(key=lambda group: (group.balancer_name != "uniform", group.model))
    for group in groups:
        training = training_of_tasks(group.resolved.get("training") or {}, paired.task_names)
        for row in summary.finished:
            single = training_of_tasks(row.group.resolved.get("training") or {}, paired.task_names)
            if row.group.is_reference and single == training:
                return group, row.group
    return None


def _relative_gains(
    task: TaskInfo, values: Mapping[int, float], single: Mapping[int, float]
) -> dict[int, float]:
    """Seed to the gain over single-task, by that model's mean distance from a useless one."""
    seeds = sorted(values.keys() & single.keys())
    metric = task.reading
    distance = abs(np.mean([single[seed] for seed in seeds]) - metric.floor) if seeds else 0.0
    if distance < TINY:
        return {}
    return {
        seed: (metric.goodness(values[seed]) - metric.goodness(single[seed])) / float(distance)
        for seed in seeds
    }


# --- groups of tasks ------------------------------------------------------------------------------


def suggested_groups(pairs: pd.DataFrame) -> tuple[tuple[str, ...], ...]:
    """Groups of tasks that gain from each other, by average linkage of their affinities.

    A pair whose interval holds 0 counts as 0, and one without an interval is not known. Groups are
    joined while the mean affinity between them is above 0. Tasks of which a pair is not known are
    left out.

    Returns:
        Groups of names; none for fewer than three tasks.
    """
    clear = (pairs["affinity_low"] > 0) | (pairs["affinity_high"] < 0)
    is_known = pairs["affinity_low"].notna()
    values = pairs["affinity"].where(clear, 0.0).where(is_known)
    names = list(dict.fromkeys([*pairs["task"], *pairs["other"]]))
    matrix = pd.DataFrame(0.0, index=names, columns=names)
    for one, other, value in zip(pairs["task"], pairs["other"], values, strict=True):
        matrix.loc[one, other] = matrix.loc[other, one] = value

    # the task with the most unknown pairs goes first
    while matrix.isna().to_numpy().any():
        worst = matrix.isna().sum().idxmax()
        matrix = matrix.drop(index=worst, columns=worst)
    if len(matrix) < 3:
        return ()
    top = max(float(matrix.to_numpy().max()), 0.0)
    distances = squareform(top - matrix.to_numpy(), checks=False)
    joined = fcluster(linkage(distances, "average"), top - TINY, "distance")
    groups: dict[int, list[str]] = {}
    for name, number in zip(matrix.index, joined, strict=True):
        groups.setdefault(int(number), []).append(str(name))
    return tuple(tuple(group) for group in groups.values())


# --- the table ------------------------------------------------------------------------------------


def relation_table(block: Block, relations: Relations) -> Table:
    """The pairs of which most is known, those with the largest affinity first."""
    pairs = relations.pairs
    strength = pairs["affinity"].abs().fillna(-1.0)
    order = sorted(pairs.index, key=lambda i: (pairs["verdict"][i] == "not known", -strength[i]))
    rows = []
    for fields in pairs.loc[order[:SHOWN]].to_dict("records"):
        cells = [fields["task"], fields["other"], fields["verdict"]]
        for name in ("labels", "predictions", "gradients", "gates"):
            cells.append(fixed(fields[name], 2))
        for name in ("gain", "gain_of_other"):
            gain = Interval(fields[name], fields[f"{name}_high"] - fields[name])
            cells.append(spread(gain.scaled(100), 1, sign=True))
        rows.append(tuple(TableCell(text) for text in (*cells, fields["evidence"])))

    columns = (
        *("task", "other", "verdict", "labels", "predictions", "gradients", "gates"),
        *("gain of task, %", "gain of other, %", "evidence"),
    )
    kept = [
        index for index in range(len(columns)) if any(cells[index].text != NA for cells in rows)
    ]
    more: tuple[str, ...] = ()
    if len(pairs) > SHOWN:
        more = (f"{SHOWN} of {len(pairs)} pairs; the CSV file has all of them.",)
    return Table(
        f"{block.label}: what tasks have to do with each other",
        tuple(columns[index] for index in kept),
        tuple(tuple(cells[index] for index in kept) for cells in rows),
        (*more, *NOTES, *block.budget),
        texts=("verdict", "evidence"),
        aside=("evidence",),
    )


def relation_rows(block: Block, relations: Relations) -> list[dict[str, object]]:
    """All pairs as plain values, empty where unknown."""
    rows = []
    for fields in relations.pairs.to_dict("records"):
        texts = {
            str(name): csv_number(value) if isinstance(value, float) else value
            for name, value in fields.items()
        }
        rows.append(csv_block(block) | texts)
    return rows
