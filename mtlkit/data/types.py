"""What the columns of a data set mean: features and tasks, and the scores of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from mtlkit.data.targets import Target, from_normal_ranks
from mtlkit.errors import UsageError
from mtlkit.registry import LOSSES
from mtlkit.settings import RowWeights, without_unused
from mtlkit.spec import Spec, parse_spec

ALL_ROWS = "all rows"  # the space of a score to which every row belongs


def _check_name(name: str) -> str:
    # Names stand in tables, in file names and in archives of arrays.
    if not name.strip() or not name.isprintable():
        raise ValueError("a name needs letters, and takes no line breaks or control characters")
    return name


Name = Annotated[str, AfterValidator(_check_name)]
Kind = Literal["binary", "regression", "multiclass"]
LATER_FIELDS = ("target", "quantiles", "report", "row_weights", "scored_by")
"""Fields of a task that stand in fingerprints only where they differ from their defaults."""


def loss_spec(text: str) -> Spec:
    """Read a loss such as ``focal[gamma=2]``; an underscore in its name is a hyphen.

    Raises:
        UsageError: It cannot be read, or does not exist.
    """
    spec = parse_spec(text)
    name = spec.name if spec.name.endswith(".py") else spec.name.replace("_", "-")
    return Spec(LOSSES.check(name), spec.options)


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(_FrozenModel):
    """One label column.

    Args:
        name: Used in tables and file names.
        kind: ``binary`` (0/1), ``regression`` (standardised on train) or ``multiclass``
            (0..classes-1).
        classes: Number of classes of a multiclass task.
        losses: Losses, such as ``bce`` or ``focal[gamma=2]``, added up; at least one.
        weight: Weight in a user-weighted mean, 0 or more.
        given: Name of the binary task without whose positive this label does not exist.
        scale: ``(mean, std)`` on train of a regression target, after the logarithm if there is one;
            predictions are scored on the original scale.
        description: For cards and reports.
        target: What became of a regression target; see :mod:`mtlkit.data.targets`.
        quantiles: Rising values on train at evenly spaced ranks, for ``target="quantile"``.
        report: Whether it is measured; else it only helps to train the others.
        row_weights: How much rows count by the label of another task, or None for all alike.
        scored_by: The task whose prediction its label is compared with; it is not trained itself.
    """

    name: Name
    kind: Kind = "binary"
    classes: int = Field(2, ge=2)
    losses: tuple[str, ...] = Field(("bce",), min_length=1)
    weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    given: str | None = None
    scale: tuple[float, float] | None = None
    description: str = ""
    target: Target = "standardize"
    quantiles: tuple[float, ...] | None = None
    report: bool = True
    row_weights: RowWeights | None = None
    scored_by: str | None = None

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what tasks did not always have, where it is not used: fingerprints stay."""
        return without_unused(self, dump(self), LATER_FIELDS)

    def original(self, values: Any) -> Any:
        """Labels or predictions (N,) of a regression on the scale that the data came with."""
        mean, std = self.scale or (0.0, 1.0)
        if self.target == "quantile":
            ranks = values.detach().double().cpu().numpy()
            numbers = from_normal_ranks(ranks, self.quantiles or (0.0,), std)
            return values.new_tensor(numbers)
        values = values * std + mean
        return values.expm1() if self.target == "log1p" else values

    @property
    def outputs(self) -> int:
        """Width of the task's logits."""
        if self.kind == "multiclass":
            return self.classes
        return max(_loss_facts(loss).get("outputs", 1) for loss in self.losses)

    @property
    def label_name(self) -> str:
        """The task whose label column it is trained on: itself."""
        return self.name


def _loss_facts(text: str) -> Mapping[str, Any]:
    """What a loss says of itself, read without importing it."""
    return LOSSES.facts(loss_spec(text).name).attributes


