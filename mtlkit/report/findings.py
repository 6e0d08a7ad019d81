"""Findings: what records say about runs, a sentence each with its numbers, and a command to type.

A rule about rows looks at one of them and says how bad it is, with the numbers; the sentence then
names the rows of a block, the worst first. A rule about a block yields sentences with commands.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from mtlkit.commands import as_text, settings_words, typed_training, with_start
from mtlkit.report.blocks import recorded_spec
from mtlkit.report.curves import Curve
from mtlkit.report.experts import effective_number, idle_in_gates, idle_share, levels_of, shares
from mtlkit.report.frame import Frames
from mtlkit.report.probe_frames import Probes
from mtlkit.report.run_warnings import listed, seed_ranges
from mtlkit.report.statistics import is_useful, recovered
from mtlkit.report.summary import FEW_POSITIVES, Row, Summary, behind_baselines, copies
from mtlkit.report.tables import Table, TableCell, fixed, percent, spread
from mtlkit.spec import parse_spec
from mtlkit.store import printable
from mtlkit.studies import Study

COLLAPSED = 0.1
"""A task has less than this part of an equal share of the weight at the end of training."""
STARVED = 0.1
"""A task is not learnt if a row covers less of the best row's distance from a useless model."""
IDLE_EXPERTS = 0.25
"""This share of a level's experts is idle."""
COLLAPSED_GATES = 1.5
"""The gates of a level use no more experts than this."""
CONFLICT = 0.5
"""Two gradients have a negative cosine at more than this share of points, and in the mean."""
OVERFIT = 0.1
"""The validation loss ends so far above its least, as a share of it."""
RISING = 0.03
"""The last quarter of a run brings this share of all that the primary metric has gained."""
DRIFT = 0.1
"""The mean prediction is so far from the rate, or moves so far from validation to test."""
FEWEST = 5
"""Labels of the rarer class in a batch."""

Case = tuple[float, str]
"""How bad something is in a row, and the numbers that say so."""
Found = Iterator[tuple[str, str]]
"""Sentences with commands."""


@dataclass(frozen=True)
class Finding:
    """Something that was found in the runs of a data set."""

    rule: str  # of which kind it is
    sentence: str  # what was found, with numbers
    command: str  # what to type about it


