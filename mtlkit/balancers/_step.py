"""What passes between a training loop and a balancer: a step, and a direction in answer to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Scope = Literal["dense", "all", "representation"]


class Step(Protocol):
    """What a balancer may ask about the batch at hand.

    Nothing is computed before it is asked for. Task gradients are kept, so that asking again for
    the same ``gramian`` or ``jacobian`` takes no further backward pass; asking again for
    ``grad_norms`` may take one. Each call of ``fresh_batch`` draws another batch.

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
        """(T, T) float64 inner products of task gradients over the shared parameters of a scope."""

    def jacobian(self, scope: Scope | None = None) -> Tensor:
        """(T, P) task gradients over the shared parameters of a scope, zero where a task does not
        reach.

        A balancer that asks for those of the representation has ``needs = "rows"``.
        """

    def jacobian_columns(self, scope: Scope | None = None) -> dict[str, slice]:
        """Each shared parameter tensor and its columns of ``jacobian``.

        Keys are names in the model, or, in a plain loop, positions among the shared parameters as
        text.
        """

    def grad_norms(self, part: str) -> Tensor:
        """(T,) gradient norms over one parameter tensor of ``jacobian_columns``, or over
        ``"last"``, the last shared weight.
        """

    def fresh_batch(self) -> Step:
        """The same questions about an independent batch, at the same parameters."""

    def after_step(self, callback: Callable[[Tensor], None]) -> None:
        """Have a function called with the (T,) losses on this batch after the optimiser's step."""


@dataclass(frozen=True)
class SharedGradient:
    """A gradient for the shared parameters of a scope that is no weighted sum of task gradients.

    Args:
        vector: (P,) in the order of the columns of ``Step.jacobian``. Parameters outside the scope
            receive weights of 1.
        scope: The scope of those columns.
    """

    vector: Tensor
    scope: Scope | None = None
