"""The contract of a balancer: it sees one optimiser step and answers with task weights, or with a
direction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.data.types import Task
from mtlkit.errors import UsageError
from mtlkit.settings import Settings

Scope = Literal["dense", "all", "representation"]


class Step(Protocol):
    """What a balancer may ask about the batch at hand. Everything is computed on first use and
    kept.

    Attributes:
        losses: (T,) detached losses of the tasks, objectives summed by owner.
        active: (T,) bool: which tasks had a label in the batch.
        index: Number of steps before this one.
        total: Number of steps of the whole run.
        seed: Source of the balancer's own randomness; use it together with ``index``.
    """

    losses: Tensor
    active: Tensor
    index: int
    total: int
    seed: int

    def gramian(self, scope: Scope | None = None) -> Tensor:
        """(T, T) float64 inner products of the task gradients over the shared parameters of a
        scope.
        """

    def jacobian(self, scope: Scope | None = None) -> Tensor:
        """(T, P) task gradients over the shared parameters of a scope, zero where a task does not
        reach.

        A balancer that asks for those of the representation has ``needs = "rows"``.
        """

    def jacobian_columns(self, scope: Scope | None = None) -> dict[str, slice]:
        """Where each parameter tensor stands in the columns of ``rows``."""

    def grad_norms(self, part: str) -> Tensor:
        """(T,) gradient norms over one tensor of ``parts``, or over ``"last"``, the last shared
        weight.
        """

    def fresh_batch(self) -> Step:
        """The same questions about an independent batch, at the same parameters."""

    def after_step(self, callback: Callable[[Tensor], None]) -> None:
        """Have a function called with the (T,) losses on the same batch after the optimiser has
        stepped.
        """


@dataclass(frozen=True)
class SharedGradient:
    """A gradient for the shared parameters of a scope that is no weighted sum of task gradients.

    Args:
        vector: (P,) in the order of ``Step.rows``. Parameters outside the scope receive weights of
            1.
        scope: The scope of those rows.
    """

    vector: Tensor
    scope: Scope | None = None


class Balancer(nn.Module, ABC):
    """Weighs the tasks at each step. Its state lives in buffers, so ``state_dict`` holds all of it.

    Args:
        tasks: The tasks, in the order of all (T,) tensors.
        options: Validated options of this class.

    Attributes:
        needs: The most that it asks of a step.
        scale: Whether its weights sum to the number of active tasks, or have the length that the
            method gives them.
        signed: Whether it may give a task a negative weight.
        scopes: What its gradients may be taken over; methods that compare gradients of several
            batches need parameters, as the representation of one batch is not that of another.
    """

    class Options(Settings):
        """Options of every balancer whose weights may be used again."""

        update_every: int = Field(1, gt=0, description="steps for which weights are used again")

    needs: ClassVar[Literal["losses", "norms", "gram", "rows"]] = "losses"
    scale: ClassVar[Literal["simplex", "native"]] = "simplex"
    signed: ClassVar[bool] = False
    scopes: ClassVar[tuple[Scope, ...]] = ("dense", "all", "representation")

    def __init__(self, tasks: Sequence[Task], options: Settings) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.options = options
        self.update_every: int = getattr(options, "update_every", 1)
        self.last_weights: Tensor
        # (T,) the last weights, NaN before the first
        self.register_buffer(
            "last_weights", torch.full((len(tasks),), torch.nan, dtype=torch.float64)
        )

    @classmethod
    def expand(
        cls, name: str, tasks: Sequence[Task], options: Settings
    ) -> list[tuple[str, Settings]]:
        """What an entry of a grid stands for: itself; a sweep is several balancers, by name and
        with options.
        """
        return [(name, options)]

    @abstractmethod
    def forward(self, step: Step) -> Tensor | SharedGradient:
        """Task weights (T,), 0 for idle tasks, or a direction.

        Weights of a ``simplex`` balancer sum to the number of active tasks, those of a ``native``
        one have the length that the method gives them.
        """

    def decide(self, step: Step) -> Tensor | SharedGradient:
        """The answer to a step: a new one in every ``update_every``-th step, and between them the
        last weights.

        New ones are made sooner for a task that was idle when they were, and when those of all
        active tasks are 0.
        """
        if self.update_every == 1:
            return self(step)
        held = self.last_weights[step.active]
        if step.index % self.update_every and held.any() and not held.isnan().any():
            weights = torch.where(step.active, self.last_weights, 0.0).to(step.losses)
            return on_simplex(weights, step.active) if self.scale == "simplex" else weights
        weights = self(step)
        self.last_weights = torch.where(
            step.active, weights.to(self.last_weights), self.last_weights
        )
        return weights

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load; a buffer that is (T, 0) until the first step makes it (T, P) takes the shape of the
        loaded one.
        """
        for name, value in self._buffers.items():
            loaded = state_dict.get(prefix + name)
            if value is None or loaded is None or value.shape[:1] != loaded.shape[:1]:
                continue
            if 0 in {value.numel(), loaded.numel()}:
                self._buffers[name] = value.new_zeros(loaded.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


@dataclass(frozen=True)
class GramProblem:
    """What a Gram-based method sees of a step; idle tasks are left out.

    Args:
        gram: (A, A) float64 inner products of the active tasks' gradients, finite and not all zero.
        losses: (A,) float64.
        tasks: (A,) positions of the active tasks among all.
        seed: Of the randomness of this step.
    """

    gram: np.ndarray
    losses: np.ndarray
    tasks: np.ndarray
    seed: tuple[int, ...]

    @property
    def rng(self) -> np.random.Generator:
        """The randomness of this step, from its start."""
        return np.random.default_rng(self.seed)


class GramBalancer(Balancer):
    """A balancer whose weights follow from the Gram matrix of the active tasks' gradients."""

    needs = "gram"

    @abstractmethod
    def solve(self, problem: GramProblem) -> np.ndarray:
        """(A,) weights of the active tasks; a ``simplex`` balancer may return any positive multiple
        of them.
        """

    def forward(self, step: Step) -> Tensor:
        return self.weigh(step, step.gramian())

    def weigh(self, step: Step, inner: Tensor) -> Tensor:
        """(T,) weights for inner products (T, T) that need not be the step's own, as when a method
        scales gradients.
        """
        tasks = np.flatnonzero(step.active.cpu().numpy())
        gram = inner.double().cpu().numpy()
        gram = gram if len(tasks) == len(gram) else gram[np.ix_(tasks, tasks)]
        weights = np.zeros(len(step.losses))
        weights[tasks] = 1
        if np.isfinite(gram).all() and gram.any():
            losses = step.losses.double().cpu().numpy()[tasks]
            weights[tasks] = self.solve(GramProblem(gram, losses, tasks, (step.seed, step.index)))
        if self.scale == "simplex":
            weights *= len(tasks) / max(weights.sum(), np.finfo(float).tiny)
        return torch.from_numpy(weights).to(step.losses)


def on_simplex(weights: Tensor, active: Tensor) -> Tensor:
    """Non-negative weights (T,), rescaled to sum to the number of active tasks; idle ones become 0."""
    weights = weights * active
    return weights * (active.sum() / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny))


