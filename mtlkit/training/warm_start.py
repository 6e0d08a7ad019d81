"""Starting from the weights of an earlier run: fine-tuning, frozen modules, a task more or less."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtlkit.errors import UsageError
from mtlkit.models._architecture import Architecture
from mtlkit.training.sharing import SharedParameters
from mtlkit.training.sliced_parameter import SlicedParameter


@dataclass(frozen=True)
class WarmStart:
    """An earlier run's weights."""

    weights: Mapping[str, np.ndarray]  # parameters and buffers by name
    tasks: Sequence[str]  # the tasks of that run, in the order of its stacks
    freeze: Sequence[str] = ()  # patterns of parameter names that stay as they are

    def apply(self, model: Architecture, sharing: SharedParameters) -> list[str]:
        """Copy what fits into a model, and freeze what shall stay; returns sentences for the user.

        A parameter fits when it has the same name and shape. In a stack that has layers of single
        tasks (towers, gates, a task's own experts) tasks are matched by name, and those that the
        earlier run lacks keep their first weights.

        Args:
            sharing: Its sharing, which tells the layers of single tasks; frozen parameters are
                taken out of it.

        Raises:
            UsageError: Nothing fits, or a pattern matches nothing.
        """
        # Copy every tensor that fits.
        parameters = {sliced.name: sliced for sliced in sharing.parameters}
        not_filled = set()
        for name, target in model.state_dict().items():
            source = self.weights.get(name)
            filled = source is not None and self._copy(
                torch.from_numpy(source), target, parameters.get(name), sharing.tasks
            )
            if not filled:
                not_filled.add(name)

        # Buffers do not count: a model without a single fitting parameter is another model.
        new_parameters = [name for name in parameters if name in not_filled]
        if len(new_parameters) == len(parameters):
            raise UsageError(
                "No weight of the run to start from fits this model.",
                "mtlkit bench --init-from RUN --models MODEL, with the model of that run",
            )

        self._freeze(dict(model.named_parameters()))
        sharing.leave_out_frozen()
        if not new_parameters:
            return []
        return [f"new beside the run that it started from: {', '.join(new_parameters)}"]

    def _copy(
        self, source: Tensor, target: Tensor, sliced: SlicedParameter | None, tasks: Sequence[str]
    ) -> bool:
        """Copy one tensor; returns whether all of the target was filled."""
        # A stack of layers of single tasks is copied layer by layer if the tasks differ.
        if sliced is not None and sliced.axis is not None and tuple(tasks) != tuple(self.tasks):
            layers = self._matching_layers(source, target, sliced, tasks)
            if layers is not None:
                old, new = layers
                matching = source.index_select(sliced.axis, old).to(target)
                target.index_copy_(sliced.axis, new, matching)
                return len(new) == target.shape[sliced.axis]

        # Anything else is copied as a whole.
        if source.shape != target.shape:
            return False
        target.copy_(source)
        return True

    def _matching_layers(
        self, source: Tensor, target: Tensor, sliced: SlicedParameter, tasks: Sequence[str]
    ) -> tuple[Tensor, Tensor] | None:
        """Which layers of two stacks belong together.

        A stack holds a number of layers for each task, in task order, and shared ones at its end.

        Returns:
            Positions (n,) int64 in the source, and those of the same layers in the target; None if
            the stacks are not of this form.
        """
        axis = sliced.axis
        assert axis is not None
        if source.dim() != target.dim() or _without(source, axis) != _without(target, axis):
            return None

        # The layers of a task: a task more has that many layers more.
        old_count, new_count = len(self.tasks), len(tasks)
        more_layers = target.shape[axis] - source.shape[axis]
        if new_count != old_count:
            layers_per_task, rest = divmod(more_layers, new_count - old_count)
        else:
            # Sizes do not tell, but slices do. A level that all tasks read is copied as it is.
            of_first_task_alone = sliced.reached_by[0] & ~sliced.shared
            layers_per_task, rest = int(of_first_task_alone.sum()), more_layers
        shared_layers = source.shape[axis] - layers_per_task * old_count
        if rest or layers_per_task < 0 or shared_layers < 0:
            return None

        # Pair the layers of the tasks that both runs have, then the shared layers.
        pairs = []
        for new_task, name in enumerate(tasks):
            if name in self.tasks:
                old_task = list(self.tasks).index(name)
                for layer in range(layers_per_task):
                    old_position = old_task * layers_per_task + layer
                    new_position = new_task * layers_per_task + layer
                    pairs.append((old_position, new_position))
        for layer in range(shared_layers):
            old_position = old_count * layers_per_task + layer
            new_position = new_count * layers_per_task + layer
            pairs.append((old_position, new_position))
        old, new = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
        return old, new

    def _freeze(self, parameters: dict[str, torch.nn.Parameter]) -> None:
        """Freeze the parameters that match a pattern.

        Raises:
            UsageError: A pattern matches nothing, or nothing is left to train.
        """
        for name in frozen_names(list(parameters), self.freeze):
            parameters[name].requires_grad_(False)


def frozen_names(names: Sequence[str], patterns: Sequence[str], model: str = "") -> set[str]:
    """The parameters that match a pattern.

    Raises:
        UsageError: A pattern matches nothing, or nothing is left to train.
    """
    owner = f" of {model}" if model else ""
    frozen = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            modules = sorted({f"{name.partition('.')[0]}.*" for name in names})
            raise UsageError(
                f"No parameter{owner} matches the pattern {pattern!r} of freeze.",
                f"its parts are {', '.join(modules)}",
            )
        frozen.update(matched)
    if len(frozen) == len(names):
        raise UsageError(
            f"Everything{owner} is frozen, so there is nothing to train.", "--freeze 'embedding.*'"
        )
    return frozen


def _without(tensor: Tensor, axis: int) -> list[int]:
    """The sizes of a tensor's axes but one."""
    return [size for dim, size in enumerate(tensor.shape) if dim != axis]
