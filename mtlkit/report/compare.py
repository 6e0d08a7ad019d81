"""Two folders of results, or two rows of one, compared: what they share, and why not the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mtlkit.errors import UsageError, did_you_mean, nearest_names
from mtlkit.report.blocks import TaskInfo, flatten
from mtlkit.report.frame import Frames
from mtlkit.report.gains import Paired, margin_of
from mtlkit.report.references import say_if_useless
from mtlkit.report.row_noise import RowNoise
from mtlkit.report.run_warnings import seed_ranges
from mtlkit.report.statistics import Comparison, holm, t_interval
from mtlkit.report.summary import Row, Summary, summarise
from mtlkit.report.tables import fixed, spread

GAIN = "Δm, %"  # what stands for a score in the line of all tasks together


@dataclass(frozen=True)
class RowDifference:
    """What B makes of a score of A, over the seeds that both have."""

    dataset: str  # the data
    row: str  # what is compared
    score: str  # the score and its metric, or all tasks together
    a: float  # the mean of A; NaN for all tasks together
    b: float  # the mean of B
    found: Comparison  # the difference, above 0 where B is better, and what is said of it
    decimals: int  # digits after the point
    after_holm: bool = False  # whether it outlasts Holm's correction for all differences

    @property
    def cells(self) -> tuple[str, ...]:
        """The score, both means, their difference and the verdict, as text."""
        means = (
            ""
            if math.isnan(self.a)
            else " → ".join(fixed(mean, self.decimals) for mean in (self.a, self.b))
        )
        word, needed = self.found.word + "¶" * self.after_holm, self.found.seeds_to_tell
        if not math.isnan(needed):
            would = "more test rows" if math.isinf(needed) else f"{needed:.0f} seeds"
            word += f", {would} would tell"
        difference = spread(self.found.interval, self.decimals, sign=True)
        return self.score, means, difference, word


@dataclass(frozen=True)
class SharedResults:
    """All differences, and what was not compared."""

    # One a row x score, and one a row for all tasks together.
    differences: tuple[RowDifference, ...]
    left_out: tuple[str, ...]  # what the two do not share, and why; a sentence each
    lost: tuple[str, ...]  # those of them that finished in A and failed in B
    notes: tuple[str, ...]  # in what rows differ that are compared

    @property
    def is_worse(self) -> bool:
        """Whether B is worse in anything after Holm's correction, or failed where A did not."""
        worse = (one.after_holm and one.found.word == "worse" for one in self.differences)
        return bool(self.lost) or any(worse)


@dataclass(frozen=True)
class _Pair:
    """A row of A and one of B, and the summaries that they are of."""

    summaries: tuple[Summary, Summary]
    rows: tuple[Row, Row]

    @property
    def label(self) -> str:
        return " → ".join(dict.fromkeys(row.group.label for row in self.rows))

    @property
    def scores(self) -> list[TaskInfo]:
        """The scores that were measured by the same metric in both."""
        tasks, others = (summary.block.comparable for summary in self.summaries)
        measured = {task.name: task.metric for task in others}
        return [task for task in tasks if measured.get(task.name) == task.metric]


def compare_folders(first: Frames, second: Frames, margin: float) -> SharedResults:
    """The rows of B against those of A: the same settings, or else the same names.

    Args:
        margin: Relative gains up to this one do not matter.
    """
    pairs: list[_Pair] = []
    left_out = []
    for side, frames, other in (("A", first, second), ("B", second, first)):
        shared = {block.id for block in other.blocks}
        for block in frames.blocks:
            if block.id not in shared:
                namesake = any(one.name == block.name for one in other.blocks)
                why = "; the other has other contents, tasks or options of it" if namesake else ""
                left_out.append(f"{block.label}: only in {side}{why}.")

    others = {block.id: block for block in second.blocks}
    for block in first.blocks:
        if block.id in others:
            both = summarise(first, block, margin), summarise(second, others[block.id], margin)
            left_out += _pair_rows(both, pairs)
    return _compare(pairs, left_out, margin)


def _pair_rows(both: tuple[Summary, Summary], pairs: list[_Pair]) -> list[str]:
    """Add the pairs of a data set: rows of the same settings, then what is left by name. Returns
    what stays alone, a sentence each.
    """
    alone = [list(summary.all_rows) for summary in both]
    for attribute in ("id", "label"):
        by_name = {getattr(row.group, attribute): row for row in alone[1]}
        for row in list(alone[0]):
            other = by_name.get(getattr(row.group, attribute))
            if other is not None:
                pairs.append(_Pair(both, (row, other)))
                alone[0].remove(row)
                alone[1].remove(other)
    return [
        f"{both[0].block.label}, {row.group.label}: only in {side}."
        for side, rows in zip("AB", alone, strict=True)
        for row in rows
    ]