@dataclass(frozen=True)
class Evidence:
    """What rules read of one block."""

    summary: Summary  # its rows
    runs: pd.DataFrame  # a row a run, failed ones included
    metrics: pd.DataFrame  # a row a finished run x split x task x metric
    probes: Mapping[str, Probes]  # group to what was recorded inside its runs
    out: Path  # the results folder

    def curves(self, row: Row) -> list[Curve]:
        """The curves of a row's finished runs, of four evaluation points and more."""
        of_row = (self.runs["group"] == row.group.id) & (self.runs["status"] == "ok")
        return [curve for curve in self.runs[of_row]["curve"] if len(curve.epochs) > 3]

    def bench(
        self,
        row: Row,
        *changes: str,
        models: str = "",
        balancers: str = "",
        references: str = "",
        seeds: int = 0,
        trials: int = 0,
    ) -> str:
        """The command that runs the grid of a row again, with changed settings and methods."""
        group, block = row.group, self.summary.block
        advised = dict(change.split("=", 1) for change in changes)
        model = recorded_spec(group.typed[0])  # what is advised would give way to its brackets
        options = {key: value for key, value in model.options.items() if key not in advised}
        tasks = ",".join(block.task_names)  # perhaps not all of the data set
        words = {"-d": block.typed, "--tasks": tasks}
        words["--models"] = models or str(replace(model, options=options))
        if references or not any(other.is_reference for other in block.groups):
            words["--references"] = references or "none"
        if balancers or group.has_balancer:
            words["--balancers"] = balancers or group.typed[1]
        planned = sorted(group.seeds + group.failed)
        is_count = planned == list(range(len(planned)))
        listed_seeds = "".join(f"{seed}," for seed in planned)
        words["--seeds"] = str(seeds or (len(planned) if is_count else listed_seeds))
        if group.study is not None:
            words["--tune"] = group.study.typed_budget
        if trials:
            words["--tune"] = str(trials)
        words["--out"] = str(self.out)
        variant = recorded_spec(models)
        fixed_now = [*advised, *(f"{variant.name}.{key}" for key in variant.options)]
        settings = {
            key: text
            for key, text in self._settings(row, models, balancers).items()
            if not key.startswith(tuple(f"tune.space.{name}." for name in fixed_now))
        } | advised
        in_order = [word for pair in words.items() for word in pair]
        in_order += [*settings_words(settings), *["--force"] * group.forced]
        return printable(shlex.join(["mtlkit", "bench", *in_order]))

    def _settings(self, row: Row, models: str, balancers: str) -> dict[str, str]:
        """What was typed beside the methods and the budget of a row, by the names that ``--set``
        takes, as far as it can be typed with other methods: with a model all that is an option of
        the reference, which runs beside it.
        """
        group, study = row.group, row.group.study
        tuned = () if study is None else study.space.keys()
        trained = group.resolved["training"]
        training = typed_training(trained, self.summary.block.name, tuned)
        typed = training | group.common
        if study is not None:
            tune = {"halving": study.halving, "sampler": study.sampler, "seed": study.seed}
            tune["seeds"] = len(study.seeds)
            usual = {"halving": None, "sampler": "sobol", "seed": 0, "seeds": 1}
            of_tune = {f"tune.{key}": tune[key] for key in tune if tune[key] != usual[key]}
            typed = (training if study.typed is None else study.typed) | of_tune

        model, balancer = group.resolved["model"]["name"], group.balancer_name
        gone = set()
        if balancers and parse_spec(balancers).name != balancer:
            gone |= {"balancer", balancer}
        if models and parse_spec(models).name != model:
            of_reference = {
                name
                for other in self.summary.block.groups
                if other.is_reference
                for name in other.resolved["model"]["options"]
            }
            gone |= {model, *(group.resolved["model"]["options"].keys() - of_reference)}
            gone |= {"execution", "freeze"}  # it may not fit the weights of that run
        return {
            key: text
            for key, text in as_text(with_start(typed)).items()
            if key.removeprefix("tune.space.").removeprefix("model.").partition(".")[0] not in gone
        }


def gather(frames: Frames, summary: Summary, probes: Mapping[str, Probes], out: Path) -> Evidence:
    """What rules read of a block."""
    runs = frames.runs[frames.runs["block"] == summary.block.id]
    metrics = frames.metrics[frames.metrics["block"] == summary.block.id]
    return Evidence(summary, runs, metrics, probes, out)


def find(
    frames: Frames, summary: Summary, probes: Mapping[str, Probes], out: Path
) -> list[Finding]:
    """What all rules find in a block."""
    seen = gather(frames, summary, probes, out)
    about_rows = [finding for rule in ROW_RULES for finding in rule.find(seen)]
    about_block = [
        Finding(rule.__name__.replace("_", " "), *found)
        for rule in BLOCK_RULES
        for found in rule(seen)
    ]
    return about_rows + about_block


def findings_table(summary: Summary, found: Sequence[Finding]) -> Table:
    """The findings of a block as a table."""
    rows = [tuple(map(TableCell, asdict(finding).values())) for finding in found]
    title = f"{summary.block.label}: findings"
    columns = ("finding", "evidence", "to type")
    typed = ("to type",)
    return Table(title, columns, tuple(rows), summary.block.budget, texts=typed, commands=typed)


