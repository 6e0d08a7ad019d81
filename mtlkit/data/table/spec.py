"""What a table means: its labels, kinds and roles of its columns, its splits. This is the YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from mtlkit.data.targets import Target
from mtlkit.settings import RowWeights, Settings, Words, without_unused

Role = Literal["user", "item", "domain", "session", "time"]
DatePart = Literal["hour", "weekday", "day", "month", "year"]
Transform = Literal["standard", "log", "minmax", "quantile", "bins", "none"]
MISSING_TEXTS = (
    "", "NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None",
)  # fmt: skip
"""Texts of a CSV that stand for a missing value."""


def _as_texts(value: Any) -> Any:
    """A list of texts, or one text with commas; names of columns may look like numbers."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = value.split(",")
    elif not isinstance(value, (list, tuple)):
        value = [value]
    return tuple(_as_text(element) for element in value)


def _as_text(value: Any) -> Any:
    """A number as text: brackets and YAML read a column that is called 101 as a number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if is_number else value


def _as_labels(value: Any) -> Any:
    """Labels by name: a list of names stands for labels of which all is found out."""
    if isinstance(value, Mapping):
        return {_as_text(name): {} if task is None else task for name, task in value.items()}
    names = _as_texts(value)
    _check_once(names)
    return {name: {} for name in names}


def _as_split(value: Any) -> Any:
    """``time``, ``group:user`` and ``[group, user]`` for a mapping with ``by`` and ``column``."""
    if isinstance(value, str):
        value = value.split(":", 1)
    if isinstance(value, (list, tuple)):
        if len(value) > 2:
            raise ValueError("write how and by which column, such as time:date")
        return dict(zip(("by", "column"), map(_as_text, value), strict=False))
    return value


def _by_text(value: Any) -> Any:
    """The keys of a mapping as texts."""
    if isinstance(value, Mapping):
        return {_as_text(key): element for key, element in value.items()}
    return value


def _check_once(names: tuple[Any, ...]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is named twice")


Text = Annotated[str, BeforeValidator(_as_text)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_texts)]


class TaskSpec(Settings):
    """What is known of one label; the rest is found out."""

    kind: Literal["binary", "regression", "multiclass"] | None = Field(
        None, description="what is predicted; default: by its values"
    )
    positive: str | int | float | bool | None = Field(
        None, description="the value that counts as 1; default: by its values"
    )
    given: Text | None = Field(
        None, description="the binary label without whose positive this one does not exist"
    )
    target: Target | None = Field(
        None, description="scale on which a regression is trained; default: standardize"
    )
    losses: Words = Field((), description="losses, added up; default: by the kind")
    row_weight: Text | None = Field(
        None, description="a column of row weights for this label alone, which is no input"
    )
    row_weights: RowWeights | None = Field(
        None, description="weights of rows inside and outside of the positives of another label"
    )
    report: bool = Field(True, description="false: it is trained, and not reported")
    weight: float = Field(1.0, gt=0, description="weight in a weighted mean of the tasks")
    description: str = Field("", description="for the card and reports")

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        later = ("target", "losses", "row_weight", "row_weights", "report")
        return without_unused(self, dump(self), later)


class SplitSpec(Settings):
    """How rows are dealt out to train, validation and test."""

    by: Literal["ratio", "time", "group", "column"] = Field(
        "ratio", description="at random, by time, whole groups at random, or by a column's values"
    )
    column: Text | None = Field(
        None, description="that of the time, the group or the split; default: that of the role"
    )
    validation: float = Field(0.1, gt=0, lt=1, description="share of the rows or groups")
    test: float = Field(0.1, gt=0, lt=1, description="share of the rows or groups")
    seed: int = Field(0, ge=0, lt=2**32, description="source of what is random")
    values: dict[Literal["train", "validation", "test"], Texts] = Field(
        default_factory=dict, description="values of the column of each split"
    )

    @model_validator(mode="after")
    def _check(self) -> SplitSpec:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test leave no rows for train")
        if self.by == "ratio" and self.column is not None:
            raise ValueError("a split by ratio reads no column")
        if self.by == "column" and self.column is None:
            raise ValueError("a split by column needs its name, such as column:split")
        if self.values and self.by != "column":
            raise ValueError("values are for a split by column")
        return self


class TableSpec(Settings):
    """What a table means. Only labels must be named; all else has a default or is found out."""

    # the labels
    labels: Annotated[dict[str, TaskSpec], BeforeValidator(_as_labels)] = Field(
        default_factory=dict, description="the columns to predict"
    )
    funnel: Texts = Field((), description="labels in the order in which a user comes to them")

    # kinds of columns; what is not named is found out
    ids: Texts = Field((), description="columns of ids or levels")
    dense: Texts = Field((), description="columns of numbers, or of lists of numbers of one length")
    bags: Texts = Field((), description="columns of lists of ids, or of text with a separator")
    drop: Texts = Field((), description="columns that are no inputs")

    # what else columns are good for
    roles: dict[Role, Text] = Field(
        default_factory=dict, description="the columns of user, item, domain, session and time"
    )
    groups: Texts = Field((), description="columns to report metrics by")
    weight: Text | None = Field(None, description="the column of row weights, which is no input")
    split: Annotated[SplitSpec, BeforeValidator(_as_split)] = Field(
        default_factory=SplitSpec, description="how rows are dealt out"
    )

    # how columns are encoded
    min_count: int = Field(1, ge=1, description="ids seen less often on train count as unknown")
    min_counts: Annotated[dict[str, Annotated[int, Field(ge=1)]], BeforeValidator(_by_text)] = (
        Field(default_factory=dict, description="the same, column by column")
    )
    hash: Annotated[dict[str, Annotated[int, Field(ge=2, lt=2**31)]], BeforeValidator(_by_text)] = (
        Field(default_factory=dict, description="columns of ids without end, and how many buckets")
    )
    dates: Annotated[dict[str, tuple[DatePart, ...]], BeforeValidator(_by_text)] = Field(
        default_factory=dict, description="columns of dates, and the parts that become ids"
    )
    transform: Annotated[dict[str, Transform], BeforeValidator(_by_text)] = Field(
        default_factory=dict, description="how numbers are scaled; default: standard"
    )
    bins: int = Field(64, ge=2, le=4096, description="about how many bins a binned column gets")
    project: Annotated[dict[str, Annotated[int, Field(ge=1)]], BeforeValidator(_by_text)] = Field(
        default_factory=dict,
        description="columns of long vectors, and on how many principal axes they are projected",
    )
    separators: Annotated[
        dict[str, Annotated[str, Field(min_length=1)]], BeforeValidator(_by_text)
    ] = Field(default_factory=dict, description="what stands between the ids of a bag of text")

    # how text files are read
    separator: str | None = Field(
        None, min_length=1, max_length=1, description="between fields; default: by the first line"
    )
    header: bool = Field(True, description="whether the first line names the columns")
    columns: Texts = Field((), description="names of the columns of files without a header")
    missing: Texts = Field(MISSING_TEXTS, description="texts that stand for a missing value")

    @model_validator(mode="before")
    @classmethod
    def _labels_of_a_funnel(cls, values: Any) -> Any:
        """A funnel without labels names them."""
        if isinstance(values, dict) and values.get("funnel") and not values.get("labels"):
            return values | {"labels": values["funnel"]}
        return values

    @model_validator(mode="after")
    def _check(self) -> TableSpec:
        for names in (self.funnel, self.groups, self.columns):
            _check_once(names)
        for step in self.funnel:
            if step not in self.labels:
                raise ValueError(f"the step {step!r} of the funnel is none of the labels")
        if len(self.funnel) == 1:
            raise ValueError("a funnel needs two steps or more")
        for name, task in self.labels.items():
            if task.given is not None and task.given not in self.labels:
                raise ValueError(f"the label {name!r} is given {task.given!r}, which is no label")
            weights = task.row_weights
            if weights is not None and weights.indicator not in self.labels:
                raise ValueError(
                    f"the row weights of {name!r} go by {weights.indicator!r}, which is no label"
                )
        if self.columns and self.header:
            raise ValueError("columns name those of files without a header: set header=false")
        self._check_one_use()
        return self

    def _check_one_use(self) -> None:
        """Raise a ValueError for a column that is named for two uses which exclude each other."""
        uses: dict[str, str] = {}
        for use, names in self.uses().items():
            for name in names:
                if name in uses:
                    other = uses[name]
                    both = f"twice among {use}" if other == use else f"among {other} and {use}"
                    raise ValueError(f"the column {name!r} is named {both}")
                uses[name] = use

    def uses(self) -> dict[str, tuple[str, ...]]:
        """What columns are named for, of which each has one."""
        return {
            "labels": tuple(self.labels),
            "ids": self.ids,
            "dense": self.dense,
            "bags": self.bags,
            "drop": self.drop,
            "weight": self.weights,
        }

    @property
    def weights(self) -> tuple[str, ...]:
        """The columns of row weights: for all labels, and for single ones."""
        of_labels = [task.row_weight for task in self.labels.values()]
        named = [column for column in (self.weight, *of_labels) if column is not None]
        return tuple(dict.fromkeys(named))
