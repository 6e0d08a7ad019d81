"""From objectives to one loss a task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit.models._types import Objective


def owner_losses(objectives: Sequence[Objective], tasks: Sequence[str]) -> list[Tensor]:
    """T scalars: losses summed by the task that they are charged to, in task order.

    A task without an objective has a constant 0.
    """
    task_losses = []
    for task in tasks:
        losses = [objective.loss for objective in objectives if objective.owner == task]
        if not losses:
            # not loss * 0, which would spread an infinite loss to all tasks
            losses = [torch.zeros_like(objectives[0].loss)]
        task_losses.append(sum(losses[1:], start=losses[0]))
    return task_losses


def owner_active(
    objectives: Sequence[Objective], tasks: Sequence[str], all_active: Tensor
) -> Tensor:
    """(T,) bool, which tasks own an objective for which the batch has a label; ``all_active``
    itself where it holds.

    Args:
        all_active: (T,) True on the device, made once.
    """
    # the usual case, for which the device need not compute anything
    all_have_labels = all(objective.active is None for objective in objectives)
    if all_have_labels and {objective.owner for objective in objectives} == set(tasks):
        return all_active

    # an objective without a mask has a label in every row
    active = []
    for task in tasks:
        masks = [objective.active for objective in objectives if objective.owner == task]
        known = [mask for mask in masks if mask is not None]
        if len(known) < len(masks) or not masks:
            known = [all_active[0] if masks else ~all_active[0]]
        active.append(torch.stack(known).any())
    return torch.stack(active)