@dataclass(frozen=True)
class RowRule:
    """A rule that looks at one row after the other."""

    # The case of a row, or None; the rule is called as it is.
    look: Callable[[Evidence, Row], Case | None]
    says: str  # what is wrong, before the rows
    changes: tuple[str, ...] = ()  # settings that may help; ``twice`` stands for twice the epochs
    balancers: tuple[str, ...] = ()  # balancers that may help
    models: tuple[str, ...] = ()  # models that may help
    variant: Callable[[Row], str] | None = None  # a row's model as it may be better, typed

    def find(self, seen: Evidence) -> Iterator[Finding]:
        """One finding for all rows with a case; nothing without any."""
        cases = [(self.look(seen, row), row) for row in seen.summary.rows]
        found = [(*case, row) for case, row in cases if case is not None]
        if not found:
            return
        found.sort(key=lambda case: -case[0])
        texts = [f"{row.group.label} ({numbers})" for _, numbers, row in found]
        worst = found[0][2]
        twice = 2 * worst.group.resolved["training"].get("epochs", 1)
        changes = [change.format(twice=twice) for change in self.changes]
        models = self.variant(worst) if self.variant else _others(seen, "model", self.models)
        balancers = _others(seen, "balancer", self.balancers)
        command = seen.bench(worst, *changes, models=models, balancers=balancers)
        of_rows = f"{self.says} in {len(found)} of {len(cases)} rows: {listed(texts)}."
        name = self.look.__name__.replace("_", " ")
        yield Finding(name, of_rows, command)


def _others(seen: Evidence, kind: str, names: Sequence[str]) -> str:
    """Of some methods those that the grid does not have; all of them, if it has all."""
    here = {group.resolved[kind]["name"] for group in seen.summary.block.groups}
    return ",".join([name for name in names if name not in here] or names)


# --- rules about rows


def divergence(seen: Evidence, row: Row) -> Case | None:
    """Runs that stopped because a loss was not finite."""
    of_row = seen.runs[seen.runs["group"] == row.group.id]
    diverged = of_row[of_row["step"].notna()]
    if not len(diverged):
        return None
    seeds = seed_ranges(sorted(map(int, diverged["seed"])))
    step = diverged["step"].min()
    return len(diverged), f"{len(diverged)} of {len(of_row)} runs, seed {seeds}, by step {step:.0f}"


def weight_collapse(seen: Evidence, row: Row) -> Case | None:
    """A task that ends with nearly no weight; constant weights are as they were typed."""
    probes = seen.probes.get(row.group.id)
    if probes is None or row.group.constant_weights:
        return None
    weights = probes.last(probes.weights)  # (T,)
    relative = weights / np.nanmean(weights)
    if not np.isfinite(relative).any() or np.nanmin(relative) >= COLLAPSED:
        return None
    least = int(np.nanargmin(relative))
    share, equal = relative[least] / len(relative), 1 / len(relative)
    return -share, f"{probes.tasks[least]} {percent(share, 2)}, an equal share is {percent(equal)}"


def starving_task(seen: Evidence, row: Row) -> Case | None:
    """A task on which a row is hardly better than a useless model, while another row is."""
    summary = seen.summary
    for task in summary.block.comparable:
        mean, counts = row.metric[task.name], summary.counts[task.name]
        if not mean.known or counts[0] < FEW_POSITIVES:
            continue
        best = summary.row(summary.best[task.name]).metric[task.name]
        if not (task.reading.higher_is_better and is_useful(best, task.reading, *counts)):
            continue
        if recovered(mean.mean, best.mean, task.reading) < STARVED:
            decimals = task.reading.decimals
            reached = f"{task.title} {task.reading.label} {spread(mean, decimals)}"
            return best.mean - mean.mean, f"{reached}, the best row {fixed(best.mean, decimals)}"
    return None