def check_losses(task: Task) -> None:
    """Look that losses mean something on the labels of a task, and together.

    Raises:
        ValueError: They do not.
        UsageError: One does not exist.
    """
    for loss in task.losses:
        facts = _loss_facts(loss)
        if task.kind not in facts.get("kinds", ("binary",)):
            raise ValueError(f"{loss} is no loss of the {task.kind} task {task.name!r}")
        if facts.get("stands_alone") and len(task.losses) > 1:
            raise ValueError(f"{loss} of the task {task.name!r} cannot be added to another loss")
        if facts.get("stands_alone") and task.target not in ("standardize", "none"):
            raise ValueError(
                f"{loss} reads the task {task.name!r} as it came, so target={task.target} "
                "means nothing there"
            )


class ConditionalTask(Task):
    """A step of a funnel on the rows that took the step before, as a task of its own.

    Models that predict both scores of a step by separate networks add it to the tasks of the data.
    """

    step: str  # the step whose labels it shares

    @property
    def label_name(self) -> str:
        return self.step


class Feature(_FrozenModel):
    """One input column.

    Args:
        name: Column name.
        kind: ``id`` (one id a row), ``bag`` (weighted ids a row) or ``dense`` (a float).
        vocab: Number of ids, 0 being unknown.
        dim: Embedding width, if another than the model's.
        role: What it describes, for models that ask.
    """

    name: Name
    kind: Literal["id", "bag", "dense"] = "id"
    vocab: int = Field(0, ge=0)
    dim: int | None = Field(None, gt=0)
    role: Literal["user", "item", "domain", "context", "session"] | None = None


class Score(_FrozenModel):
    """A quantity that every model is measured by."""

    name: str  # in metrics and files; a task's name when it is the task on all rows
    task: str  # the task whose label it is compared with
    space: str = ALL_ROWS  # the rows that count
    label: str  # in tables and figures
    given: str | None = None  # the step of the funnel whose positives are the space, or None
    hidden: bool = False  # whether it needs labels that only a generator knows


def rows_with(step: str) -> str:
    """The name of the space of the rows on which a step was taken."""
    return "clicked rows" if step == "click" else f"rows with {step}"


