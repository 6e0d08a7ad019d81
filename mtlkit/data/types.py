"""What a prepared data set is: tasks, features, packed splits. Everything later reads only this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from mtlkit.errors import UsageError

ALL_ROWS = "all rows"


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(_Value):
    """One label column.

    Args:
        name: Used in tables and file names.
        kind: ``binary`` (0/1), ``regression`` (standardised on train) or ``multiclass``
            (0..classes-1).
        classes: Number of classes of a multiclass task.
        losses: Names of losses, added up.
        weight: Weight in a user-weighted mean.
        given: Name of the binary task without whose positive this label does not exist.
        scale: ``(mean, std)`` on train of a regression target; predictions are scored on the
            original scale.
        description: For cards and reports.
    """

    name: str
    kind: Literal["binary", "regression", "multiclass"] = "binary"
    classes: int = 2
    losses: tuple[str, ...] = ("bce",)
    weight: float = 1.0
    given: str | None = None
    scale: tuple[float, float] | None = None
    description: str = ""

    @property
    def outputs(self) -> int:
        """Width of the task's logits."""
        return self.classes if self.kind == "multiclass" else 1


class Feature(_Value):
    """One input column.

    Args:
        name: Column name.
        kind: ``id`` (one id a row), ``bag`` (weighted ids a row) or ``dense`` (a float).
        vocab: Number of ids, 0 being unknown.
        dim: Embedding width, if another than the model's.
        role: Part it plays for models that ask.
    """

    name: str
    kind: Literal["id", "bag", "dense"] = "id"
    vocab: int = 0
    dim: int | None = None
    role: Literal["user", "item", "domain", "context", "session"] | None = None


class Score(_Value):
    """A quantity that every model is measured by.

    Args:
        name: In metrics and files; a task's name when it is the task on all rows.
        task: The task whose label it is compared with.
        space: The rows that count.
        label: In tables and figures.
        given: The step of the funnel whose positives are the space, or None.
        hidden: Whether it needs labels that only a generator knows.
    """

    name: str
    task: str
    space: str = ALL_ROWS
    label: str
    given: str | None = None
    hidden: bool = False


def rows_with(step: str) -> str:
    """The name of the space of the rows on which a step was taken."""
    return "clicked rows" if step == "click" else f"rows with {step}"


class Schema(_Value):
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
    def _funnel_of_binary_tasks(self) -> Schema:
        steps = self.funnel or ()
        kinds = {task.name: task.kind for task in self.tasks}
        if self.funnel is not None and (len(steps) < 2 or len(set(steps)) < len(steps)):
            raise ValueError("a funnel needs two different steps or more")
        for step in steps:
            if kinds.get(step) != "binary":
                raise ValueError(f"the step {step!r} of the funnel is no binary task")
        return self

    def before(self, task: str) -> tuple[str, ...]:
        """The steps of the funnel that come before a task, in order."""
        return self.funnel[: self.funnel.index(task)] if self.funnel and task in self.funnel else ()

    def score(self, task: str, space: str | None = None) -> str:
        """The name of the score of a task in a space."""
        before = self.before(task)
        return f"{task}-given-{before[-1]}" if before and space not in (None, ALL_ROWS) else task

    def scores(self) -> tuple[Score, ...]:
        """What every model is measured by: each task, and each later step of the funnel given the
        one before.

        On click -> purchase these are CTR and CTCVR on all rows and CVR on clicked rows.
        """
        usual = self.funnel is not None and len(self.funnel) == 2 and self.funnel[0] == "click"
        found = []
        for task in self.tasks:
            before = self.before(task.name)
            usual_label = (
                ("CTCVR" if before else "CTR")
                if usual and task.name in (self.funnel or ())
                else task.name
            )
            space = rows_with(task.given) if task.given and not before else ALL_ROWS
            found.append(Score(name=task.name, task=task.name, space=space, label=usual_label))
            if before:
                step = before[-1]
                name = f"{task.name}-given-{step}"
                label = "CVR" if usual else f"{task.name} given {step}"
                found.append(
                    Score(name=name, task=task.name, space=rows_with(step), label=label, given=step)
                )
                found.append(
                    Score(
                        name=f"{task.name}-if-{step}",
                        task=task.name,
                        space=f"{ALL_ROWS}, as if {'clicked' if step == 'click' else step}",
                        label="all-rows CVR" if usual else f"{task.name} if {step}",
                        given=step,
                        hidden=True,
                    )
                )
        return tuple(found)

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
        by_name = {task.name: task for task in self.tasks}
        for name in tasks:
            if name not in by_name:
                raise UsageError(
                    f"There is no task {name!r} in this data set.",
                    f"its tasks are {', '.join(self.task_names)}",
                )
        if len(set(tasks)) != len(tasks):
            raise UsageError(
                "A task is named twice.", f"its tasks are {', '.join(self.task_names)}"
            )
        kept = tuple(step for step in self.funnel or () if step in tasks)
        funnel = kept if len(kept) > 1 else None
        return self.model_copy(
            update={"tasks": tuple(by_name[name] for name in tasks), "funnel": funnel}
        )