def idle_experts(seen: Evidence, row: Row) -> Case | None:
    """A level of which many experts are idle, or whose gates have collapsed to one."""
    probes = seen.probes.get(row.group.id)
    for level in levels_of(probes) if probes else ():
        if not level.gates or len(level.experts) < 3:
            continue
        idle = float(np.nanmean(idle_share(idle_in_gates(level.weights))))
        used = float(np.nanmean(effective_number(shares(level.weights))))
        if idle >= IDLE_EXPERTS or used <= COLLAPSED_GATES:
            experts = len(level.experts)
            unused = f"{level.name}: {percent(idle)} idle"
            return idle, f"{unused}, gates use {used:.1f} of {experts} experts"
    return None


def with_fewer_experts(row: Row) -> str:
    """A row's model with half of its experts of each kind; one without gates if that is none."""
    options = row.group.resolved["model"]["options"]
    counts = {name: options.get(name, 0) for name in ("experts", "specific", "shared")}
    fewer = {name: count // 2 for name, count in counts.items() if count > 1}
    model = recorded_spec(row.group.typed[0])
    return str(replace(model, options=model.options | fewer)) if fewer else "shared-bottom"


def gradient_conflict(seen: Evidence, row: Row) -> Case | None:
    """The two tasks whose gradients point against each other most often, and in which module."""
    probes = seen.probes.get(row.group.id)
    if probes is None or not probes.has_cosines:
        return None
    rates = probes.conflicts  # (K, pairs)
    pair = int(rates[0].argmax())
    rate = float(rates[0, pair])
    one, other = (tasks[pair] for tasks in np.triu_indices(len(probes.tasks), 1))
    if rate <= CONFLICT:
        return None
    mean = float(np.nanmean(probes.cosine[:, :, 0, one, other]))
    if mean >= 0:
        return None
    names = f"{probes.tasks[one]} and {probes.tasks[other]}"
    module = int(rates[1:, pair].argmax()) + 1 if len(rates) > 1 else 0
    where = f"{probes.modules[module]} {percent(rates[module, pair])}"
    return rate, f"{names} {percent(rate)}, mean cosine {fixed(mean, 3)}, most in {where}"


def negative_transfer(seen: Evidence, row: Row) -> Case | None:
    """The task on which a row is worse than single-task by more than its interval."""
    worst: Case | None = None
    for task in seen.summary.block.comparable:
        delta = row.delta.get(task.name)
        if delta is None or not delta.excludes_zero:
            continue
        loss = -task.reading.goodness(delta.mean)
        if loss > (worst[0] if worst else 0):
            difference = spread(delta, task.reading.decimals, sign=True)
            worst = loss, f"{task.title} {difference} {task.reading.label}"
    return worst


def _worst_task(
    curves: Sequence[Curve], measure: Callable[[Curve, str], float], least: float
) -> Case | None:
    """The task of which a measure of curves has the largest mean over runs, if that is enough."""
    by_task = defaultdict(list)
    for curve in curves:
        for task in curve.goodness:
            by_task[task].append(measure(curve, task))
    means = {task: float(np.mean(values)) for task, values in by_task.items()}
    enough = {task: mean for task, mean in means.items() if mean >= least}
    if not enough:
        return None
    task = max(enough, key=lambda name: enough[name])
    return enough[task], f"{task} {percent(enough[task])}"


def overfitting(seen: Evidence, row: Row) -> Case | None:
    """The loss on validation rises again while that of training goes on falling."""

    def rise(curve: Curve, task: str) -> float:
        loss, train = curve.loss[task], curve.train_loss.get(task)
        if np.isnan(loss).all():
            return 0.0
        lowest = int(np.nanargmin(loss))
        falls = train is None or train[-1] < train[lowest]
        return loss[-1] / loss[lowest] - 1 if 0 < loss[lowest] < math.inf and falls else 0.0

    return _worst_task(seen.curves(row), rise, OVERFIT)


def still_rising(seen: Evidence, row: Row) -> Case | None:
    """The primary metric on validation has not come to rest at the end."""

    def late_share(curve: Curve, task: str) -> float:
        values = curve.goodness[task]
        gained, late = values[-1] - values[0], values[-1] - values[-1 - len(values) // 4]
        return late / gained if gained > 0 else 0.0

    return _worst_task(seen.curves(row), late_share, RISING)


def calibration_drift(seen: Evidence, row: Row) -> Case | None:
    """The mean prediction over the rate is off on test, or moves from validation to test."""
    recorded = seen.metrics[seen.metrics["metric"] == "calibration"]
    of_row = recorded[recorded["group"] == row.group.id]
    means = of_row.groupby(["task", "split"], observed=True)["value"].mean()
    worst: Case | None = None
    for task in seen.summary.block.comparable:
        if seen.summary.counts[task.name][0] < FEW_POSITIVES:
            continue
        before, after = (means.get((task.name, split), 1.0) for split in ("validation", "test"))
        drift = max(abs(after - 1), abs(after - before))
        if drift > max(DRIFT, worst[0] if worst else 0):
            worst = drift, f"{task.title} {before:.2f} on validation, {after:.2f} on test"
    return worst


ROW_RULES = (
    RowRule(divergence, "Training diverged", ("clip_norm=1",)),
    RowRule(weight_collapse, "A task ends with hardly any weight", balancers=("uniform", "static")),
    RowRule(starving_task, "A task is not learnt", balancers=("imtl", "scalarization")),
    RowRule(idle_experts, "Experts are idle or gates have collapsed", variant=with_fewer_experts),
    RowRule(gradient_conflict, "Gradients conflict", balancers=("pcgrad", "cagrad", "upgrad")),
    RowRule(
        negative_transfer,
        "A task is worse than single-task's, beyond its interval",
        models=("ple", "stem", "home"),
    ),
    RowRule(overfitting, "The validation loss rises again", ("dropout=0.3",)),
    RowRule(
        still_rising,
        "The last quarter of training still brings some of the gain",
        ("epochs={twice:g}",),
    ),
    RowRule(calibration_drift, "The mean prediction is not the rate", ("select=loss",)),
)


# --- rules about a block


def idle_task(seen: Evidence) -> Found:
    """No batch between two evaluation points had a label of a task."""
    idle: Counter[str] = Counter()
    points = 0
    for row in seen.summary.finished:
        for curve in seen.curves(row):
            points += len(curve.epochs)
            idle.update({task: int((loss == 0).sum()) for task, loss in curve.train_loss.items()})
    for task, count in idle.items():
        if count:
            text = f"{task} had no label between two evaluation points {count} of {points} times."
            yield text, seen.bench(seen.summary.finished[0], "batches=covering")


def few_positives_in_a_batch(seen: Evidence) -> Found:
    """A batch has few labels of the rarer class, going by the validation rows."""
    scored = seen.metrics[(seen.metrics["split"] == "validation") & (seen.metrics["positives"] > 0)]
    rates = (scored["positives"] / scored["rows"]).groupby(scored["task"], observed=True).mean()
    for row in seen.summary.finished[:1]:
        size = row.group.resolved["training"].get("batch_size", math.nan)
        for task in sorted(set(rates.index) & set(seen.summary.block.task_of.values())):
            mean = size * min(rates[task], 1 - rates[task])
            if mean < FEWEST:
                yield (
                    f"A batch of {size} rows has {mean:.1f} labels of the rarer class of {task} in "
                    f"the mean: {percent(rates[task], 2)} of the validation rows are positive.",
                    seen.bench(row, "batches=covering"),
                )


def edge_of_the_space(seen: Evidence) -> Found:
    """Half of the studies chose the outermost value that was tried, and more could be."""
    chosen = defaultdict(list)
    for row in seen.summary.rows:
        for name, edge in _edges(row.group.study).items():
            chosen[name].append((edge, row))
    for name, choices in chosen.items():
        for edge in ("lowest", "highest"):
            rows = [row for side, row in choices if side == edge]
            if 2 * len(rows) < len(choices) or not rows[0].group.study:
                continue
            [(kind, (low, high))] = rows[0].group.study.space[name].items()
            yield (
                f"The best {name} is the {edge} that was tried, from {low:g} to {high:g}, in "
                f"{len(rows)} of {len(choices)} studies: {listed([r.group.label for r in rows])}.",
                seen.bench(rows[0], f"tune.space.{name}.{kind}={_wider(kind, low, high, edge)}"),
            )


def _edges(study: Study | None) -> dict[str, str]:
    """Of each range that could be wider, which end was chosen; empty for none."""
    edges: dict[str, str] = {}
    if study is None or study.chosen is None:
        return edges
    for name, written in study.space.items():
        [(kind, bounds)] = written.items()
        tried = [trial.settings[name] for trial in study.spent if name in trial.settings]
        few = 4 if kind == "int" else 2  # of few whole numbers the chosen one is often an end
        if kind in ("log", "float", "int") and len(set(tried)) > few:
            value = study.chosen.settings.get(name)
            # below 0 (whole numbers: 1) there may be nothing, nor above 1, the largest share
            low, high = bounds
            lowest = "lowest" if value == min(tried) and low > (kind == "int") else ""
            edges[name] = "highest" if value == max(tried) and high != 1 else lowest
    return edges


def _wider(kind: str, low: float, high: float, edge: str) -> str:
    """A range that goes on at one end, by a factor of three or half its width. What ends below 1
    may be a share, and stays below.
    """
    half = math.ceil((high - low) / 2) if kind == "int" else (high - low) / 2
    further = 3 * high if kind == "log" else high + half
    below = low / 3 if kind == "log" else max(kind == "int", low - half)
    further, below = (float(f"{value:.3g}") for value in (further, below))
    if high < 1:
        further = min(further, (high + 1) / 2)
    return f"{low:g}:{further:g}" if edge == "highest" else f"{below:g}:{high:g}"


def too_few_seeds(seen: Evidence) -> Found:
    """Most rows cannot be told from single-task, and more seeds could tell."""
    known = [row for row in seen.summary.finished if row.gain.known]
    undecided = [row for row in known if row.word in ("not told apart", "unknown")]
    if 2 * len(undecided) <= len(known):
        return
    seeds = max(row.gain.n for row in known)
    if seeds == 1:
        text = "One seed gives no interval, so no row can be told from single-task."
        yield text, seen.bench(undecided[0], seeds=5)
        return

    # Where the test rows leave as much open, no number of seeds is enough.
    needed = sorted(row.seeds_to_tell for row in undecided if math.isfinite(row.seeds_to_tell))
    if needed:
        enough = int(needed[len(needed) // 2])
        told = sum(number <= enough for number in needed)
        yield (
            f"{len(undecided)} of {len(known)} rows cannot be told from single-task with {seeds} "
            f"seeds; about {enough} would tell for {told} of them.",
            seen.bench(undecided[0], seeds=enough),
        )


def one_method(seen: Evidence) -> Found:
    """Balancers that are copies of each other."""
    for sentence in copies(seen.summary.block):
        names = {group.balancer_name for group in seen.summary.block.groups}
        yield sentence, f"mtlkit info {next(name for name in sorted(names) if name in sentence)}"


def behind_a_baseline(seen: Evidence) -> Found:
    """A task on which no network reaches a model that is none: likely they are under-tuned."""
    summary = seen.summary
    sentences = behind_baselines(
        summary.block, summary.rows, summary.baselines, summary.best, summary.noise
    )
    if sentences:
        best = summary.finished[0]
        trials = 2 * best.group.study.budget if best.group.study else 16
        yield sentences, seen.bench(best, trials=trials)


BLOCK_RULES = (
    *(idle_task, few_positives_in_a_batch, edge_of_the_space, too_few_seeds),
    *(one_method, behind_a_baseline),
)
