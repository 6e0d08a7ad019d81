"""Starting from the weights of an earlier run: fine-tuning, parts that stay as they are, a task
more or less.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtlkit.errors import UsageError
from mtlkit.models._architecture import Architecture
from mtlkit.training.parameter_slices import ParameterSlices
from mtlkit.training.sharing import SharedParameters


@dataclass(frozen=True)
class WarmStart:
    """An earlier run's weights.

    Args:
        weights: Parameters and buffers by name.
        tasks: Its tasks, in the order of its stacks.
        freeze: Patterns of parameter names that stay as they are.
    """

    weights: Mapping[str, np.ndarray]
    tasks: Sequence[str]
    freeze: Sequence[str] = ()

    def apply(self, model: Architecture, sharing: SharedParameters) -> list[str]:
        """Copy what fits into a model, and freeze what shall stay.

        A parameter fits when it has the same name and shape. In a stack that has layers of single
        tasks (towers, gates, a task's own experts) tasks are matched by name, and those that the
        earlier run lacks keep their first weights.

        Args:
            model: Freshly initialised.
            sharing: Its sharing, which tells the layers of single tasks; frozen parameters are
                taken out of it.

        Returns:
            Sentences for the user.

        Raises:
            UsageError: Nothing fits, or a pattern matches nothing.
        """
        slices = {item.name: item for item in sharing.slices}
        left = []
        for name, value in model.state_dict().items():
            source = self.weights.get(name)
            if source is None or not self._copy(
                torch.from_numpy(source), value, slices.get(name), sharing.tasks
            ):
                left.append(name)
        fresh = [name for name in slices if name in left]
        if len(fresh) == len(slices):
            raise UsageError(
                "No weight of the run to start from fits this model.",
                "mtlkit bench --init-from RUN --models MODEL, with the model of that run",
            )
        self._freeze(dict(model.named_parameters()))
        sharing.slices = [item for item in sharing.slices if item.parameter.requires_grad]
        return [f"new beside the run that it started from: {', '.join(fresh)}"] if fresh else []

    def _copy(
        self, source: Tensor, target: Tensor, item: ParameterSlices | None, tasks: Sequence[str]
    ) -> bool:
        """Copy one tensor; returns whether all of the target was filled."""
        places = None
        if item is not None and item.axis is not None and tuple(tasks) != tuple(self.tasks):
            places = self._places(source, target, item, tasks)
        if places is None or item is None or item.axis is None:
            if source.shape == target.shape:
                target.copy_(source)
            return source.shape == target.shape
        old, new = places
        target.index_copy_(item.axis, new, source.index_select(item.axis, old).to(target))
        return len(new) == target.shape[item.axis]

    def _places(
        self, source: Tensor, target: Tensor, item: ParameterSlices, tasks: Sequence[str]
    ) -> tuple[Tensor, Tensor] | None:
        """Where to copy from and to in a stack of ``each`` layers a task, in task order, and shared
        ones at its end.
        """
        assert item.axis is not None
        rest = [
            [size for dim, size in enumerate(part.shape) if dim != item.axis]
            for part in (source, target)
        ]
        if source.dim() != target.dim() or rest[0] != rest[1]:
            return None
        more = target.shape[item.axis] - source.shape[item.axis]
        if len(tasks) != len(self.tasks):
            each, odd = divmod(more, len(tasks) - len(self.tasks))
        else:  # sizes do not tell; a level that all tasks read is copied as it is
            each, odd = int((item.reached_by[0] & ~item.shared).sum()), more
        shared = source.shape[item.axis] - each * len(self.tasks)
        if odd or each < 0 or shared < 0:
            return None
        common = [
            (list(self.tasks).index(name), t) for t, name in enumerate(tasks) if name in self.tasks
        ]
        pairs = [(i * each + k, t * each + k) for i, t in common for k in range(each)]
        pairs += [(len(self.tasks) * each + k, len(tasks) * each + k) for k in range(shared)]
        old, new = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
        return old, new

    def _freeze(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        for pattern in self.freeze:
            matched = fnmatch.filter(parameters, pattern)
            if not matched:
                parts = sorted({f"{name.partition('.')[0]}.*" for name in parameters})
                raise UsageError(
                    f"No parameter matches the pattern {pattern!r} of freeze.",
                    f"its parts are {', '.join(parts)}",
                )
            for name in matched:
                parameters[name].requires_grad_(False)
        if not any(value.requires_grad for value in parameters.values()):
            raise UsageError(
                "Everything is frozen, so there is nothing to train.", "--freeze 'embedding.*'"
            )
