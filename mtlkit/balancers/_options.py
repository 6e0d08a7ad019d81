"""Options that hold one number a task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit.data.types import Task
from mtlkit.errors import UsageError


def per_task(name: str, values: Sequence[float], tasks: Sequence[Task], default: float) -> Tensor:
    """An option with one number a task, as (T,); the default for all when it was not given.

    Raises:
        UsageError: The numbers are not as many as the tasks.
    """
    if values and len(values) != len(tasks):
        names = ", ".join(task.name for task in tasks)
        raise UsageError(
            f"{name} needs one number for each of {names}.", f"{name}={':'.join('1' * len(tasks))}"
        )
    return torch.tensor(values or (default,) * len(tasks))
