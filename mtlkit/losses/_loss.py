"""The contract of a loss: logits and labels of a batch go in, a loss a row comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from mtlkit.data.types import Task
from mtlkit.losses._groups import RowGroups
from mtlkit.settings import Settings


class Loss(ABC):
    """A loss of one task.

    A task's loss in a batch is the weighted mean of its rows' losses over the rows that have a
    label. What a loss needs besides its own logit stands on the class, as literals: the schema of
    the data is read without it.

    Args:
        task: Whose labels they are.
        options: Validated options of this class.
    """

    class Options(Settings):
        weight: float = Field(1.0, gt=0, description="factor, where a task has several losses")

    kinds: ClassVar[tuple[str, ...]] = ("binary",)  # the kinds of tasks that have such labels

    outputs: ClassVar[int] = 1  # logits a row; of a multiclass task there is one a class

    stands_alone: ClassVar[bool] = False
    """Whether its logits mean something that no other loss can be added to."""

    least_label: ClassVar[float | None] = None
    """The least label, on the original scale, that it means something for; None for any."""

    def __init__(self, task: Task, options: Options) -> None:
        self.task = task
        self.options = options

    @property
    def group(self) -> str | None:
        """The column of the data whose values say which rows belong together, if it asks."""
        return None

    def prediction(self, logits: Tensor) -> Tensor:
        """What rows are ranked and measured by, of (B, ``outputs``) logits.

        A logit (B,) of a binary task, whose sigmoid is the probability; a label (B,) of a
        regression, on the scale of training. One logit a row is that by itself.
        """
        return logits

    @abstractmethod
    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each row.

        Args:
            logits: (B,), or (B, ``outputs``), or (B, C) of a multiclass task; float32 at least.
            labels: (B,), 0 where there is none.

        Returns:
            (B,), of any finite value where there is no label.
        """

    def __call__(
        self, logits: Tensor, labels: Tensor, mask: Tensor | None, groups: Mapping[str, Tensor]
    ) -> Tensor:
        """The loss of each row (B,); ``mask`` (B,) says which have a label, None that all have."""
        del mask, groups
        return self.rows(logits, labels)


class GroupLoss(Loss):
    """A loss that compares the rows of a session, or of another group, with each other.

    Rows without a label are in no group. Rows of a batch need not be in any order.
    """

    class Options(Loss.Options):
        within: str = Field(
            "session", description="group of the data whose rows are compared: session, user, ..."
        )

    options: Options

    @property
    def group(self) -> str:
        return self.options.within

    def rows(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each row (B,) where all rows are one group."""
        return self.group_rows(logits, labels, RowGroups(torch.zeros_like(labels), None))

    @abstractmethod
    def group_rows(self, logits: Tensor, labels: Tensor, groups: RowGroups) -> Tensor:
        """The loss of each row (B,), as :meth:`rows` returns it."""

    def __call__(
        self, logits: Tensor, labels: Tensor, mask: Tensor | None, groups: Mapping[str, Tensor]
    ) -> Tensor:
        return self.group_rows(logits, labels, RowGroups(groups[self.group], mask))