def softmax_over(logits: Tensor, active: Tensor) -> Tensor:
    """The softmax of the active tasks' logits (T,); 0 for idle ones."""
    weights = torch.softmax(torch.where(active, logits, -torch.inf), 0)
    return torch.where(active, weights, 0.0)


def simplex_points(tasks: int, n: int) -> np.ndarray:
    """(n, tasks) positive weights that sum to 1, spread evenly; from three tasks on the first are
    equal.
    """
    if tasks == 1:
        return np.ones((1, 1))
    if tasks == 2:
        first = np.arange(1, n + 1) / (n + 1)
        return np.stack([first, 1 - first], 1)
    from scipy.stats import qmc  # here: it takes a second to import, and few runs need it

    spread = -np.log(qmc.Halton(tasks, scramble=False).random(n)[1:])  # the first point is 0
    return np.vstack([np.full(tasks, 1 / tasks), spread / spread.sum(1, keepdims=True)])


def per_task(name: str, values: Sequence[float], tasks: Sequence[Task], default: float) -> Tensor:
    """An option with one number a task, as (T,); the default for all when it was not given.

    Raises:
        UsageError: The numbers are not as many as the tasks.
    """
    if values and len(values) != len(tasks):
        names = ", ".join(task.name for task in tasks)
        raise UsageError(
            f"{name} needs one number for each of {names}.", f"{name}={':'.join('1' * len(tasks))}"
        )
    return torch.tensor(values or (default,) * len(tasks))


class Adam(nn.Module):
    """Adam (arXiv:1412.6980) on a small tensor of a balancer's own, with all of its state in
    buffers.

    Args:
        size: Length of the tensor.
        lr: Learning rate.
    """

    def __init__(self, size: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.mean: Tensor
        self.square: Tensor
        self.count: Tensor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("square", torch.zeros(size))
        self.register_buffer("count", torch.zeros(size))

    @torch.no_grad()
    def step(self, value: Tensor, grad: Tensor, active: Tensor) -> None:
        """Update ``value`` (T,) in place where ``active``; the rest and its state stay as they are."""
        grad = torch.where(active, grad, 0.0)
        self.count.add_(active)
        self.mean.copy_(torch.where(active, 0.9 * self.mean + 0.1 * grad, self.mean))
        self.square.copy_(torch.where(active, 0.999 * self.square + 0.001 * grad**2, self.square))
        count = self.count.clamp_min(1)
        mean, square = self.mean / (1 - 0.9**count), self.square / (1 - 0.999**count)
        value.sub_(torch.where(active, self.lr * mean / (square.sqrt() + 1e-8), 0.0))
