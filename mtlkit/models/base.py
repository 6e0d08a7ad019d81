"""The contract of an architecture: a batch goes in, predictions, objectives and gates come out."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mtlkit.config import Settings, Sizes
from mtlkit.data.schema import ALL_ROWS, Schema, Task, rows_with
from mtlkit.models.embedding import FieldEmbedding
from mtlkit.models.funnel import NO_FUNNEL, funnel_columns, labels_in
from mtlkit.models.initial import glorot
from mtlkit.models.inputs import Inputs
from mtlkit.models.losses import task_loss
from mtlkit.models.parting import Parting


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
        embedded: What the embedding makes of these rows, if it has been asked already.
    """

    ids: Tensor
    dense: Tensor
    labels: Tensor
    observed: Tensor | None = None
    weight: Tensor | None = None
    bags: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    embedded: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Prediction:
    """What is predicted for one task.

    Args:
        task: Task name.
        logits: (B,) for binary and regression tasks, (B, C) for multiclass ones.
        space: The rows on which the prediction means something; None for those on which the model's options train the
            task (``Architecture.space``).
        derived: Whether it follows from other predictions and has no loss of its own.
    """

    task: str
    logits: Tensor
    space: str | None = None
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
        gates: Mixing weights (B, E) by name. The name is ``level-<n>/<reader>``: n counts from 1 next to the input, and
            the reader is the task that is served, or what stands in its place (``shared``, ``all tasks``, a group).
            Each row sums to 1, and ``Architecture.gate_experts`` names the E experts. Factors that are no mixture
            (sigmoid gates, stitches) are not listed.
        inputs: The embedded features.
        representation: (B, D) the embedding output that tasks share, for models without a parting; by default all of
            x, when it was materialised.
        further: Predictions of tasks in a second space, for scoring; the default objectives leave them alone.
        extra: What the model's own objectives need beside predictions.
        parting: Where the tasks part, if the model says so: what they share there is their representation, and
            training takes their gradients apart no earlier.
    """

    predictions: list[Prediction]
    gates: dict[str, Tensor] = field(default_factory=dict)
    inputs: Inputs | None = None
    representation: Tensor | None = None
    further: list[Prediction] = field(default_factory=list)
    extra: list[Tensor] = field(default_factory=list)
    parting: Parting | None = None

    def __post_init__(self) -> None:
        if self.representation is None and self.inputs is not None:
            self.representation = self.inputs.materialised
        if torch.compiler.is_compiling():
            self.inputs = None  # what a compiled graph gives back is not on the way to its losses


class BaseOptions(Settings):
    """Options that every architecture has."""

    embedding: int = Field(8, gt=0, description="width of the embedding of each id and bag feature")
    embedding_dims: dict[str, int] = Field(default_factory=dict, description="feature: its own embedding width")
    embedding_std: float = Field(0.05, ge=0, description="standard deviation of the initial embeddings")
    init: Literal["uniform", "xavier"] = Field(
        "uniform",
        description="initial linear layers: uniform in +-1/sqrt(inputs) as torch.nn.Linear, or Glorot normal with zero "
        "biases",
    )
    numbers: Literal["value", "vector"] = Field(
        "value",
        description="dense features: appended as they are, or each times a learnt vector of the embedding's width",
    )
    activation: Literal["relu", "leaky_relu", "gelu", "silu", "tanh"] = "relu"
    norm: Literal["none", "batch", "layer"] = "none"
    dropout: float = Field(0.0, ge=0, lt=1, description="after each hidden layer of experts, bottoms and towers")
    tower: Sizes | dict[str, Sizes] = Field((16,), description="hidden layers of the towers, for all or by task")


class ModelOptions(BaseOptions):
    """Options of the architectures that have no way of their own to train the steps of a funnel."""

    cvr: Literal["derived", "clicked"] = Field(
        "derived",
        description="later steps of a funnel: derived: trained on all rows as CTCVR, from which CVR is derived; "
        "clicked: trained as CVR on the rows that took the step before",
    )


class _Initialised(ABCMeta):
    """Gives every architecture, once it is built, the initial layers of its option ``init``."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        model = super().__call__(*args, **kwargs)
        if model.options.init == "xavier":
            glorot(model)
        return model


class Architecture(nn.Module, metaclass=_Initialised):
    """A multi-task model.

    Sub-modules are registered in the order in which data flows through them, the embedding under the name
    ``embedding``: probes name parts of the model after them, and the last shared weight is the last registered one.

    Args:
        schema: Features and tasks of the data.
        options: Validated options of this class.
    """

    class Options(BaseOptions):
        """Options of the architecture: a ``ModelOptions``, or a ``BaseOptions`` if it trains funnels in its own way."""

    shares_parameters: ClassVar[bool] = True
    needs_funnel: ClassVar[bool] = False
    detaches: ClassVar[bool] = False
    """A gradient path is cut on purpose: finite differences of the loss then differ from the gradient."""
    embedding: FieldEmbedding

    def __init__(self, schema: Schema, options: BaseOptions) -> None:
        super().__init__()
        self.schema = schema
        self.options = options
        self.gate_experts: dict[str, tuple[str, ...]] = {}
        self.expert_names: list[tuple[str, ...]] = []  # by level, in the order of their outputs
        self.left_out: tuple[int, int] | None = None  # level and place of an expert that an ablation silences

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.schema.tasks

    @classmethod
    def inapplicable(cls, schema: Schema) -> str | None:
        """Why the architecture makes no sense on such data (``"has no funnel"``), or None when it does."""
        return NO_FUNNEL if cls.needs_funnel and schema.funnel is None else None

    @classmethod
    def check(cls, schema: Schema, options: BaseOptions) -> None:
        """Look at options that must fit the data, when a run is planned.

        Raises:
            UsageError: One does not, such as the name of a task that does not exist, or the tasks are no funnel.
        """
        if cls.needs_funnel:
            funnel_columns(schema, cls.__name__)

    def learning_rates(self) -> dict[str, float]:
        """Prefix of parameter names to a factor on their learning rate; the factor is an option, hence recorded."""
        return {}

    def one_level(self, experts: int, readers: Sequence[str]) -> None:
        """Name the experts of a single level, and the readers whose gates mix all of them."""
        names = tuple(f"expert {k + 1}" for k in range(experts))
        self.gate_experts = {f"level-1/{reader}": names for reader in readers}
        self.expert_names = [names]

    def present(self, level: int, outputs: Tensor) -> Tensor:
        """The outputs (B, E, d) of a level's experts, counted from 0, with 0 for the one that an ablation silences."""
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
        if task.given and not before:  # there is no label elsewhere; in a funnel it is known to be 0
            return rows_with(task.given)
        return ALL_ROWS

    def objectives(self, output: Output, batch: Batch) -> list[Objective]:
        """The losses of an output: by default each prediction against its own label, on the rows of its space."""
        return [self.objective(prediction, batch) for prediction in output.predictions if not prediction.derived]

    def objective(self, prediction: Prediction, batch: Batch) -> Objective:
        """The loss of a prediction against the task's label on the rows of its space."""
        column = self.schema.task_names.index(prediction.task)
        labels = labels_in(self.schema, self.tasks[column], self.space(prediction), batch)
        return Objective(*task_loss(self.tasks[column], prediction.logits, batch, column, labels))
