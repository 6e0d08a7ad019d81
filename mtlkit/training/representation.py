"""Task gradients by the representation: what the tasks share where they part.

That is the trunk's output (of experts or of a bottom) in models that name a boundary, as in MGDA-UB
(Sener & Koltun, arXiv:1810.04650), and the embedding output in all others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mtlkit.models._boundary import TensorBoundary
from mtlkit.models._output import Output
from mtlkit.training.sharing import SharedParameters
from mtlkit.training.sliced_parameter import differentiate, without_none
from mtlkit.training.task_gradients import TaskGradients


@dataclass
class Representation:
    """The representation of one step's batch."""

    sharing: SharedParameters
    output: Output
    gradients: TaskGradients
    passes: int = 0  # backward passes so far, beside those of ``gradients``
    _jacobian: Tensor | None = None

    def gramian(self) -> Tensor:
        """(T, T) float64 inner products of the task gradients by the representation."""
        boundary = self.output.boundary
        if self.sharing.has_boundary and boundary is not None:
            # the gradients by the trunk's output are outer products, which need not be formed
            return boundary.gramian(self.gradients.at_boundary())
        rows = self.jacobian().double()
        return rows @ rows.T

    def jacobian(self) -> Tensor:
        """(T, P) task gradients by the representation, computed once."""
        if self._jacobian is None:
            self._jacobian = self._compute_jacobian()
        return self._jacobian

    def _compute_jacobian(self) -> Tensor:
        boundary = self.output.boundary
        if self.sharing.has_boundary and isinstance(boundary, TensorBoundary):
            trunk_grads, _ = boundary.vjp(self.gradients.at_boundary())
            return trunk_grads.flatten(1)
        x = self._embedding_output()
        losses = self.gradients.losses
        self.passes += len(losses)
        rows = []
        for loss in losses:
            (grad,) = differentiate(loss, [x])
            rows.append(torch.zeros_like(x) if grad is None else grad)
        return torch.stack(rows).flatten(1)

    def parameter_gradients(self, vector: Tensor, gate_weights: Tensor) -> dict[str, Tensor]:
        """What a gradient of the representation means for the parameters that it is made of.

        Args:
            vector: (P,) the gradient.
            gate_weights: (T,) what the gates of each task go on with.
        """
        if self.sharing.has_boundary:
            return self.gradients.below_boundary(vector, gate_weights)
        x = self._embedding_output()
        self.passes += 1
        parameters = self.sharing.parameters
        return without_none(parameters, self.gradients.values(x, parameters, vector.view_as(x)))

    def _embedding_output(self) -> Tensor:
        """(B, D), the representation of a model without a boundary."""
        x = self.output.representation
        assert x is not None, "the representation was not materialised"
        assert not self.sharing.has_boundary, "the representation is the trunk's output, not x"
        return x
