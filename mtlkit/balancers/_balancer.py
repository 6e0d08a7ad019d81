"""The contract of a balancer: it sees one step and answers with weights or a direction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.balancers._plain_step import (
    PlainStep,
    accumulate_direction,
    accumulate_weighted,
    scalar_losses,
)
from mtlkit.balancers._simplex import on_simplex
from mtlkit.balancers._step import Scope, SharedGradient, Step
from mtlkit.data.types import Task
from mtlkit.errors import MtlkitError, UsageError
from mtlkit.settings import Settings

MAX_WEIGHT = 1e18
"""Above it, squares of gradients overflow float32, and an optimiser that divides by their root,
such as adam, makes no step at all.
"""

TOLERANCE = 1e-4  # of sums and signs: above rounding errors, below what a learning rate would show


Need = Literal["losses", "norms", "gram", "rows"]
Scale = Literal["simplex", "native"]


class Balancer(nn.Module, ABC):
    """Weighs the tasks at each step. Its state lives in buffers, so ``state_dict`` holds all of it.

    A loop asks :meth:`decide`, which checks or mends each answer of :meth:`forward`, so that:

    - Weights are a floating tensor (T,), a direction one (P,). Anything else is an error.
    - Idle tasks weigh 0.
    - Weights are not negative, unless the class is ``signed``.
    - Weights of a ``simplex`` balancer sum to the number of active tasks. Weights with another sum
      are rescaled.

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
        on_scale: Whether :meth:`forward` gives idle tasks 0, and all weights the sum that ``scale``
            promises, by itself. On a CPU its answers are looked at all the same; on a GPU, where
            nothing can be looked at without a wait, those of others are mended in every step. It
            is said of one :meth:`forward`: a class that writes its own says it again.
        constant_weights: Whether its weights are the same in all steps.
        same_every_step: Whether all steps do the same with tensors, whatever their number: nothing
            is drawn, read on the host, or done after a step. A CUDA graph asks for that.
        weights_option: The option that holds those weights, in a method that is a point of a sweep.
        same_as: Families of ``mtlkit.equivalences`` that it is a member of, each with the options
            that it must have. Like the two before, it is read from the source and must be a
            literal.
        search_space: Option to the range in which ``mtlkit bench --tune`` looks for its value, as
            ``mtlkit.grid.spaces`` says; a literal, too.
    """

    class Options(Settings):
        update_every: int = Field(1, gt=0, description="steps for which weights are used again")

    needs: ClassVar[Need] = "losses"
    scale: ClassVar[Scale] = "simplex"
    signed: ClassVar[bool] = False
    scopes: ClassVar[tuple[Scope, ...]] = ("dense", "all", "representation")
    on_scale: ClassVar[bool] = False
    constant_weights: ClassVar[bool] = False
    same_every_step: ClassVar[bool] = False
    weights_option: ClassVar[str | None] = None
    same_as: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    search_space: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init_subclass__(cls) -> None:
        """Look that a method declares only what there is."""
        super().__init_subclass__()
        if "forward" in vars(cls) and "on_scale" not in vars(cls):
            cls.on_scale = False
        for name, choices in (("needs", get_args(Need)), ("scale", get_args(Scale))):
            if getattr(cls, name) not in choices:
                given = getattr(cls, name)
                raise TypeError(f"{cls.__name__}.{name} is {given!r}, not one of {choices}")
        if not set(cls.scopes) <= set(get_args(Scope)):
            raise TypeError(f"{cls.__name__}.scopes is {cls.scopes}, not some of {get_args(Scope)}")

    def __init__(self, tasks: Sequence[Task], options: Settings) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.options = options
        self.update_every: int = getattr(options, "update_every", 1)
        # (T,) the last weights, NaN before the first
        self.last_weights: Tensor = nn.Buffer(
            torch.full((len(tasks),), torch.nan, dtype=torch.float64)
        )
        # number of calls of `backward`
        self.plain_steps: Tensor = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self._after_step: list[Callable[[Tensor], None]] = []

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
        """The answer to a step, as the contract wants it: a new one in every ``update_every``-th
        step, and between them the last weights.

        New ones are made sooner for a task that was idle when they were, and when those of all
        active tasks are 0.

        Raises:
            MtlkitError: The answer is no weights (T,) and no direction (P,), or has a weight that
                is not finite or too large, or a negative one that the class does not declare.
        """
        # between the steps that make weights, the last ones, if they say something about each task
        if self.update_every > 1 and step.index % self.update_every:
            last = self.last_weights[step.active]
            if last.any() and not last.isnan().any():
                return self._last_weights(step)

        decision = self(step)
        self._check_form(decision)
        if isinstance(decision, SharedGradient):
            return decision

        self._check_size(decision, step)
        weights = self._on_scale(decision, step.active)
        self._check_signs(weights, step)

        # an idle task keeps the weight that it had
        if self.update_every > 1:
            self.last_weights = torch.where(
                step.active, weights.to(self.last_weights), self.last_weights
            )
        return weights

    def _last_weights(self, step: Step) -> Tensor:
        """The last weights of the tasks that are active now, rescaled in double precision."""
        weights = torch.where(step.active, self.last_weights, 0.0)
        if self.scale == "simplex":
            weights = on_simplex(weights, step.active)
        return weights.to(step.losses)

    def _check_form(self, decision: Tensor | SharedGradient) -> None:
        """Raise for an answer of another type, shape or dtype; no number is read."""
        name = type(self).__name__
        count = len(self.tasks)
        values = decision.vector if isinstance(decision, SharedGradient) else decision
        hint = f"return a floating tensor of shape ({count},) from forward, or a SharedGradient"
        if not isinstance(values, Tensor):
            raise MtlkitError(
                f"{name} answered a step with {type(values).__name__}, not with a tensor.", hint
            )
        if not values.is_floating_point():
            raise MtlkitError(f"{name} answered a step with numbers of {values.dtype}.", hint)
        if isinstance(decision, SharedGradient):
            if values.dim() != 1:
                raise MtlkitError(
                    f"{name} gave a direction of shape {tuple(values.shape)}.",
                    "a direction has shape (P,), like a row of step.jacobian()",
                )
        elif values.shape != (count,):
            raise MtlkitError(
                f"{name} gave weights of shape {tuple(values.shape)} for {count} tasks.", hint
            )

    def _check_size(self, weights: Tensor, step: Step) -> None:
        """Raise for an active task's weight that is not finite, or too large to train with.

        After a loss that is not finite nothing else can be expected: the loop tells of that.
        """
        if not self._may_read(weights, step):
            return
        values = weights.tolist()
        if all(abs(value) <= MAX_WEIGHT for value in values):  # false for NaN
            return
        active, losses = step.active.tolist(), step.losses.tolist()
        for value, on, loss in zip(values, active, losses, strict=True):
            if on and math.isfinite(loss) and not abs(value) <= MAX_WEIGHT:
                raise MtlkitError(
                    f"{type(self).__name__} gave a task the weight {value:.3g}.",
                    f"weights must be finite and at most {MAX_WEIGHT:g}; if this came late in a "
                    "run, try a smaller lr",
                )

    @staticmethod
    def _may_read(weights: Tensor, step: Step) -> bool:
        """Whether numbers may be looked at. On a CPU they can be read for nothing; those of another
        device would have to be waited for, so that they are read in the first step alone.
        """
        return weights.is_cpu or step.index == 0

    def _check_signs(self, weights: Tensor, step: Step) -> None:
        """Raise for negative weights of a class that is not ``signed``."""
        if self.signed or not self._may_read(weights, step):
            return
        values = weights.tolist()
        lowest = min(values)
        if lowest < 0 and lowest < -TOLERANCE * max(values):
            raise MtlkitError(
                f"{type(self).__name__} gave a task the weight {lowest:.3g}.",
                "a class with negative weights declares signed = True",
            )

    def _on_scale(self, weights: Tensor, active: Tensor) -> Tensor:
        """Weights (T,) with 0 for idle tasks and the sum that ``scale`` promises.

        Weights that keep the contract stay as they are, to the last digit.
        """
        # numbers on a CPU can be read for nothing, and there is rarely something to mend
        if weights.is_cpu and self._keeps_contract(weights.tolist(), active.tolist()):
            return weights

        # on other devices: arithmetic alone, so that nothing is waited for, and only where needed
        if self.on_scale and not weights.is_cpu:
            return weights
        weights = torch.where(active, weights, 0.0)
        if self.scale == "native":
            return weights
        count = active.sum()
        exact = (weights.sum() - count).abs() <= TOLERANCE * count
        return torch.where(exact, weights, on_simplex(weights, active))

    def _keeps_contract(self, weights: list[float], active: list[bool]) -> bool:
        idle_are_zero = all(on or weight == 0 for weight, on in zip(weights, active, strict=True))
        if self.scale == "native":
            return idle_are_zero
        count = sum(active)
        return idle_are_zero and abs(sum(weights) - count) <= TOLERANCE * count

    def backward(
        self,
        losses: Sequence[Tensor] | Tensor,
        shared_parameters: Iterable[nn.Parameter],
        retain_graph: bool = False,
    ) -> Tensor:
        """Weigh the losses of a batch and add the gradient to ``grad``, in any training loop.

        It takes the place of ``loss.backward()``. Parameters outside ``shared_parameters`` get the
        gradient of the weighted loss as well. There a negative weight counts as 0: it would only
        make the loss of that task larger. Under a direction, all tasks weigh 1 there.

        Args:
            losses: T scalars in the order of the tasks, or a tensor (T,). A task whose loss needs
                no gradient is idle: the batch has no label of it.
            shared_parameters: The parameters that several tasks reach, whose task gradients are
                compared; in the order of the model, as the last matrix counts as the last layer.
            retain_graph: Whether the graph is kept for another backward pass.

        Returns:
            (T,) task weights; ones for a direction.

        Raises:
            UsageError: The losses are not one scalar a task, none needs a gradient, the method
                needs something that a plain loop cannot give, or ``after_step`` was left out.
            MtlkitError: As :meth:`decide`.

        Examples:
            >>> import torch
            >>> from mtlkit.balancers._build import build
            >>> trunk, heads = torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)
            >>> losses = (heads(trunk(torch.ones(5, 4))) ** 2).mean(0)  # (T,)
            >>> weights = build("uniform", tasks=2).backward(losses, trunk.parameters())
            >>> weights
            tensor([1., 1.])
        """
        if self._after_step:
            raise UsageError(
                f"{type(self).__name__} waits for the losses after the optimiser's step.",
                "call balancer.after_step(losses) on the same batch before the next backward",
            )
        step = PlainStep(self.tasks, losses, shared_parameters, index=int(self.plain_steps))
        weights = self._accumulate(step, self.decide(step), retain_graph)
        self._after_step = step.callbacks
        self.plain_steps.add_(1)
        return weights

    def _accumulate(
        self, step: PlainStep, decision: Tensor | SharedGradient, retain_graph: bool
    ) -> Tensor:
        """Add the gradient that a decision means to ``grad``; the weights (T,) in effect."""
        # a direction is for the shared parameters alone; tasks weigh 1 in all others
        if isinstance(decision, SharedGradient):
            weights = torch.ones_like(step.losses)
            accumulate_direction(step, decision.vector, weights, retain_graph)
        # negative weights are for the shared parameters alone
        elif self.signed:
            weights = decision
            direction = weights.to(step.losses) @ step.jacobian()
            accumulate_direction(step, direction, weights.clamp_min(0), retain_graph)
        else:
            weights = decision
            accumulate_weighted(step, weights, retain_graph)
        return weights

    def after_step(self, losses: Sequence[Tensor] | Tensor) -> None:
        """Tell a method such as famo the losses of the batch of the last :meth:`backward`, computed
        again after the optimiser's step. For any other method it does nothing.
        """
        callbacks, self._after_step = self._after_step, []
        if callbacks:
            values = torch.stack([loss.detach() for loss in scalar_losses(losses)])  # (T,)
            for callback in callbacks:
                callback(values)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load; a buffer that the first step replaces, by one of another shape (T, P) instead of
        (T, 0) or of another type, takes those of the loaded one.
        """
        for name, value in self._buffers.items():
            loaded = state_dict.get(prefix + name)
            if value is None or loaded is None or value.shape[:1] != loaded.shape[:1]:
                continue
            is_other_type = value.dtype != loaded.dtype and value.shape == loaded.shape
            if 0 in {value.numel(), loaded.numel()} or is_other_type:
                self._buffers[name] = torch.zeros_like(loaded, device=value.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


@dataclass(frozen=True)
class GramProblem:
    """What a Gram-based method sees of a step; idle tasks are left out.

    Args:
        gramian: (A, A) float64 inner products of the active tasks' gradients, finite and not all
            zero.
        losses: (A,) float64.
        tasks: (A,) positions of the active tasks among all.
        seed: Of the randomness of this step.
    """

    gramian: np.ndarray
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
    on_scale = True

    @abstractmethod
    def solve(self, problem: GramProblem) -> np.ndarray:
        """(A,) weights of the active tasks; a ``simplex`` balancer may return any positive multiple
        of them.
        """

    def forward(self, step: Step) -> Tensor:
        return self.weigh(step, step.gramian())

    @staticmethod
    def pack(step: Any, gramian: Tensor) -> Tensor:
        """(..., T, T + 2) float64: inner products, losses, and 1 for active tasks."""
        losses, active = step.losses.double(), step.active.double()
        return torch.cat([gramian.double(), losses[..., None], active[..., None]], -1)

    def weigh(self, step: Step, gramian: Tensor) -> Tensor:
        """(T,) weights for inner products (T, T) that a method may have scaled."""
        # one copy to the host, for which a GPU waits
        packed = self.pack(step, gramian).cpu().numpy()
        inner_products, losses, active = packed[:, :-2], packed[:, -2].copy(), packed[:, -1]

        # leave out idle tasks
        tasks = np.flatnonzero(active)
        if len(tasks) < len(losses):
            inner_products = inner_products[np.ix_(tasks, tasks)]
            losses = losses[tasks]
        inner_products = np.ascontiguousarray(inner_products)

        # equal weights where the gradients say nothing: all are zero, or one is not finite
        weights = np.zeros(len(step.losses))
        weights[tasks] = 1
        if np.isfinite(inner_products).all() and inner_products.any():
            seed = (step.seed, step.index)
            weights[tasks] = self.solve(GramProblem(inner_products, losses, tasks, seed))

        # rescaled here, in float64: `_on_scale` would do it in the precision of the losses
        if self.scale == "simplex":
            weights *= len(tasks) / max(weights.sum(), np.finfo(float).tiny)
        return torch.from_numpy(weights).to(step.losses)