class Schema(_FrozenModel):
    """Columns of a data set: the order of ``features`` of a kind is the order of the packed
    columns.

    Args:
        features: Inputs.
        tasks: Labels.
        funnel: Binary tasks in the order in which a user comes to them, each positive only where
            the one before is.
    """

    features: tuple[Feature, ...]
    tasks: tuple[Task, ...]
    funnel: tuple[str, ...] | None = None

    @model_validator(mode="after")
    def _check_tasks(self) -> Schema:
        for name in self.task_names:
            if self.task_names.count(name) > 1:
                raise ValueError(f"two tasks are called {name!r}")
        for task in self.tasks:
            check_losses(task)
            self._check_indicator(task)
        return self

    def _check_indicator(self, task: Task) -> None:
        kinds = {other.name: other.kind for other in self.tasks}
        weights = task.row_weights
        if weights is not None and kinds.get(weights.indicator) != "binary":
            raise ValueError(
                f"the row weights of {task.name!r} go by {weights.indicator!r}, "
                "which is no binary task"
            )

    @model_validator(mode="after")
    def _check_funnel(self) -> Schema:
        if self.funnel is None:
            return self
        if len(self.funnel) < 2 or len(set(self.funnel)) < len(self.funnel):
            raise ValueError("a funnel needs two different steps or more")
        kinds = {task.name: task.kind for task in self.tasks}
        for step in self.funnel:
            if kinds.get(step) != "binary":
                raise ValueError(f"the step {step!r} of the funnel is no binary task")
        return self

    def task(self, name: str) -> Task:
        """The task of a name; a :class:`ValueError` where none is called so."""
        return self.tasks[self.task_names.index(name)]

    def check_names(self, names: Iterable[str]) -> None:
        """Raise a :class:`UsageError` for the first name that is no task."""
        for name in names:
            if name not in self.task_names:
                hint = f"its tasks are {', '.join(self.task_names)}"
                raise UsageError(f"There is no task {name!r} in this data set.", hint)

    def before(self, task: str) -> tuple[str, ...]:
        """The steps of the funnel that come before a task, in order."""
        if self.funnel is None or task not in self.funnel:
            return ()
        return self.funnel[: self.funnel.index(task)]

    def score_name(self, task: str, space: str | None = None) -> str:
        """The name of the score of a task in a space."""
        steps = self.before(task)
        if not steps or space in (None, ALL_ROWS):
            return task
        return f"{task}-given-{steps[-1]}"

    def scores(self) -> tuple[Score, ...]:
        """What every model is measured by: each task, and each later step of the funnel given the
        one before.

        On click -> purchase these are CTR and CTCVR on all rows and CVR on clicked rows.
        """
        scores = []
        for task in self.label_tasks:
            if not task.report:
                continue
            scores.append(self._task_score(task))
            steps = self.before(task.name)
            if steps:
                scores += self._scores_given(task, steps[-1])
        return tuple(scores)

    @property
    def _starts_with_click(self) -> bool:
        """Whether the funnel has two steps and starts with a click: its scores have known names."""
        return self.funnel is not None and len(self.funnel) == 2 and self.funnel[0] == "click"

    def _task_score(self, task: Task) -> Score:
        """The score of a task on all rows that have its label."""
        steps = self.before(task.name)
        label = task.name
        if self._starts_with_click and task.name in (self.funnel or ()):
            label = "CTCVR" if steps else "CTR"
        space = rows_with(task.given) if task.given and not steps else ALL_ROWS
        return Score(name=task.name, task=task.name, space=space, label=label)

    def _scores_given(self, task: Task, step: str) -> list[Score]:
        """The scores of a step of the funnel given the one before: on the rows that took that
        step, and on all rows as if they had.
        """
        label, hidden_label = f"{task.name} given {step}", f"{task.name} if {step}"
        if self._starts_with_click:
            label, hidden_label = "CVR", "all-rows CVR"
        taken = "clicked" if step == "click" else step
        observed = Score(
            name=self.score_name(task.name, rows_with(step)),
            task=task.name,
            space=rows_with(step),
            label=label,
            given=step,
        )
        hidden = Score(
            name=f"{task.name}-if-{step}",
            task=task.name,
            space=f"{ALL_ROWS}, as if {taken}",
            label=hidden_label,
            given=step,
            hidden=True,
        )
        return [observed, hidden]

    def predictor(self, score: Score) -> str:
        """The task that predicts a score: one of its own where there is one."""
        conditional = self.score_name(score.task, score.space)
        return conditional if conditional in self.task_names else score.task

    def label_column(self, task: Task) -> int:
        """The label column of a task."""
        return self.task_names.index(task.label_name)

    @property
    def label_tasks(self) -> tuple[Task, ...]:
        """The tasks of the data, in the order of the label columns."""
        return tuple(task for task in self.tasks if task.label_name == task.name)

    @property
    def of_labels(self) -> Schema:
        """The same without the tasks that share a label column with another."""
        return self.model_copy(update={"tasks": self.label_tasks})

    def with_conditional_tasks(self) -> Schema:
        """The same data with a task more for each later step of the funnel: the step on the rows
        that took the one before.
        """
        conditional = []
        for score in self.scores():
            if score.given is not None and not score.hidden:
                step = self.task(score.task)
                fields = step.model_dump() | {"name": score.name, "given": score.given}
                conditional.append(ConditionalTask(**fields, step=step.name))
        return self.model_copy(update={"tasks": (*self.tasks, *conditional)})

    def of_kind(self, kind: Literal["id", "bag", "dense"]) -> tuple[Feature, ...]:
        """The features of one kind, in packed order."""
        return tuple(feature for feature in self.features if feature.kind == kind)

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.tasks)

    def select(self, tasks: Sequence[str]) -> Schema:
        """The same data with some of its tasks, in the order given.

        Raises:
            UsageError: A task is unknown or named twice.
        """
        self.check_names(tasks)
        if len(set(tasks)) != len(tasks):
            hint = f"its tasks are {', '.join(self.task_names)}"
            raise UsageError("A task is named twice.", hint)

        # A funnel of which one step is left is none.
        steps = tuple(step for step in self.funnel or () if step in tasks)
        changes = {
            "tasks": tuple(map(self.task, tasks)),
            "funnel": steps if len(steps) > 1 else None,
        }
        return self.model_copy(update=changes)
