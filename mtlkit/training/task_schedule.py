"""A pace for each task: how often it takes part, and how fast its own parameters move."""

from __future__ import annotations

import torch
from torch import Tensor

from mtlkit.settings import TrainingSettings
from mtlkit.training.sharing import SharedParameters


class TaskSchedule:
    """The pace of all tasks of a run.

    Args:
        settings: ``task_every`` and ``task_lr``.
        sharing: Which task reaches which parameter.
        device: Where the model is.
    """

    def __init__(
        self, settings: TrainingSettings, sharing: SharedParameters, device: torch.device
    ) -> None:
        every = [settings.task_every.get(name, 1) for name in sharing.tasks]
        self.every = torch.tensor(every, device=device) if max(every) > 1 else None
        factors = torch.tensor(
            [settings.task_lr.get(name, 1.0) for name in sharing.tasks], device=device
        )
        self._slowed: list[tuple[Tensor, Tensor]] = []
        for item in sharing.slices:
            own = torch.where(item.shared, 1.0, (item.reached_by * factors[:, None]).sum(0))
            own = torch.where(item.reached_by.any(0), own, 1.0)  # (S,)
            if (own != 1).any():
                self._slowed.append((item.parameter.detach(), item.expand(own)))
        self._before: list[Tensor] = []

    def due(self, index: int) -> Tensor | None:
        """(T,) bool: the tasks that take part in a step; None for all."""
        return None if self.every is None else index % self.every == 0

    def before_step(self) -> None:
        """Remember the parameters that move at a pace of their own."""
        self._before = [parameter.clone() for parameter, _ in self._slowed]

    def after_step(self) -> None:
        """Lengthen or shorten the optimiser's step, which is proportional to the learning rate, by
        their factors.
        """
        for (parameter, factor), before in zip(self._slowed, self._before, strict=True):
            parameter.copy_(torch.lerp(before, parameter, factor.expand_as(parameter)))
