"""Every balancer against the best fixed weights: the paired verdict of a scalarization sweep."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mtlkit.report.blocks import Block
from mtlkit.report.frame import Frames
from mtlkit.report.statistics import (
    Interval,
    delta_m,
    holm,
    paired_delta,
    relative_gain,
    t_interval,
    t_test,
)
from mtlkit.report.summary import Row, Summary, task_values
from mtlkit.report.tables import PLANTED, Table, TableCell, difference, fixed, yes

FIXED = ("uniform", "static")
HEADROOM = (
    "Planted model: how far the rule by which the simulator drew the labels lies above the reference; no balancer "
    "passes it but by luck."
)
LEAST = 3
"""So many fixed weightings make a sweep."""

Word = Literal["better", "worse", "same", "unknown"]


@dataclass(frozen=True)
class Verdict:
    """One balancer beside the best fixed weights.

    Args:
        row: The balancer's row.
        delta: Task to the paired difference.
        gain: Mean relative gain over all tasks, as a fraction.
        word: What the interval of the gain says; unknown without one.
        survives: Whether it says so after Holm's correction for all verdicts of the table.
    """

    row: Row
    delta: Mapping[str, Interval]
    gain: Interval
    word: Word
    survives: bool


@dataclass(frozen=True)
class Verdicts:
    """All balancers of one model under one training.

    Args:
        model: Label of the model.
        best: The fixed weights of the best mean on validation.
        weightings: How many of them there are.
        at_end: Whether no other of them gives some task a larger share, so that a better one may
            lie beyond.
        verdicts: Best gain first.
    """

    model: str
    best: Row
    weightings: int
    at_end: bool
    verdicts: tuple[Verdict, ...]

    @property
    def sentence(self) -> str:
        """The whole table in one sentence."""
        count = Counter(verdict.word for verdict in self.verdicts)
        better, worse = count["better"], count["worse"]
        firm = sum(verdict.survives for verdict in self.verdicts)
        return (
            f"{self.model}, balancers against fixed weights: beside {self.best.group.balancer}, the best of "
            f"{self.weightings} weightings on validation, {better} of {len(self.verdicts)} balancers "
            f"{'is' if better == 1 else 'are'} better by more than their interval, {worse} "
            f"{'is' if worse == 1 else 'are'} worse, and the seeds cannot tell for "
            f"{count['same'] + count['unknown']}; {firm} of these verdicts outlast{'s' if firm == 1 else ''} Holm's "
            "correction."
        )


def judge(frames: Frames, summary: Summary) -> tuple[Verdicts, ...]:
    """The verdicts of a block, for each model that was trained under enough fixed weights and any
    other balancer.
    """
    settings: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in summary.finished:
        settings[row.group.model, row.group.training].append(row)
    return tuple(
        filter(None, (_judge(frames, summary.block, rows) for _, rows in sorted(settings.items())))
    )


def _judge(frames: Frames, block: Block, rows: list[Row]) -> Verdicts | None:
    weighted = [row for row in rows if row.group.balancer_name in FIXED]
    others = [row for row in rows if row.group.balancer_name not in ("static", "none")]
    scores = {row.group.id: _validation_score(frames, block, row) for row in weighted}
    scores = {key: score for key, score in scores.items() if not math.isnan(score)}
    if len(scores) < LEAST or all(row in weighted for row in others):
        return None
    best = next(row for row in weighted if row.group.id == max(scores, key=lambda key: scores[key]))
    others = [row for row in others if row is not best]
    metrics = {task.name: task.reading for task in block.tasks}
    gains = [list(delta_m(row.values, best.values, metrics).values()) for row in others]
    survives = holm([t_test(values) for values in gains])
    found = [
        Verdict(
            row=row,
            delta={task: paired_delta(row.values[task], best.values[task]) for task in metrics},
            gain=t_interval(values),
            word=_word(t_interval(values)),
            survives=kept,
        )
        for row, values, kept in zip(others, gains, survives, strict=True)
    ]
    found.sort(
        key=lambda verdict: (
            not verdict.gain.known,
            -verdict.gain.mean if verdict.gain.known else 0.0,
        )
    )
    shares = np.array([_shares(row, block.trained) for row in weighted])
    at_end = bool((_shares(best, block.trained) >= shares.max(0)).any())
    return Verdicts(best.group.model, best, len(scores), at_end, tuple(found))


def _shares(row: Row, tasks: int) -> np.ndarray:
    """(T,) fixed weights that sum to 1."""
    w = np.asarray(
        row.group.resolved["balancer"].get("options", {}).get("w") or np.ones(tasks), dtype=float
    )
    return w / w.sum()


def _validation_score(frames: Frames, block: Block, row: Row) -> float:
    """Mean over tasks and seeds of the primary metrics, higher being better.

    A score that needs hidden labels exists on the test split alone, and has no part in it.
    """
    own = frames.metrics[
        (frames.metrics["group"] == row.group.id) & (frames.metrics["split"] == "validation")
    ]
    values = task_values(own[own["block"] == block.id], block.tasks)
    known = [task for task in block.tasks if values[task.name]]
    means = [t_interval(list(values[task.name].values())).mean for task in known]
    signs = [1 if task.reading.higher_is_better else -1 for task in known]
    return float(np.mean(np.multiply(signs, means))) if known else math.nan


def _word(gain: Interval) -> Word:
    if not gain.bounded:
        return "unknown"
    if not gain.excludes_zero:
        return "same"
    return "better" if gain.mean > 0 else "worse"


def verdict_table(summary: Summary, verdicts: Verdicts) -> Table:
    """The verdicts of one model as a table."""
    tasks = summary.block.tasks
    best = verdicts.best
    columns = (
        "balancer",
        "verdict",
        "Δm, %",
        *(f"Δ {task.title} {task.reading.label}" for task in tasks),
        "seeds",
    )
    rows = [
        (
            TableCell(best.group.balancer),
            *[TableCell("ref.")] * (len(tasks) + 2),
            TableCell(str(len(best.group.seeds))),
        )
    ]
    rows += [_cells(summary.block, verdict) for verdict in verdicts.verdicts]
    end = (
        " It lies at an end of the sweep: weights beyond it were not tried."
        if verdicts.at_end
        else ""
    )
    notes = (
        f"Paired differences to {best.group.balancer}, of {verdicts.weightings} fixed weightings the one of the best "
        f"mean on validation, over common seeds on the test split.{end}",
        "The verdict follows from Δm, the mean over tasks of the change relative to the reference's distance from a "
        "useless model: same means that the 95 % Student t-interval holds 0.",
        f"¶ outlasts Holm's correction for the {len(verdicts.verdicts)} comparisons of this table; of verdicts without "
        "this mark expect one in twenty by chance.",
        "* the interval of the difference excludes 0.",
    )
    title = (
        f"{summary.block.label}: {verdicts.model}, every balancer against the best fixed weights"
    )
    ceiling = _headroom(summary.block, best, len(columns))
    return Table(title, columns, tuple(rows), (*notes, HEADROOM) if ceiling else notes, ceiling)


def _headroom(block: Block, best: Row, width: int) -> tuple[TableCell, ...]:
    """How far the planted model of simulated data lies above the reference: what a balancer could
    have gained.
    """
    means = {task.name: best.metric[task.name].mean for task in block.tasks}
    gaps = [task.ceiling - means[task.name] for task in block.tasks]
    if all(map(math.isnan, gaps)):
        return ()
    gain = float(
        np.mean(
            [relative_gain(task.ceiling, means[task.name], task.reading) for task in block.tasks]
        )
    )
    differences = [
        fixed(gap, task.reading.decimals, sign=True)
        for gap, task in zip(gaps, block.tasks, strict=True)
    ]
    texts = [*PLANTED, fixed(100 * gain, 2, sign=True), *differences]
    return tuple(TableCell(text) for text in texts + [""] * (width - len(texts)))


def _cells(block: Block, verdict: Verdict) -> tuple[TableCell, ...]:
    seeds = len(verdict.row.group.seeds)
    gain = Interval(100 * verdict.gain.mean, 100 * verdict.gain.half, verdict.gain.n)
    return (
        TableCell(verdict.row.group.balancer),
        TableCell(
            verdict.word,
            verdict.word == "better",
            "¶" if verdict.survives else "",
            verdict.word == "worse",
        ),
        difference(gain, 2, seeds),
        *(
            difference(verdict.delta[task.name], task.reading.decimals, seeds)
            for task in block.tasks
        ),
        TableCell(str(seeds)),
    )


def verdict_rows(block: Block, all_verdicts: Iterable[Verdicts]) -> list[dict[str, object]]:
    """The same as plain values: one line a model x balancer x task, and one for all tasks together."""
    out: list[dict[str, object]] = []
    for verdicts in all_verdicts:
        for verdict in verdicts.verdicts:
            common = {
                "dataset": block.name,
                "protocol": block.protocol or "",
                "simulated": yes(block.simulated),
                "model": verdicts.model,
                "balancer": verdict.row.group.balancer,
                "reference": verdicts.best.group.balancer,
                "verdict": verdict.word,
                "after_holm": verdict.survives,
            }
            for task, delta in {"delta_m": verdict.gain, **verdict.delta}.items():
                numbers = {"mean": delta.mean, "low": delta.low, "high": delta.high}
                known = {
                    key: "" if math.isnan(value) else f"{value:.8g}"
                    for key, value in numbers.items()
                }
                out.append(common | {"difference": task, **known, "seeds": delta.n})
    return out
