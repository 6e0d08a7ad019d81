"""Gram-based balancers against uniform weights, and torchjd's autojac, on one model with 2, 4 and 8
tasks.

All of them train the same model on the same batches with the same optimisers; a window of steps of
each is timed in turn. torchjd differentiates every loss by the experts, by the heads and by the
embedded rows (``autojac.jac``, one loss at a time, which is faster here than its vmap), takes the
weights of the Gram matrix over the experts, combines the rows by them and goes from the embedded
rows to the table once: the same gradients as mtlkit's, at the least work that its interface allows.
Its documented ``mtl_backward`` would also make T gradients of the table.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from .common import Check, Record, Section, Setup, in_child, markdown, ratios, say, select

SHAPES, BATCHES, COUNTS = ("census", "ali"), (1024, 4096), (2, 4, 8)
STEPS = {1024: 16, 4096: 8}
DENSE = ("upgrad", "mgda", "pareto")
REPRESENTATION = "upgrad, representation"
UNFOLDED = "uniform, unfolded"  # the first layer is not folded into the vocabulary
DENSE_UNFOLDED = "upgrad, unfolded"  # scope dense; torchjd's trainings have no fold either
TORCHJD = ("torchjd UPGrad", "torchjd MGDA")
SYSTEMS = ("uniform", *DENSE, UNFOLDED, DENSE_UNFOLDED, REPRESENTATION, *TORCHJD)
WITHOUT_FOLD = (DENSE_UNFOLDED, *TORCHJD)
LIMITS = {2: 1.12, 4: 1.5, 8: 2.0}
"""Number of tasks to what a step with scope dense may cost at most, in steps of uniform weights."""
LIMIT_REPRESENTATION = 1.05
ROWS, SCORED = 200_000, 2048


class Condition(NamedTuple):
    """What all systems are compared under."""

    shape: str
    batch: int
    tasks: int


def collect(setup: Setup) -> list[Record]:
    """Milliseconds a step, by shape, batch, number of tasks and system."""
    records = []
    for shape in SHAPES:
        for tasks in COUNTS:
            say(f"balancers: {shape}, {tasks} tasks")
            job = {"shape": shape, "tasks": tasks, "rounds": setup.rounds, "home": str(setup.data)}
            records += in_child("balancers", job)
    return records


def work(job: dict[str, Any]) -> list[Record]:
    """In a process of its own: all systems take turns."""
    from .models import count_cpu_seconds
    from .turns import take_turns

    count_cpu_seconds()
    dataset = dataset_for(job["shape"], job["tasks"], job["home"])
    records = []
    for batch in BATCHES:
        seconds = take_turns({system: run(dataset, system, job, batch) for system in SYSTEMS})
        for system, windows in seconds.items():
            record = {"shape": job["shape"], "tasks": job["tasks"], "batch": batch}
            milliseconds = [1000 * window / STEPS[batch] for window in windows]
            records.append(record | {"system": system, "ms": milliseconds})
    return records


def dataset_for(shape: str, tasks: int, home: str) -> Any:
    """The shape with this number of tasks, small where it is only scored."""
    from pathlib import Path

    from .data import ali_shaped, census

    whole = census(Path(home)) if shape == "census" else ali_shaped(ROWS, tasks)
    return with_tasks(whole, tasks)


def with_tasks(whole: Any, tasks: int) -> Any:
    """A data set with this number of tasks, and few rows to score after each window."""
    from .data import head, with_extra_tasks

    return with_extra_tasks(head(whole, validation=SCORED, test=SCORED), tasks)


def run(dataset: Any, system: str, job: dict[str, Any], batch: int) -> Callable[[Any], None]:
    """The training of one system."""
    from .data import WIDTHS
    from .models import Windows, training

    width = WIDTHS[job["shape"]]
    windows = Windows(job["rounds"], STEPS[batch], batch)
    if system in TORCHJD:
        return torchjd_training(dataset, width, system, windows)
    name, _, form = system.partition(", ")
    scope = form if form == "representation" else "dense"
    return training(dataset, width, name, windows, foldable=form != "unfolded", scope=scope)


def torchjd_training(dataset: Any, width: int, system: str, windows: Any) -> Callable[[Any], None]:
    """The same training with task gradients and weights by torchjd; batches and optimisers are the
    trainer's.
    """
    from torchjd.aggregation import MGDAWeighting, UPGradWeighting

    from mtlkit.training.setup import TrainingSetup
    from mtlkit.training.trainer import Trainer

    from . import models

    # The trainer is there for its batches and optimisers; its balancer is never asked.
    weighting = UPGradWeighting() if system == "torchjd UPGrad" else MGDAWeighting()
    windows = windows.with_warm_up

    def train(pause: Callable[[float], None]) -> None:
        model = models.mmoe(dataset.schema, width)
        model.use(replace(model.fast_paths, fold=False))  # x is then materialised
        settings = models.settings(dataset, windows)
        uniform = models.balancer("uniform", dataset.schema)
        trainer = Trainer(
            model, uniform, dataset, TrainingSetup(settings, models.EXECUTION, 0, models.CPU)
        )
        above_table = {
            name: parameter
            for name, parameter in model.named_parameters()
            if not name.startswith("embedding.")
        }

        # The first window is a warm-up, which whoever takes the times leaves out.
        seconds = 0.0
        for _ in range(windows.count):
            began = time.process_time()
            for _ in range(windows.steps):
                torchjd_step(trainer, weighting, above_table)
            seconds += time.process_time() - began
            pause(seconds)

    return train


def torchjd_step(trainer: Any, weighting: Any, above_table: dict[str, Any]) -> None:
    """One step: a gradient of each task, weights of the Gram matrix over the experts, the weighted
    sum, and from the embedded rows on to the table.

    Args:
        trainer: Gives the model, the batches and the optimisers.
        weighting: Torchjd's, from a Gram matrix to weights.
        above_table: Name to parameter, of all but the embedding.
    """
    import torch
    from torchjd.autojac import jac

    trainer.optimizer.zero_grad()
    model = trainer.model
    rows = next(trainer.stream)
    output = model(rows)
    losses = [objective.loss for objective in model.objectives(output, rows)]
    x = output.representation  # (B, D) the embedded rows

    # The Jacobians of the losses by everything above the table, and by the embedded rows.
    inputs = [*above_table.values(), x]
    by_input = jac(losses, inputs, retain_graph=True, parallel_chunk_size=1)
    *jacobians, x_jacobian = [jacobian.flatten(1) for jacobian in by_input]  # (T, ...) each

    # The weights depend on the shared parameters only.
    of_experts = [
        jacobian
        for name, jacobian in zip(above_table, jacobians, strict=True)
        if name.startswith("experts.")
    ]
    trunk = torch.cat(of_experts, 1)
    weights = weighting(trunk @ trunk.T)  # (T,)

    for parameter, jacobian in zip(above_table.values(), jacobians, strict=True):
        parameter.grad = (weights @ jacobian).view_as(parameter)
    x.backward((weights @ x_jacobian).view_as(x))
    trainer.optimizer.step()


def factors(records: list[Record], condition: Condition) -> dict[str, list[float]]:
    """System to its times over those of uniform, window by window."""
    same = select(records, **condition._asdict())
    times = {record["system"]: record["ms"] for record in same}
    return {system: ratios(ms, times["uniform"]) for system, ms in times.items()}


def conditions(records: list[Record]) -> list[Condition]:
    """All that was measured."""
    return sorted(
        {Condition(record["shape"], record["batch"], record["tasks"]) for record in records}
    )


def table(records: list[Record]) -> str:
    """Cost over uniform; of uniform itself the milliseconds."""
    head = ["data", "batch", "tasks", "uniform, ms"]
    head += [f"{system}, x uniform" for system in SYSTEMS[1:]]
    head += [f"{system}, x uniform without fold" for system in WITHOUT_FOLD]
    rows = []
    for condition in conditions(records):
        by_system = factors(records, condition)
        [uniform] = select(records, system="uniform", **condition._asdict())
        row = [condition.shape, f"{condition.batch}", f"{condition.tasks}"]
        row.append(f"{statistics.median(uniform['ms']):.1f}")
        row += [f"{statistics.median(by_system[system]):.2f}" for system in SYSTEMS[1:]]
        for system in WITHOUT_FOLD:
            over_unfolded = ratios(by_system[system], by_system[UNFOLDED])
            row.append(f"{statistics.median(over_unfolded):.2f}")
        rows.append(row)
    return markdown(head, rows)


def checks(records: list[Record]) -> list[Check]:
    """The worst condition of each number of tasks counts."""
    medians = {}
    for condition in conditions(records):
        by_system = factors(records, condition)
        medians[condition] = {name: statistics.median(each) for name, each in by_system.items()}
    dense = [_check_dense(medians, tasks, limit) for tasks, limit in LIMITS.items()]
    return [*dense, _check_representation(medians), _check_torchjd(medians)]


Medians = Mapping[Condition, Mapping[str, float]]


def _check_dense(medians: Medians, tasks: int, limit: float) -> Check:
    """The slowest balancer under the worst condition with this number of tasks."""
    slowest = [
        (max(by_system[system] for system in DENSE), condition)
        for condition, by_system in medians.items()
        if condition.tasks == tasks
    ]
    worst, where = max(slowest)
    asked = f"{', '.join(DENSE)}, scope dense, {tasks} tasks: each <= {limit:g} x uniform"
    measured = f"{worst:.2f} at worst ({where.shape}, batch {where.batch})"
    return Check(asked, measured, worst <= limit)


def _check_representation(medians: Medians) -> Check:
    worst, where = max(
        (by_system[REPRESENTATION], condition) for condition, by_system in medians.items()
    )
    asked = f"{REPRESENTATION}: <= {LIMIT_REPRESENTATION:g} x uniform"
    return Check(asked, f"{worst:.2f} at worst ({_words(where)})", worst <= LIMIT_REPRESENTATION)


def _check_torchjd(medians: Medians) -> Check:
    """Torchjd's time over that of the same method here; without the fold, it is a comparison of
    like with like.
    """
    speedups = []
    for condition, by_system in medians.items():
        for theirs, ours in zip(TORCHJD, ("upgrad", "mgda"), strict=True):
            speedups.append((by_system[theirs] / by_system[ours], condition))
    worst, where = min(speedups)
    alike = min(by_system[TORCHJD[0]] / by_system[DENSE_UNFOLDED] for by_system in medians.values())
    asked = "upgrad and mgda faster than torchjd's autojac at every number of tasks"
    at_worst = f"({_words(where)}; upgrad without fold {alike:.2f})"
    return Check(asked, f"{worst:.2f} times as fast at worst {at_worst}", worst > 1)


def _words(condition: Condition) -> str:
    return f"{condition.shape}, batch {condition.batch}, {condition.tasks} tasks"


SECTION = Section(
    "balancers", "Gram balancers against uniform weights and torchjd", 5, collect, table, checks
)
