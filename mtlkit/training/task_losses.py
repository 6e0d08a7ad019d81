"""From objectives to one loss a task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit.models._types import Objective


def owner_losses(objectives: Sequence[Objective], tasks: Sequence[str]) -> list[Tensor]:
    """Losses summed by the task they are charged to, in task order; a task without any has a
    constant 0.
    """
    zero = torch.zeros_like(
        objectives[0].loss
    )  # not loss * 0, which would spread an infinite loss to all tasks
    return [sum((o.loss for o in objectives if o.owner == task), start=zero) for task in tasks]


def owner_active(
    objectives: Sequence[Objective], tasks: Sequence[str], device: torch.device
) -> Tensor:
    """(T,) bool: which tasks own an objective for which the batch has a label."""
    if all(o.active is None for o in objectives) and {o.owner for o in objectives} == set(tasks):
        return torch.ones(len(tasks), dtype=torch.bool, device=device)
    out = []
    for task in tasks:
        own = [o.active for o in objectives if o.owner == task]
        masks = [a for a in own if a is not None]
        certain = torch.tensor(len(masks) < len(own), device=device)
        out.append(torch.stack([certain, *masks]).any())
    return torch.stack(out)
