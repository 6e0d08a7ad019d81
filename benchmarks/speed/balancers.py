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
from collections.abc import Callable
from dataclasses import replace
from typing import Any

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
LIMIT_REPRESENTATION = 1.05
ROWS, SCORED = 200_000, 2048


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
        windows = take_turns({system: run(dataset, system, job, batch) for system in SYSTEMS})
        for system, found in windows.items():
            ms = [1000 * seconds / STEPS[batch] for seconds in found]
            records.append(
                {
                    "shape": job["shape"],
                    "tasks": job["tasks"],
                    "batch": batch,
                    "system": system,
                    "ms": ms,
                }
            )
    return records


def dataset_for(shape: str, tasks: int, home: str) -> Any:
    """The shape with so many tasks, small where it is only scored."""
    from pathlib import Path

    from .data import ali_shaped, census

    return with_tasks(census(Path(home)) if shape == "census" else ali_shaped(ROWS, tasks), tasks)


def with_tasks(whole: Any, tasks: int) -> Any:
    """A data set with so many tasks, and few rows to score after each window."""
    from .data import head, with_extra_tasks

    return with_extra_tasks(head(whole, validation=SCORED, test=SCORED), tasks)


def run(dataset: Any, system: str, job: dict[str, Any], batch: int) -> Callable[[Any], None]:
    """The training of one system."""
    from .data import WIDTHS
    from .models import training

    width, windows, steps = WIDTHS[job["shape"]], job["rounds"], STEPS[batch]
    if system in TORCHJD:
        return torchjd_training(dataset, width, system, batch, windows, steps)
    name, _, form = system.partition(", ")
    scope = form if form == "representation" else "dense"
    return training(
        dataset, width, name, batch, windows, steps, foldable=form != "unfolded", scope=scope
    )


def torchjd_training(
    dataset: Any, width: int, system: str, batch: int, windows: int, steps: int
) -> Callable[[Any], None]:
    """The same training with task gradients and weights by torchjd; batches and optimisers are the
    trainer's.
    """
    import torch
    from torchjd.aggregation import MGDAWeighting, UPGradWeighting
    from torchjd.autojac import jac

    from mtlkit.training.setup import TrainingSetup
    from mtlkit.training.trainer import Trainer

    from . import models

    weighting = UPGradWeighting() if system == "torchjd UPGrad" else MGDAWeighting()

    def train(pause: Callable[[float], None]) -> None:
        model = models.mmoe(dataset.schema, width)
        model.use(replace(model.fast_paths, fold=False))  # x is then materialised
        own = models.settings(dataset, batch, windows + 1, steps)
        uniform = models.balancer("uniform", dataset.schema)
        setup = TrainingSetup(own, models.EXECUTION, 0, torch.device("cpu"))
        trainer = Trainer(model, uniform, dataset, setup)
        parameters = {
            name: value
            for name, value in model.named_parameters()
            if not name.startswith("embedding.")
        }
        shared = [name.startswith("experts.") for name in parameters]
        seconds = 0.0
        for _ in range(windows + 1):
            began = time.process_time()
            for _ in range(steps):
                trainer.optimizer.zero_grad()
                rows = next(trainer.stream)
                output = model(rows)
                losses = [objective.loss for objective in model.objectives(output, rows)]
                x = output.representation
                found = jac(
                    losses, [*parameters.values(), x], retain_graph=True, parallel_chunk_size=1
                )
                jacobians = [jacobian.flatten(1) for jacobian in found]  # (T, ...)
                trunk = torch.cat(
                    [part for part, on in zip(jacobians, shared, strict=False) if on], 1
                )
                weights = weighting(trunk @ trunk.T)  # (T,)
                for parameter, jacobian in zip(parameters.values(), jacobians, strict=False):
                    parameter.grad = (weights @ jacobian).view_as(parameter)
                x.backward((weights @ jacobians[-1]).view_as(x))
                trainer.optimizer.step()
            seconds += time.process_time() - began
            pause(seconds)

    return train


def factors(records: list[Record], **wanted: Any) -> dict[str, list[float]]:
    """System to its times over those of uniform, window by window."""
    own = {record["system"]: record["ms"] for record in select(records, **wanted)}
    return {system: ratios(ms, own["uniform"]) for system, ms in own.items()}


def _places(records: list[Record]) -> list[tuple[str, int, int]]:
    return sorted({(record["shape"], record["batch"], record["tasks"]) for record in records})


def table(records: list[Record]) -> str:
    """Cost over uniform; of uniform itself the milliseconds."""
    rows = []
    for shape, batch, tasks in _places(records):
        found = factors(records, shape=shape, batch=batch, tasks=tasks)
        ms = select(records, shape=shape, batch=batch, tasks=tasks, system="uniform")[0]["ms"]
        cells = [f"{statistics.median(found[system]):.2f}" for system in SYSTEMS[1:]]
        cells += [
            f"{statistics.median(ratios(found[system], found[UNFOLDED])):.2f}"
            for system in WITHOUT_FOLD
        ]
        rows.append([shape, f"{batch}", f"{tasks}", f"{statistics.median(ms):.1f}", *cells])
    head = [
        "data",
        "batch",
        "tasks",
        "uniform, ms",
        *(f"{system}, x uniform" for system in SYSTEMS[1:]),
    ]
    head += [f"{system}, x uniform without fold" for system in WITHOUT_FOLD]
    return markdown(head, rows)


def checks(records: list[Record]) -> list[Check]:
    """The worst place of each number of tasks counts."""
    places = _places(records)
    medians = {
        place: {
            system: statistics.median(values)
            for system, values in factors(
                records, shape=place[0], batch=place[1], tasks=place[2]
            ).items()
        }
        for place in places
    }
    found = []
    for tasks, limit in LIMITS.items():
        own = {place: values for place, values in medians.items() if place[2] == tasks}
        worst, where = max((max(v[system] for system in DENSE), place) for place, v in own.items())
        asked = f"{', '.join(DENSE)}, scope dense, {tasks} tasks: each <= {limit:g} x uniform"
        found.append(
            Check(asked, f"{worst:.2f} at worst ({where[0]}, batch {where[1]})", worst <= limit)
        )
    worst, where = max((v[REPRESENTATION], place) for place, v in medians.items())
    asked = f"{REPRESENTATION}: <= {LIMIT_REPRESENTATION:g} x uniform"
    at = f"{where[0]}, batch {where[1]}, {where[2]} tasks"
    found.append(Check(asked, f"{worst:.2f} at worst ({at})", worst <= LIMIT_REPRESENTATION))
    pairs = [
        (v[TORCHJD[place]] / v[name], where)
        for where, v in medians.items()
        for place, name in enumerate(("upgrad", "mgda"))
    ]
    worst, where = min(pairs)
    alike = min(v[TORCHJD[0]] / v[DENSE_UNFOLDED] for v in medians.values())
    at = f"{where[0]}, batch {where[1]}, {where[2]} tasks; upgrad without fold {alike:.2f}"
    asked = "upgrad and mgda faster than torchjd's autojac at every number of tasks"
    found.append(Check(asked, f"{worst:.2f} times as fast at worst ({at})", worst > 1))
    return found


SECTION = Section(
    "balancers", "Gram balancers against uniform weights and torchjd", 5, collect, table, checks
)
