"""What goes into an architecture, and what comes out of it: batches, predictions, objectives and
gates.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtlkit.models._boundary import Boundary
from mtlkit.models._embedded_batch import EmbeddedBatch


@dataclass
class Batch:
    """Rows on one device.

    Args:
        ids: (B, F) int32, each counted from 0 within its feature.
        dense: (B, D) float32.
        labels: (B, T) float32.
        observed: (B, T) bool, or None when every label exists.
        weight: (B,) float32 row weights, or None for 1.
        bags: Feature name to (offsets (B + 1,), values (M,), weights (M,)).
        embedded: What the embedding makes of these rows, if it has been asked already.
    """

    ids: Tensor
    dense: Tensor
    labels: Tensor
    observed: Tensor | None = None
    weight: Tensor | None = None
    bags: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    embedded: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Prediction:
    """What is predicted for one task.

    Args:
        task: Task name.
        logits: (B,) for binary and regression tasks, (B, C) for multiclass ones.
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
    """

    loss: Tensor
    owner: str
    active: Tensor | None = None


@dataclass
class Output:
    """Everything a forward pass yields.

    Args:
        predictions: One a task, in the order of the schema.
        gates: Mixing weights (B, E) by name. The name is ``level-<n>/<reader>``: n counts from 1
            next to the input, and the reader is the task that is served, or what stands in its
            place (``shared``, ``all tasks``, a group). Each row sums to 1, and
            ``Architecture.gate_experts`` names the E experts. Factors that are no mixture (sigmoid
            gates, stitches) are not listed.
        embedded: The embedded features.
        representation: (B, D) the embedding output that tasks share, for models without a boundary;
            by default all of x, when it was materialised.
        further: Predictions of tasks in a second space, for scoring; the default objectives leave
            them alone.
        extra: What the model's own objectives need beside predictions.
        boundary: Where the tasks part, if the model says so: what they share there is their
            representation, and training takes their gradients apart no earlier.
    """

    predictions: list[Prediction]
    gates: dict[str, Tensor] = field(default_factory=dict)
    embedded: EmbeddedBatch | None = None
    representation: Tensor | None = None
    further: list[Prediction] = field(default_factory=list)
    extra: list[Tensor] = field(default_factory=list)
    boundary: Boundary | None = None

    def __post_init__(self) -> None:
        if self.representation is None and self.embedded is not None:
            self.representation = self.embedded.materialised
        if torch.compiler.is_compiling():
            self.embedded = None  # what a compiled graph gives back is not on the way to its losses
