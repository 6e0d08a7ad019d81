"""The contract of an architecture: a batch goes in, predictions, objectives and gates come out."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtlkit.data.types import ALL_ROWS, Schema, Task, rows_with
from mtlkit.models._embedding import FastPaths, FieldEmbedding
from mtlkit.models._funnel import NO_FUNNEL, funnel_columns, labels_in
from mtlkit.models._initial import glorot
from mtlkit.models._losses import task_loss
from mtlkit.models._options import BaseOptions, ModelOptions
from mtlkit.models._types import Batch, Objective, Output, Prediction


class _Initialised(ABCMeta):
    """Gives every architecture, once it is built, the initial layers of its option ``init``."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        model = super().__call__(*args, **kwargs)
        if model.options.init == "xavier":
            glorot(model)
        return model


class Architecture(nn.Module, metaclass=_Initialised):
    """A multi-task model.

    Sub-modules are registered in the order in which data flows through them, the embedding under
    the name
    ``embedding``: probes name parts of the model after them, and the last shared weight is the last
    registered one.

    Args:
        schema: Features and tasks of the data.
        options: Validated options of this class.
    """

    class Options(BaseOptions):
        """Options of the architecture: a ``ModelOptions``, or a ``BaseOptions`` if it trains
        funnels in its own way.
        """

    shares_parameters: ClassVar[bool] = True
    needs_funnel: ClassVar[bool] = False
    is_reference: ClassVar[bool] = False
    """Every other model is compared with it; read from the source, hence a literal."""
    detaches: ClassVar[bool] = False
    """A gradient path is cut on purpose: finite differences of the loss then differ from the
    gradient.
    """
    embedding: FieldEmbedding

    def __init__(self, schema: Schema, options: BaseOptions) -> None:
        super().__init__()
        self.schema = schema
        self.options = options
        self.gate_experts: dict[str, tuple[str, ...]] = {}
        self.expert_names: list[tuple[str, ...]] = []  # by level, in the order of their outputs
        self.left_out: tuple[int, int] | None = (
            None  # level and place of an expert that an ablation silences
        )

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.schema.tasks

    @property
    def fast_paths(self) -> FastPaths:
        """The fast forms that it may take."""
        return self.embedding.fast_paths

    def use(self, fast_paths: FastPaths) -> None:
        """Take these fast forms, and no others, from now on."""
        self.embedding.fast_paths = fast_paths

    @classmethod
    def inapplicable(cls, schema: Schema) -> str | None:
        """Why the architecture makes no sense on such data (``"has no funnel"``), or None when it
        does.
        """
        return NO_FUNNEL if cls.needs_funnel and schema.funnel is None else None

    @classmethod
    def check(cls, schema: Schema, options: BaseOptions) -> None:
        """Look at options that must fit the data, when a run is planned.

        Raises:
            UsageError: One does not, such as the name of a task that does not exist, or the tasks
                are no funnel.
        """
        if cls.needs_funnel:
            funnel_columns(schema, cls.__name__)

    def learning_rates(self) -> dict[str, float]:
        """Prefix of parameter names to a factor on their learning rate; the factor is an option,
        hence recorded.
        """
        return {}

    def one_level(self, experts: int, readers: Sequence[str]) -> None:
        """Name the experts of a single level, and the readers whose gates mix all of them."""
        names = tuple(f"expert {k + 1}" for k in range(experts))
        self.gate_experts = {f"level-1/{reader}": names for reader in readers}
        self.expert_names = [names]

    def present(self, level: int, outputs: Tensor) -> Tensor:
        """The outputs (B, E, d) of a level's experts, counted from 0, with 0 for the one that an
        ablation silences.
        """
        if self.left_out is None or self.left_out[0] != level:
            return outputs
        return outputs.index_fill(1, torch.tensor([self.left_out[1]], device=outputs.device), 0)

    def silencer(self, level: int) -> Callable[[Tensor], Tensor] | None:
        """:meth:`present` for a level; None where it would change nothing."""
        if self.left_out is None or self.left_out[0] != level:
            return None
        return lambda outputs: self.present(level, outputs)

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """Predict all tasks for a batch."""

    def space(self, prediction: Prediction) -> str:
        """The rows on which a prediction means something, and on which it is trained."""
        if prediction.space is not None:
            return prediction.space
        before, options = self.schema.before(prediction.task), self.options
        task = self.tasks[self.schema.task_names.index(prediction.task)]
        if before and isinstance(options, ModelOptions) and options.cvr == "clicked":
            return rows_with(before[-1])
        if (
            task.given and not before
        ):  # there is no label elsewhere; in a funnel it is known to be 0
            return rows_with(task.given)
        return ALL_ROWS

    def objectives(self, output: Output, batch: Batch) -> list[Objective]:
        """The losses of an output: by default each prediction against its own label, on the rows of
        its space.
        """
        return [
            self.objective(prediction, batch)
            for prediction in output.predictions
            if not prediction.derived
        ]

    def objective(self, prediction: Prediction, batch: Batch) -> Objective:
        """The loss of a prediction against the task's label on the rows of its space."""
        column = self.schema.task_names.index(prediction.task)
        labels = labels_in(self.schema, self.tasks[column], self.space(prediction), batch)
        return Objective(*task_loss(self.tasks[column], prediction.logits, batch, column, labels))
