"""The answer of a block: which row to use, in a few sentences with their numbers and their row.

The row is chosen on validation, so that what is said of it on test is not flattered by the choice.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mtlkit.report.findings import ROW_RULES, Evidence, divergence, overfitting, still_rising
from mtlkit.report.gains import Paired, margin_of
from mtlkit.report.references import TaskValues
from mtlkit.report.run_warnings import listed
from mtlkit.report.statistics import delta_m
from mtlkit.report.summary import Row, beside, task_values
from mtlkit.report.tables import are, fixed, spread, whole
from mtlkit.report.verdicts import SWEEP, Verdicts

CAVEATS = (divergence, still_rising, overfitting)
"""Findings about the row that is recommended, the one that matters most first."""
NO_WORSE = ("better", "equivalent", "not told apart")
FEWEST_SEEDS = 3  # with fewer, the spread over seeds is hardly known itself


@dataclass(frozen=True)
class Sentence:
    """One sentence of an answer."""

    rule: str  # of which kind it is
    text: str  # what is said, with its numbers
    row: str = ""  # group id of the row whose numbers they are; empty without one
    command: str = ""  # what to type about it; empty where there is nothing to do

    def __str__(self) -> str:
        return f"{self.text} Type: {self.command}" if self.command else self.text


def answer(seen: Evidence, judged: Sequence[Verdicts]) -> tuple[Sentence, ...]:
    """What to use on a data set, or what is missing before anybody can say."""
    missing = _missing(seen)
    if missing is not None:
        return (missing,)

    # Of what can be compared with the usual single-task, the best on validation.
    reference = next(iter(seen.summary.references.groups.values()))
    single = seen.summary.row(reference.id)
    candidates = [
        row
        for row in seen.summary.finished
        if row.gain.bounded and row.group.training == reference.training
    ]
    scores = {row.group.id: _validation_gain(seen, row) for row in candidates}
    ranked = [row for row in candidates if not math.isnan(scores[row.group.id])]
    if not ranked:
        text = "There is no answer yet. No row was scored on validation, where one is chosen."
        return (Sentence("missing", text),)

    # That one, or the best smaller one, or else single-task.
    best = max(ranked, key=lambda row: scores[row.group.id])
    smaller = [row for row in ranked if row.parameters < single.parameters]
    best_smaller = max(smaller, key=lambda row: scores[row.group.id], default=best)
    chosen = next((row for row in (best, best_smaller) if _is_worth_it(row, single)), best)
    praise = f"the best of {len(ranked)} multi-task rows on validation"
    if chosen is not best:
        praise = f"the best on validation of {len(smaller)} rows that are smaller than single-task"
    return (
        _use(seen, chosen, single, praise),
        _by_task(seen, chosen),
        *_cost(chosen, single),
        *_others(seen, chosen, ranked),
        *_balancers(seen, chosen, judged),
        *_caveat(seen, chosen),
    )


def _missing(seen: Evidence) -> Sentence | None:
    """What there must be before any row can be recommended, and the command that adds it."""
    summary = seen.summary
    networks = [row for row in summary.finished if not row.group.is_baseline]
    rows = [row for row in networks if not row.reference_of]
    if not summary.finished:
        why, command = "No run has finished.", f"{seen.bench(summary.rows[0])} --retry-failed"
    elif not rows:
        why = "No row of a model that shares anything has finished."
        row, models = summary.finished[0], "shared-bottom,mmoe"
        command = seen.bench(row, models=models, balancers="uniform", references="single-task")
    elif summary.references.useless:
        why = summary.references.useless
        epochs = 2 * rows[0].group.resolved["training"].get("epochs", 1)
        command = seen.bench(rows[0], f"epochs={epochs:g}")
    elif not any(row.gain.known for row in rows):
        why = "No single-task row has finished with the same seeds and settings, for all tasks."
        command = seen.bench(rows[0], references="single-task")
    elif not any(row.gain.bounded for row in rows):
        why = "No row shares two seeds with single-task, and one gives no interval."
        command = seen.bench(rows[0], seeds=5)
    else:
        return None
    return Sentence("missing", f"There is no answer yet. {why}", command=command)


def _validation_gain(seen: Evidence, row: Row) -> float:
    """The mean relative gain over single-task on validation; NaN where it is unknown."""
    block, references = seen.summary.block, seen.summary.references
    on_validation = seen.metrics[seen.metrics["split"] == "validation"]

    def values(group: str) -> TaskValues:
        return task_values(on_validation[on_validation["group"] == group], block.tasks)

    of_reference = {name: values(group.id)[name] for name, group in references.groups.items()}
    metrics = {task.name: task.reading for task in block.comparable if task.name in of_reference}
    gains = delta_m(values(row.group.id), of_reference, metrics, block.task_of)
    return float(np.mean(list(gains.values()))) if gains else math.nan


def _is_worth_it(row: Row, single: Row) -> bool:
    """Whether a row is better than single-task, or smaller with nothing against it."""
    nothing_against = row.word == "equivalent" or (row.word != "worse" and row.gain.mean >= 0)
    return row.word == "better" or (nothing_against and row.parameters < single.parameters)


def _use(seen: Evidence, chosen: Row, single: Row, praise: str) -> Sentence:
    """Which row, and what its gain over single-task is."""
    label, gain = chosen.group.label, spread(chosen.gain.scaled(100), 2, sign=True)
    margin = f", margin {100 * seen.summary.margin:g} %" if chosen.word == "equivalent" else ""
    said = {"equivalent": "is equivalent to", "not told apart": "cannot be told apart from"}
    verb = said.get(chosen.word, f"is {chosen.word} than")
    numbers = (
        f"{verb} single-task over all tasks (Δm {gain} %{margin}, {chosen.gain.n} common seeds)"
    )
    if _is_worth_it(chosen, single):
        return Sentence("use", f"Use {label}, {praise}: it {numbers}.", chosen.group.id)
    return Sentence("use", f"Use single-task: {label}, {praise}, {numbers}.", chosen.group.id)


def _by_task(seen: Evidence, chosen: Row) -> Sentence:
    """The words of each task, those that are better first."""
    summary = seen.summary
    references = summary.references
    paired = Paired(
        chosen.group.id, chosen.values, references.ids, references.values, summary.noise
    )
    by_word: dict[str, list[str]] = defaultdict(list)
    for task in summary.block.comparable:
        if task.name not in references.groups:
            continue
        mean = references.mean(task.name).mean
        margin, decimals = margin_of(task, mean, summary.margin), task.reading.decimals
        found = paired.compare(task, margin)
        difference = spread(chosen.delta[task.name], decimals, sign=True)
        within = f", margin {fixed(margin, decimals)}" if found.word == "equivalent" else ""
        by_word[found.word].append(f"{task.title} ({difference} {task.reading.label}{within})")
    words = ("better", "worse", "equivalent", "not told apart", "unknown")
    parts = [f"{word} on {listed(by_word[word], noun='tasks')}" for word in words if by_word[word]]
    text = f"By task, {chosen.group.label} against single-task: {', '.join(parts)}."
    return Sentence("tasks", text, chosen.group.id)


def _cost(chosen: Row, single: Row) -> Iterator[Sentence]:
    """Parameters and seconds of training beside those of single-task, where they were recorded."""
    share = 100 * chosen.parameters / single.parameters
    if math.isnan(share + chosen.seconds + single.seconds):
        return
    text = (
        f"{chosen.group.label} costs {whole(chosen.parameters)} parameters, {fixed(share, 0)} % of "
        f"single-task's {whole(single.parameters)}, and {fixed(chosen.seconds, 1)} s of training a "
        f"run, single-task {fixed(single.seconds, 1)} s."
    )
    yield Sentence("cost", text, chosen.group.id)


def _others(seen: Evidence, chosen: Row, ranked: Sequence[Row]) -> Iterator[Sentence]:
    """How many other rows do as well on test, and the smallest of them."""
    summary = seen.summary
    block = summary.block
    by_word: dict[str, list[Row]] = defaultdict(list)
    for row in ranked:
        if row is not chosen:
            paired = beside(row, chosen, summary.noise)
            found = paired.compare_gains(block.comparable, block.task_of, summary.margin)
            by_word[found.word].append(row)
    others = [row for rows in by_word.values() for row in rows]
    if not others:
        return
    counts = [f"{len(rows)} {are(len(rows))} {word}" for word, rows in sorted(by_word.items())]
    noun = "row" if len(others) == 1 else "rows"
    text = (
        f"Of {len(others)} other {noun} beside {chosen.group.label}, over all tasks and within "
        f"± {100 * summary.margin:g} %, {', '.join(counts)}"
    )

    # Something smaller may do.
    as_good = [row for word in NO_WORSE for row in by_word[word]]
    smallest = min(as_good, key=lambda row: row.parameters, default=chosen)
    if smallest.parameters < chosen.parameters:
        text += (
            f"; the smallest that is not shown to be worse is {smallest.group.label}, with "
            f"{whole(smallest.parameters)} parameters"
        )
    yield Sentence("others", f"{text}.", smallest.group.id)


def _balancers(seen: Evidence, chosen: Row, judged: Sequence[Verdicts]) -> Iterator[Sentence]:
    """Whether any balancer beats the best fixed weights, or what is missing to tell."""
    known = [v for v in judged if any(one.word != "unknown" for one in v.verdicts)]

    # One sentence for all models of which the same is to be said.
    alike: dict[str, list[Verdicts]] = {}
    for found in known:
        alike.setdefault(found.outcome, []).append(found)
    for outcome, those in alike.items():
        *others, last = [found.model for found in those]
        models = f"Under each of {', '.join(others)} and {last}" if others else last
        yield Sentence("balancers", f"{models}, {outcome}", those[0].verdicts[0].row.group.id)

    rows = [row for row in seen.summary.finished if row.group.has_balancer]
    if not known and not all(row.group.constant_weights for row in rows):
        text = (
            "Whether a balancer beats fixed weights is open: no model was trained under "
            f"{SWEEP} fixed weightings and more, with two seeds."
        )
        yield Sentence("missing", text, command=seen.bench(chosen, balancers="scalarization"))


def _caveat(seen: Evidence, chosen: Row) -> Iterator[Sentence]:
    """What matters most before anybody relies on the row; nothing if nothing was found."""
    group, seeds, needed = chosen.group, chosen.gain.n, chosen.seeds_to_tell
    if needed > seeds:
        would = "more test rows" if math.isinf(needed) else f"about {needed:.0f}"
        text = f"{seeds} seeds cannot tell {group.label} from single-task; {would} would."
        command = "" if math.isinf(needed) else seen.bench(chosen, seeds=int(needed))
        yield Sentence("caveat", text, group.id, command)
        return
    if seeds < FEWEST_SEEDS:
        text = f"All this rests on {seeds} seeds, whose spread is hardly known."
        yield Sentence("caveat", text, group.id, seen.bench(chosen, seeds=5))
        return

    # Findings about this row alone.
    alone = replace(seen, summary=replace(seen.summary, rows=(chosen,)))
    for look in CAVEATS:
        rule = next(rule for rule in ROW_RULES if rule.look is look)
        case = look(seen, chosen)
        if case is not None:
            command = next(rule.find(alone)).command
            yield Sentence("caveat", f"{rule.says}: {group.label}, {case[1]}.", group.id, command)
            return
