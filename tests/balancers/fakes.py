"""Optimiser steps made of given numbers, and the balancers under test with each of their options."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch
from torch import Tensor

from mtlkit.balancers._balancer import Balancer
from mtlkit.balancers._step import Scope, SharedGradient
from mtlkit.data.types import Task
from mtlkit.registry import BALANCERS

WIDTH = 12  # parameters of the made-up shared layers
KINDS = ("binary", "regression", "multiclass")
ALLOWED = {
    "losses": set(),
    "norms": {"norms"},
    "gram": {"gram"},
    "rows": {"rows", "gram", "norms", "parts", "fresh_batch"},
}


@dataclass
class FakeStep:
    """A step whose task gradients are given: implements ``mtlkit.balancers._step.Step``.

    Args:
        task_gradients: (T, P) task gradients. The first half of the columns is one tensor, the
            second the last weight.
        losses: (T,), default ones.
        active: (T,) bool, default all.
        allowed: Questions that may be asked; default all.
    """

    task_gradients: Tensor
    losses: Tensor = None
    active: Tensor = None
    index: int = 0
    total: int = 1000
    seed: int = 0
    allowed: set[str] | None = None
    callbacks: list[Callable[[Tensor], None]] = field(default_factory=list)
    drawn: int = 0

    def __post_init__(self) -> None:
        count = len(self.task_gradients)
        self.losses = (
            torch.ones(count).to(self.task_gradients)
            if self.losses is None
            else self.losses.to(self.task_gradients)
        )
        self.active = torch.ones(count, dtype=torch.bool) if self.active is None else self.active
        # as in training: an idle task has a loss of 0 and no gradient
        self.losses = self.losses * self.active
        self.task_gradients = self.task_gradients * self.active[:, None]

    def _asked(self, question: str) -> None:
        assert self.allowed is None or question in self.allowed, (
            f"asks for {question} without saying so in `needs`"
        )

    def gramian(self, scope: Scope | None = None) -> Tensor:
        self._asked("gram")
        return self.task_gradients.double() @ self.task_gradients.double().T

    def jacobian(self, scope: Scope | None = None) -> Tensor:
        self._asked("rows")
        return self.task_gradients.clone()

    def jacobian_columns(self, scope: Scope | None = None) -> dict[str, slice]:
        self._asked("parts")
        width = self.task_gradients.shape[1]
        return {"first": slice(0, width // 2), "second": slice(width // 2, width)}

    def grad_norms(self, part: str) -> Tensor:
        self._asked("norms")
        width = self.task_gradients.shape[1]
        places = {
            "first": slice(0, width // 2),
            "second": slice(width // 2, width),
            "last": slice(width // 2, width),
        }
        return self.task_gradients[:, places[part]].norm(dim=1)

    def fresh_batch(self) -> FakeStep:
        self._asked("fresh_batch")
        self.drawn += 1
        # the same noise for all tasks, so that their order does not matter
        noise = np.random.default_rng([self.seed, self.index, self.drawn]).standard_normal(
            self.task_gradients.shape[1]
        )
        moved = self.task_gradients * (1 + 0.1 * torch.from_numpy(noise).to(self.task_gradients))
        return FakeStep(
            moved, self.losses, self.active, self.index, self.total, self.seed, self.allowed
        )

    def after_step(self, callback: Callable[[Tensor], None]) -> None:
        self.callbacks.append(callback)

    def finish(self) -> None:
        """What the loop does once the optimiser has stepped: losses are lower, most so where the
        gradient is large.
        """
        size = self.task_gradients.double().norm(dim=1)
        lower = self.losses * (1 - 0.1 * size / size.max().clamp_min(1e-60)).to(self.losses)
        for callback in self.callbacks:
            callback(lower)


@cache
def load(name: str) -> type[Balancer]:
    """The class of a balancer; the registry looks at installed packages on every call."""
    return BALANCERS.load(name)


@dataclass(frozen=True)
class Case:
    """A balancer with options that are not its defaults, if any."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        shown = ",".join(
            f"{key}={getattr(value, '__name__', value)}" for key, value in self.options
        )
        return f"{self.name}[{shown}]" if shown else self.name

    @property
    def kind(self) -> type[Balancer]:
        return load(self.name)

    def make(self, count: int, order: list[int] | None = None) -> Balancer:
        """The balancer for tasks of all kinds in turn, in another order if one is given."""
        order = list(range(count)) if order is None else order
        options = {
            key: tuple(value(t) for t in order) if callable(value) else value
            for key, value in dict(self.options).items()
        }
        if "target" in self.kind.Options.model_fields:
            options.setdefault(
                "target", "t0"
            )  # a default target is the first task, whichever that is
        tasks = [Task(name=f"t{t}", kind=KINDS[t % 3], losses=("mse",)) for t in order]
        return self.kind(tasks, self.kind.Options.model_validate(options))


