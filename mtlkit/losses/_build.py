"""From the names of a task's losses to functions of logits and labels, and to what it predicts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mtlkit.data.types import Task, loss_spec
from mtlkit.losses._loss import Loss
from mtlkit.registry import LOSSES
from mtlkit.settings import validate
from mtlkit.spec import Spec


@dataclass(frozen=True)
class TaskLoss:
    """The losses of a task, which are added up."""

    losses: tuple[Loss, ...]  # one or more
    main: Loss  # the one whose logits the model gives; the others see its prediction

    @property
    def groups(self) -> set[str]:
        """The columns that the losses ask for."""
        return {loss.group for loss in self.losses if loss.group is not None}

    def rows(
        self, logits: Tensor, labels: Tensor, mask: Tensor | None, groups: Mapping[str, Tensor]
    ) -> Tensor:
        """The summed losses of each row (B,), in float32 at least.

        Args:
            logits: (B,) or (B, C).
            labels: (B,), 0 where there is none.
            mask: (B,) bool, whether a row has a label; None: all have.
            groups: (B,) ids of the groups that the losses ask for.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        first, *others = [self._rows(loss, logits, labels, mask, groups) for loss in self.losses]
        return sum(others, first)

    def _rows(
        self,
        loss: Loss,
        logits: Tensor,
        labels: Tensor,
        mask: Tensor | None,
        groups: Mapping[str, Tensor],
    ) -> Tensor:
        if loss.outputs != self.main.outputs:
            logits = self.main.prediction(logits)
        values = loss(logits, labels, mask, groups)
        return values if loss.options.weight == 1 else loss.options.weight * values


@functools.lru_cache(maxsize=4096)
def build_loss(task: Task) -> TaskLoss:
    """The losses of a task.

    Raises:
        UsageError: A loss or an option of it does not exist.
    """
    losses = tuple(_build(text, task) for text in task.losses)
    return TaskLoss(losses, max(losses, key=lambda loss: loss.outputs))


def prediction(task: Task, logits: Tensor) -> Tensor:
    """What rows are ranked and measured by, of a model's logits of a task: (B,), or (B, C) of a
    multiclass task, in float32 at least.

    Args:
        task: Whose losses say what the logits mean.
        logits: (B,) or (B, C).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return build_loss(task).main.prediction(logits)


def canonical(texts: Sequence[str]) -> list[str]:
    """Losses with all their options, as a cell's key holds them.

    Raises:
        UsageError: A loss or an option of it does not exist.
    """
    specs = [loss_spec(text) for text in texts]
    return [str(Spec(spec.name, _options(spec).model_dump(mode="json"))) for spec in specs]


def _build(text: str, task: Task) -> Loss:
    spec = loss_spec(text)
    loss: Loss = LOSSES.load(spec.name)(task, _options(spec))
    return loss


def _options(spec: Spec) -> Loss.Options:
    options_class: type[Loss.Options] = LOSSES.load(spec.name).Options
    return validate(options_class, spec.options, f"loss {spec.name}")
