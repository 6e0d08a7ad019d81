"""Everything that a forward pass yields."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from mtlkit.models._boundary import Boundary, in_compiled_graph
from mtlkit.models._embedded_batch import EmbeddedBatch
from mtlkit.models._types import Prediction


@dataclass
class Output:
    """Everything a forward pass yields.

    Args:
        predictions: One a task, in the order of the schema.
        gates: Mixing weights (B, k) by name. The name is ``level-<n>/<reader>``: n counts from 1
            next to the input, and the reader is the task that is served, or ``shared``, ``all
            tasks`` or a group. Each row sums to 1, and ``Architecture.gate_experts`` names the k
            experts. Factors that are no mixture (sigmoid gates, stitches) are not listed.
        embedded: The embedded features as the layers read them; training finds the cuts there, at
            which the tables begin.
        representation: (B, D) the tensor of embedded features that all tasks read, by which task
            gradients are compared in a model without a boundary. By default all of x, or None
            where x was never formed; a model whose tasks share only a part of x sets it.
        further: Predictions of tasks in a second space, for scoring; the default objectives leave
            them alone.
        extra: What the model's own objectives need besides predictions.
        boundary: Where the tasks part, if the model names it: what they share there is their
            representation, and training computes their gradients one by one only below it.
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
        # No cuts either, which are tensors on the way to the losses.
        if in_compiled_graph():
            self.embedded = None