def by_task(t: int) -> float:
    """A number for each task."""
    return 1.0 + t


def _variants(name: str) -> Iterator[Case]:
    """The defaults, and each other value of each option that is a choice."""
    options = load(name).Options.model_fields
    yield Case(name)
    for key, info in options.items():
        choices = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
        choices = (True, False) if info.annotation is bool else choices
        yield from (Case(name, ((key, choice),)) for choice in choices if choice != info.default)
    if "w" in options:
        yield Case(name, (("w", by_task),))


SWEEPS = {"scalarization"}  # stand for other balancers in a grid
NAMES = [name for name in BALANCERS.names() if name not in SWEEPS]
DEFAULTS = [Case(name) for name in NAMES]
CASES = [case for name in NAMES for case in _variants(name)]


def families(count: int) -> dict[str, Tensor]:
    """(T, P) float64 task gradients of every awkward kind, the same on every call."""
    rng = np.random.default_rng([count, 7])
    rows = rng.standard_normal((count, WIDTH))
    line = rng.standard_normal(WIDTH)
    orthogonal = np.linalg.qr(rng.standard_normal((WIDTH, count)))[0].T
    size = np.arange(1.0, count + 1)[:, None]
    made = {
        "random": rows,
        "aligned": np.abs(rows) + 0.1,
        "conflicting": rows - rows.mean(0) + 0.02 * line,
        "zero": np.zeros_like(rows),
        "one zero": np.where(np.arange(count)[:, None] == 0, 0.0, rows),
        "tiny": 1e-12 * rows,
        "huge": 1e12 * rows,
        "collinear": size * line,
        "opposing": size * (-1.0) ** np.arange(count)[:, None] * line,
        "orthogonal": size * orthogonal,
        "badly scaled": np.logspace(0, 6, count)[:, None] * rows,
        "near duplicates": line + 1e-7 * rows,
        "duplicates": np.repeat(line[None], count, 0),
    }
    return {name: torch.from_numpy(value) for name, value in made.items()}


def differing(index: int) -> Tensor:
    """(3, P) gradients in some step: of unequal norm, the first and last conflict, and they shrink
    at different speed.

    The second is so much on the others' side that the shortest mixture leaves it out, of unit
    gradients, too.
    """
    plane = torch.zeros(3, WIDTH, dtype=torch.float64)
    plane[:, :3] = torch.tensor([[1.0, 0.0, 0.0], [1.5, 0.9, 2.4], [-0.3, 0.0, 0.4]])
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((WIDTH, WIDTH)))
    speed = torch.tensor([0.001, 0.004, 0.0], dtype=torch.float64)
    return torch.exp(-speed * index)[:, None] * plane @ torch.from_numpy(turn)


DEGENERATE = {"zero", "one zero", "collinear", "opposing", "near duplicates", "duplicates"}
"""Families in which several weightings are equally good."""


@cache
def losses_at(index: int, count: int) -> Tensor:
    """(T,) losses that fall at a different speed for each task, with some noise."""
    start = torch.linspace(0.3, 2.0, count, dtype=torch.float64)
    speed = torch.linspace(0.05, 0.001, count, dtype=torch.float64)
    noise = torch.rand(count, generator=torch.Generator().manual_seed(index), dtype=torch.float64)
    return start * torch.exp(-speed * index) * (0.9 + 0.2 * noise)


def run(
    balancer: Balancer, jacobian: Tensor, steps: int, first: int = 0, **options: Any
) -> list[Tensor | SharedGradient]:
    """Some steps of training on falling losses; returns the decisions."""
    decisions = []
    for index in range(first, first + steps):
        given = {"losses": losses_at(index, len(jacobian))} | options
        order = given.pop("order", None)
        if order is not None:
            given["losses"] = given["losses"][order]
        step = FakeStep(jacobian, index=index, **given)
        decisions.append(balancer(step))
        step.finish()
    return decisions


def direction(decision: Tensor | SharedGradient, jacobian: Tensor) -> Tensor:
    """(P,) the gradient that a decision means for the shared parameters."""
    return (
        decision.vector
        if isinstance(decision, SharedGradient)
        else decision.to(jacobian) @ jacobian
    )


def numbers(decision: Tensor | SharedGradient) -> Tensor:
    """What a decision is made of."""
    return decision.vector if isinstance(decision, SharedGradient) else decision


def seed_of(text: str) -> int:
    """A fixed number for a name."""
    return zlib.crc32(text.encode())
