"""The contract of an architecture: a batch goes in, predictions, objectives and gates come out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from mtlkit.config import Settings, Sizes
from mtlkit.data.schema import Schema, Task
from mtlkit.models.embedding import FieldEmbedding
from mtlkit.models.losses import task_loss

ALL_ROWS = "all rows"


@dataclass
class Batch:
    """Rows on one device.

    Args:
        ids: (B, F) int32, each counted from 0 within its feature.
        dense: (B, D) float32.
        labels: (B, T) float32.
        observed: (B, T) bool, or None when every label exists.
        weight: (B,) float32 row weights, or None for 1.
        bags: Feature name to (offsets (B + 1,), values (M,), weights (M,)).
    """

    ids: Tensor
    dense: Tensor
    labels: Tensor
    observed: Tensor | None = None
    weight: Tensor | None = None
    bags: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Prediction:
    """What is predicted for one task.

    Args:
        task: Task name.
        logits: (B,) for binary and regression tasks, (B, C) for multiclass ones.
        space: The rows on which the prediction means something.
        derived: Whether it follows from other predictions and has no loss of its own.
    """

    task: str
    logits: Tensor
    space: str = ALL_ROWS
    derived: bool = False


@dataclass
class Objective:
    """A loss and the task it is charged to.

    Args:
        loss: Scalar.
        owner: Task name. Objectives are summed by owner before balancing.
        active: Scalar bool: whether any row of the batch had a label for it; None means yes.
    """

    loss: Tensor
    owner: str
    active: Tensor | None = None


@dataclass
class Output:
    """Everything a forward pass yields.

    Args:
        predictions: One a task, in the order of the schema.
        gates: Name such as ``level-1/income`` to (B, E) mixing weights.
        representation: (B, D) the embedding output, when it was materialised.
    """

    predictions: list[Prediction]
    gates: dict[str, Tensor] = field(default_factory=dict)
    representation: Tensor | None = None


class ModelOptions(Settings):
    """Options that every architecture has."""

    embedding: int = Field(8, gt=0, description="width of the embedding of each id and bag feature")
    embedding_dims: dict[str, int] = Field(default_factory=dict, description="feature: its own embedding width")
    embedding_std: float = Field(0.05, ge=0, description="standard deviation of the initial embeddings")
    activation: Literal["relu", "leaky_relu", "gelu", "silu", "tanh"] = "relu"
    norm: Literal["none", "batch", "layer"] = "none"
    dropout: float = Field(0.0, ge=0, lt=1, description="after each hidden layer of experts, bottoms and towers")
    tower: Sizes | dict[str, Sizes] = Field((16,), description="hidden layers of the towers, for all or by task")


class Architecture(nn.Module, ABC):
    """A multi-task model.

    Sub-modules are registered in the order in which data flows through them, the embedding under the name
    ``embedding``: probes name parts of the model after them, and the last shared weight is the last registered one.

    Args:
        schema: Features and tasks of the data.
        options: Validated options of this class.
    """

    class Options(ModelOptions):
        """Options of the architecture."""

    shares_parameters: ClassVar[bool] = True
    embedding: FieldEmbedding

    def __init__(self, schema: Schema, options: ModelOptions) -> None:
        super().__init__()
        self.schema = schema
        self.options = options
        self.gate_experts: dict[str, tuple[str, ...]] = {}

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.schema.tasks

    @classmethod
    def inapplicable(cls, schema: Schema) -> str | None:
        """Why the architecture makes no sense on such data (``"has no funnel"``), or None when it does."""
        return None

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """Predict all tasks for a batch."""

    def objectives(self, output: Output, batch: Batch) -> list[Objective]:
        """The losses of an output: by default each prediction against its own label."""
        columns = self.schema.task_names
        return [
            Objective(*task_loss(task, prediction.logits, batch, columns.index(task.name)))
            for prediction in output.predictions
            for task in self.tasks
            if task.name == prediction.task and not prediction.derived
        ]
