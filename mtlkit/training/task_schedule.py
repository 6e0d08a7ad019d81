"""Which tasks take part in a step, and how fast the parameters of single tasks move."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit.data.types import Task
from mtlkit.settings import TrainingSettings
from mtlkit.training.sharing import SharedParameters
from mtlkit.training.sliced_parameter import SlicedParameter


class TaskSchedule:
    """How often each task takes part, and the learning rate of what it alone reaches.

    Args:
        settings: ``task_every`` and ``task_lr``, by the names of label columns.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        tasks: Sequence[Task],
        sharing: SharedParameters,
        device: torch.device,
    ) -> None:
        # Every how many steps each task takes part: (T,), or None where all always do.
        periods = [settings.task_every.get(task.label_name, 1) for task in tasks]
        self.periods = torch.tensor(periods, device=device) if max(periods) > 1 else None

        # The parameters whose learning rate has a factor other than 1, each with its factors.
        task_factors = [settings.task_lr.get(task.label_name, 1.0) for task in tasks]
        factors = torch.tensor(task_factors, device=device)  # (T,)
        self._rescaled: list[tuple[Tensor, Tensor]] = []
        for sliced in sharing.parameters:
            slice_factors = _slice_factors(sliced, factors)
            if (slice_factors != 1).any():
                self._rescaled.append((sliced.parameter.detach(), sliced.expand(slice_factors)))
        self._before: list[Tensor] = []

    def due(self, index: int) -> Tensor | None:
        """(T,) bool: the tasks that take part in a step; None for all."""
        return None if self.periods is None else index % self.periods == 0

    def before_step(self) -> None:
        """Remember the parameters whose learning rate has a factor."""
        self._before = [parameter.clone() for parameter, _ in self._rescaled]

    def after_step(self) -> None:
        """Lengthen or shorten what the optimiser did, as a factor on the learning rate would.

        The step of every optimiser is proportional to its learning rate.
        """
        for (parameter, factor), before in zip(self._rescaled, self._before, strict=True):
            parameter.copy_(torch.lerp(before, parameter, factor.expand_as(parameter)))


def _slice_factors(sliced: SlicedParameter, factors: Tensor) -> Tensor:
    """The factors (S,) on the learning rate of a parameter's slices, from those of tasks (T,).

    A slice that one task alone reaches has the factor of that task; others have 1.
    """
    of_only_task = (sliced.reached_by * factors[:, None]).sum(0)  # (S,)
    slice_factors = torch.where(sliced.shared, 1.0, of_only_task)
    return torch.where(sliced.reached_by.any(0), slice_factors, 1.0)
