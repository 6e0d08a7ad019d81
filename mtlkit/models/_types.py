"""What goes into an architecture, and what comes out of it: batches, predictions and objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from mtlkit.ops.bags import Bags


@dataclass
class Batch:
    """Rows on one device.

    Args:
        ids: (B, F) int32, each counted from 0 within its feature.
        dense: (B, D) float32.
        labels: (B, T) float32.
        observed: (B, T) bool, or None when every label exists.
        weight: (B,) float32 row weights, or (B, T) for each task, or None for 1.
        bags: Feature name to the bags of the rows.
        embedding_output: (B, [copies,] D) x, where the embedding is already applied: a compiled
            model begins there.
        groups: Name to (B,) ids, of the groups that losses ask for.
    """

    ids: Tensor
    dense: Tensor
    labels: Tensor
    observed: Tensor | None = None
    weight: Tensor | None = None
    bags: dict[str, Bags] = field(default_factory=dict)
    embedding_output: Tensor | None = None
    groups: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def map(self, change: Callable[[Tensor], Tensor], of_bags: Callable[[Bags], Bags]) -> Batch:
        """The batch with every tensor of rows changed in one way, and all bags in another."""
        return Batch(
            change(self.ids),
            change(self.dense),
            change(self.labels),
            None if self.observed is None else change(self.observed),
            None if self.weight is None else change(self.weight),
            {name: of_bags(bags) for name, bags in self.bags.items()},
            groups={name: change(ids) for name, ids in self.groups.items()},
        )


@dataclass
class Prediction:
    """What is predicted for one task.

    Args:
        task: Task name.
        logits: (B,), or (B, C) for multiclass tasks and losses that need C logits a row.
        space: The rows on which the prediction means something; None for those on which the model's
            options train the task (``Architecture.space``).
        derived: Whether it follows from other predictions and has no loss of its own.
    """

    task: str
    logits: Tensor
    space: str | None = None
    derived: bool = False


@dataclass
class Objective:
    """A loss and the task it is charged to.

    Args:
        loss: Scalar.
        owner: Task name. Objectives are summed by owner before balancing.
        active: Scalar bool: whether any row of the batch had a label for it; None means yes.
        total: Scalar: the weight of the rows that the loss is a mean over; None for their number.
    """

    loss: Tensor
    owner: str
    active: Tensor | None = None
    total: Tensor | None = None
