"""The contract of an architecture: a batch goes in, predictions, objectives and gates come out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from mtlkit.data.types import ALL_ROWS, Schema, Task, rows_with
from mtlkit.errors import UsageError
from mtlkit.models._boundary import Boundary
from mtlkit.models._embedded_batch import EmbeddedBatch
from mtlkit.models._embedding import FieldEmbedding
from mtlkit.models._funnel import NO_FUNNEL, funnel_columns, labels_in
from mtlkit.models._initial import glorot
from mtlkit.models._losses import row_weight, task_loss
from mtlkit.models._moe import MoELayer
from mtlkit.models._numbers import NumberEmbedding
from mtlkit.models._options import BaseOptions, ModelOptions
from mtlkit.models._output import Output
from mtlkit.models._tables import FastPaths
from mtlkit.models._types import Batch, Objective, Prediction


class Architecture(nn.Module, ABC):
    """A multi-task model; :meth:`build` makes one with its initial weights.

    Sub-modules are registered in the order in which data flows through them: probes group
    parameters by their names, and the last shared weight is the one registered last. The embedding
    is a ``FieldEmbedding`` called ``embedding``. Experts that gates mix belong to an ``MoELayer``
    each level, which is a sub-module, too, and names them in probes and ablations.

    Args:
        schema: Features and tasks of the data.
        options: Validated options of this class.
    """

    class Options(BaseOptions):
        """Options of the architecture: a ``ModelOptions``, or a ``BaseOptions`` if it trains
        funnels in its own way.
        """

    shares_parameters: ClassVar[bool] = True  # whether any parameter serves two tasks

    needs_funnel: ClassVar[bool] = False  # whether the tasks must be steps of a funnel

    is_reference: ClassVar[bool] = False
    """Whether every other model is compared with it; read from the source, hence a literal."""

    detaches: ClassVar[bool] = False
    """Whether a gradient path is cut on purpose: finite differences of the loss then differ from
    the gradient.
    """

    search_space: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Option to the range in which ``mtlkit bench --tune`` looks for its value, as
    ``mtlkit.grid.spaces`` says; a literal, too.
    """

    embedding: FieldEmbedding

    def __init__(self, schema: Schema, options: BaseOptions) -> None:
        super().__init__()
        self.schema = schema
        self.options = options

    @classmethod
    def build(cls, schema: Schema, options: BaseOptions) -> Self:
        """A model with the initial weights that the option ``init`` asks for."""
        model = cls(schema, options)
        if options.init == "xavier":
            glorot(model)
        return model

    @classmethod
    def inapplicable(cls, schema: Schema) -> str | None:
        """Why the architecture makes no sense on such data (``"has no funnel"``), or None."""
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

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, in the order of the predictions."""
        return self.schema.tasks

    @abstractmethod
    def forward(self, batch: Batch) -> Output:
        """Predict all tasks for a batch."""

    def output(
        self,
        logits: Sequence[Tensor],
        embedded: EmbeddedBatch | None = None,
        gates: Mapping[str, Tensor] | None = None,
        boundary: Boundary | None = None,
    ) -> Output:
        """The output of a model that predicts each task in its default space.

        Args:
            logits: For each task (B,), or (B, C) for a multiclass one, or one whose loss has C.
            gates: Mixing weights (B, k) by gate name.
            boundary: Where the tasks part.
        """
        predictions = [
            Prediction(task.name, task_logits)
            for task, task_logits in zip(self.tasks, logits, strict=True)
        ]
        return Output(predictions, dict(gates or {}), embedded, boundary=boundary)

    def check_output(self, output: Output, rows: int) -> None:
        """Look that the output for a batch of so many rows is what the contract says.

        Raises:
            UsageError: It is none, or lacks a task, or its logits have another shape.
        """
        shapes = {
            task.name: (rows, task.outputs) if task.outputs > 1 else (rows,) for task in self.tasks
        }
        problem = None
        if not isinstance(output, Output):
            problem = f"a {type(output).__name__}, not an Output"
        elif missing := sorted(set(shapes) - {found.task for found in output.predictions}):
            problem = f"no prediction of {' and '.join(missing)}"
        else:
            for prediction in output.predictions:
                shape, wanted = tuple(prediction.logits.shape), shapes.get(prediction.task)
                if shape != wanted:
                    problem = f"logits {shape} of {prediction.task}, not {wanted}"
        if problem is not None:
            raise UsageError(
                f"The forward of {type(self).__name__} gives {problem}.",
                "return self.output(logits, x), with logits for each task",
            )

    # what it is trained on

    def space(self, prediction: Prediction) -> str:
        """The rows on which a prediction means something, and on which it is trained."""
        if prediction.space is not None:
            return prediction.space
        steps_before = self.schema.before(prediction.task)
        options = self.options
        if steps_before and isinstance(options, ModelOptions) and options.cvr == "clicked":
            return rows_with(steps_before[-1])
        # A task that depends on another has no label elsewhere; in a funnel it is known to be 0.
        task = self.schema.task(prediction.task)
        if task.given and not steps_before:
            return rows_with(task.given)
        return ALL_ROWS

    def objectives(self, output: Output, batch: Batch) -> list[Objective]:
        """The losses of an output: each prediction against its label, on the rows of its space."""
        return [
            self.objective(prediction, batch)
            for prediction in output.predictions
            if not prediction.derived
        ]

    def objective(self, prediction: Prediction, batch: Batch) -> Objective:
        """The loss of a prediction against the task's label on the rows of its space."""
        task = self.schema.task(prediction.task)
        labels, mask = labels_in(self.schema, task, self.space(prediction), batch)
        weight = row_weight(self.schema, task, batch)
        loss = task_loss(task, prediction.logits, labels, mask, weight, batch.groups)
        return Objective(loss.mean, task.name, loss.active, loss.total)

    def own_logits(self, output: Output) -> list[Tensor]:
        """For each task, in order, the logits that its own layers give: those of its prediction,
        unless that is a product with predictions of other tasks.
        """
        by_task = {prediction.task: prediction for prediction in reversed(output.predictions)}
        return [by_task[task.name].logits for task in self.tasks]

    def learning_rates(self) -> dict[str, float]:
        """Prefix of parameter names to a factor on their learning rate, which an option gives."""
        return {}

    # what its experts are called

    @property
    def moe_layers(self) -> list[MoELayer]:
        """The levels of experts, from the input up."""
        layers = [module for module in self.modules() if isinstance(module, MoELayer)]
        return sorted(layers, key=lambda layer: layer.level)

    @property
    def expert_names(self) -> list[tuple[str, ...]]:
        """The names of each level's experts, in the order of their outputs."""
        return [layer.expert_names for layer in self.moe_layers]

    @property
    def gate_experts(self) -> dict[str, tuple[str, ...]]:
        """Gate name to the names of what it mixes, for every gate in ``Output.gates``."""
        names: dict[str, tuple[str, ...]] = {}
        for layer in self.moe_layers:
            names |= layer.gate_experts
        return names

    # how it is computed

    @property
    def fast_paths(self) -> FastPaths:
        """The fast forms that it may take."""
        return self._tables().fast_paths

    def use(self, fast_paths: FastPaths) -> None:
        """Take these fast forms, and no others, from now on.

        Raises:
            UsageError: The architecture is not built as its contract says.
        """
        self._check_experts()
        self._tables().fast_paths = fast_paths

    @property
    def number_embedding(self) -> NumberEmbedding | None:
        """What encodes numbers, to be fitted to training rows before it is trained; or None."""
        return self._tables().number_embedding

    def _tables(self) -> FieldEmbedding:
        embedding = getattr(self, "embedding", None)
        if not isinstance(embedding, FieldEmbedding):
            raise UsageError(
                f"{type(self).__name__} has no FieldEmbedding called 'embedding'.",
                "write self.embedding = FieldEmbedding(schema, options) in its __init__",
            )
        return embedding

    def _check_experts(self) -> None:
        """Look that the levels have numbers of their own, and that what they mix is trained."""
        layers = self.moe_layers
        numbers = [layer.level for layer in layers]
        if numbers != list(range(1, len(layers) + 1)):
            raise UsageError(
                f"The levels of experts of {type(self).__name__} are numbered {numbers}.",
                "number them 1, 2, ... from the input up: MoELayer(1, ...)",
            )
        registered = set(self.modules())
        for layer in layers:
            if not registered.issuperset(layer.used_modules()):
                raise UsageError(
                    f"Experts or gates of level {layer.level} are no sub-modules of "
                    f"{type(self).__name__}, so nothing would train them.",
                    "write self.gates = ... and self.experts = ... before MoELayer gets them",
                )
