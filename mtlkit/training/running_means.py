"""Mean losses and task weights between two evaluation points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mtlkit.training.step import LoopStep


class RunningMeans:
    """Sums over the steps since the last evaluation point.

    They stay on the device until that point: no step waits for it.

    Attributes:
        loss_sum: (T,) sum of the losses of active tasks.
        weight_sum: (T,) sum of the weights of active tasks.
        count: (T,) number of batches in which a task was active.
    """

    def __init__(self, tasks: int, device: torch.device) -> None:
        # side by side, so that a step is counted in by one sum
        self._sums = torch.zeros(3, tasks, device=device)
        self._ones = torch.ones(tasks, device=device)
        self._zero = torch.zeros((), device=device)
        self.loss_sum, self.weight_sum, self.count = self._sums

    def add(self, step: LoopStep, weights: Tensor) -> None:
        """Count a step in, with the task weights (T,) in effect."""
        counted = torch.stack([step.losses, weights, self._ones])  # (3, T)
        self._sums += torch.where(step.active, counted, self._zero)

    def clear(self) -> None:
        """Begin anew, in the same memory."""
        self._sums.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The sums."""
        return {"loss": self.loss_sum, "weight": self.weight_sum, "count": self.count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.loss_sum.copy_(state["loss"])
        self.weight_sum.copy_(state["weight"])
        self.count.copy_(state["count"])

    def losses(self) -> list[float | None]:
        """Mean loss of each task; 0 for one that was never active, None when not finite."""
        means = (self.loss_sum / self.count.clamp_min(1)).tolist()
        return [mean if math.isfinite(mean) else None for mean in means]

    def weights(self) -> Tensor:
        """(T,) mean weight while active; NaN for a task that never was."""
        return torch.where(self.count > 0, self.weight_sum / self.count, torch.nan)