def compare_rows(frames: Frames, names: tuple[str, str], margin: float) -> SharedResults:
    """A row against another one, on every data set that has both.

    Raises:
        UsageError: No data set has one of them.
    """
    pairs, left_out = [], []
    labels: dict[str, str] = {}
    for block in frames.blocks:
        summary = summarise(frames, block, margin)
        rows = {row.group.label.replace(" ", ""): row for row in summary.all_rows}
        labels |= {name: row.group.label for name, row in rows.items()}
        found = [rows.get(name.replace(" ", "")) for name in names]
        if found[0] is None or found[1] is None:
            left_out.append(f"{block.label}: it does not have both rows.")
        else:
            pairs.append(_Pair((summary, summary), (found[0], found[1])))
    for name in names:
        if name.replace(" ", "") not in labels:
            meant = did_you_mean(nearest_names(name, labels.values()))
            hint = f"the rows are {', '.join(sorted(labels.values()))}"
            raise UsageError(f"There is no row {name!r}.{meant}", hint)
    return _compare(pairs, left_out, margin)


def _compare(pairs: list[_Pair], left_out: list[str], margin: float) -> SharedResults:
    """The differences of all pairs that share a seed, with one correction for all of them."""
    differences: list[RowDifference] = []
    lost, notes = [], []
    for pair in pairs:
        one, other = (row.group for row in pair.rows)
        where = f"{pair.summaries[0].block.label}, {pair.label}"

        # A seed that one of the two lacks failed there, or was not run.
        gone = set(one.seeds) & set(other.failed)
        unshared = set(one.seeds) ^ set(other.seeds)
        if gone:
            lost.append(f"{where}: seeds {seed_ranges(sorted(gone))} finished in A, failed in B.")
        if unshared - gone:
            only = seed_ranges(sorted(unshared - gone))
            left_out.append(f"{where}: seeds {only} finished in one of the two.")
        if not set(one.seeds) & set(other.seeds):
            continue

        if len(pair.scores) < len(pair.summaries[0].block.comparable):
            left_out.append(f"{where}: not all scores were measured by the same metric in both.")
        settings = [dict(flatten(group.resolved)) for group in (one, other)]
        keys = sorted({*settings[0], *settings[1]})
        differing = [key for key in keys if settings[0].get(key) != settings[1].get(key)]
        if differing and one.label == other.label:
            notes.append(f"{where}: settings differ in {', '.join(differing)}.")
        differences += _differences(pair, margin)

    survives = holm([one.found.p_value for one in differences])
    corrected = [
        replace(one, after_holm=survived)
        for one, survived in zip(differences, survives, strict=True)
    ]
    return SharedResults(tuple(corrected), (*left_out, *lost), tuple(lost), tuple(notes))


def _differences(pair: _Pair, margin: float) -> Iterator[RowDifference]:
    """One a score, and one for all tasks together unless A is hardly better than useless."""
    block = pair.summaries[0].block
    before, after = (row.values for row in pair.rows)

    # Rows of the two may have one id; what the test rows add is known of either.
    a, b = (f"{side} {row.group.id}" for side, row in zip("AB", pair.rows, strict=True))
    influence = {
        (name, score): summary.noise.influence[row.group.id, score]
        for name, summary, row in zip((a, b), pair.summaries, pair.rows, strict=True)
        for score in block.task_of
        if (row.group.id, score) in summary.noise.influence
    }
    noise = RowNoise(influence, pair.summaries[0].noise.clusters)
    paired = Paired(b, after, dict.fromkeys(block.task_of, a), before, noise)

    for task in pair.scores:
        seeds = before[task.name].keys() & after[task.name].keys()
        means = [t_interval([of[task.name][s] for s in seeds]).mean for of in (before, after)]
        within = margin_of(task, means[0], margin)
        found = paired.compare(task, within)
        score, decimals = f"{task.title} {task.reading.label}", task.reading.decimals
        yield RowDifference(block.label, pair.label, score, means[0], means[1], found, decimals)

    reference = {task: pair.rows[0].metric[task.name] for task in block.comparable}
    is_useless = say_if_useless(pair.label, reference, pair.summaries[0].counts)
    if len(pair.scores) == len(block.comparable) and not is_useless:
        gain = paired.compare_gains(block.comparable, block.task_of, margin)
        in_percent = replace(gain, interval=gain.interval.scaled(100))
        yield RowDifference(block.label, pair.label, GAIN, math.nan, math.nan, in_percent, 2)


def as_plain(one: RowDifference) -> dict[str, object]:
    """A difference as plain values; None where a number is unknown."""
    interval = one.found.interval
    plain = {
        "dataset": one.dataset,
        "row": one.row,
        "score": one.score,
        "a": one.a,
        "b": one.b,
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "seeds": interval.n,
        "verdict": one.found.word,
        "after_holm": one.after_holm,
    }
    is_nan = {name: isinstance(value, float) and math.isnan(value) for name, value in plain.items()}
    return {name: None if is_nan[name] else value for name, value in plain.items()}
