"""What a record must hold to be believed: a known version, its own digests, fields of their types.

A folder's name says nothing about what is inside, and anybody may edit a file. So a record counts
only if it agrees with itself. Runs are not checked when they are made, only when they are read.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtlkit.errors import MtlkitError
from mtlkit.records import RECORD_VERSION, RunRecord
from mtlkit.spec import parse_spec

LARGEST = 1e100
"""No number of a run is larger: squares of float32 end at 1e77. Sums of squares stay finite."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-LARGEST, le=LARGEST)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(min_length=1, max_length=4096)]


class UnreadableError(ValueError):
    """A file of a run cannot be read, or contradicts itself; the message is the reason."""


class _Fields(BaseModel):
    """Fields that a report reads; others are of no concern here."""

    model_config = ConfigDict(extra="ignore", from_attributes=True)


class _Score(_Fields):
    name: Name
    task: str | None = None
    kind: str | None = None
    metric: str | None = None
    space: str | None = None
    label: str | None = None
    description: str | None = None


class _Metrics(_Fields):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Number | None]

    space: str | None = None
    derived: Annotated[bool, Field(strict=True)] | None = None


class _Point(_Fields):
    epoch: Number | None = None
    train_loss: dict[str, Number | None] = Field(default_factory=dict)
    validation: dict[str, _Metrics] = Field(default_factory=dict)


class _Method(_Fields):
    name: Name
    options: dict[str, Any] | None = None
    source_sha256: str | None = None


class _TaskName(_Fields):
    name: Name


class _Dataset(_Fields):
    name: Name
    options: dict[str, Any] | None = None
    tasks: list[Name | _TaskName] | None = None
    fingerprint: str | None = None
    simulated: bool = False


class _Resolved(_Fields):
    dataset: _Dataset
    model: _Method
    balancer: _Method
    training: dict[str, Any]
    losses: dict[str, str] = Field(default_factory=dict)


class _Cell(_Fields):
    seed: Seed
    resolved: _Resolved
    ceiling: dict[str, Number]


class _Cost(_Fields):
    parameters: Number | None = None
    flops_per_row: Number | None = None
    train_rows_per_second: Number | None = None
    peak_memory_bytes: Number | None = None
    backward_passes_per_step: Number | None = None


class _Error(_Fields):
    step: Number | None = None


class _Record(_Fields):
    cell: _Cell
    tasks: list[_Score]
    metrics: dict[str, dict[str, _Metrics]]
    curve: list[_Point]
    timing: dict[str, Number]
    cost: _Cost
    error: _Error | None


def read_record(text: bytes) -> RunRecord:
    """The record in the text of a file.

    Raises:
        UnreadableError: It is no record, or not one that agrees with itself.
    """
    try:
        record = RunRecord.model_validate_json(text)
    except ValidationError as error:
        raise UnreadableError(_first_line(error)) from None
    _check_identity(record)
    _check_contents(record)
    return record


def _check_identity(record: RunRecord) -> None:
    """Raise an :class:`UnreadableError` unless version and digests follow from the content."""
    if record.record_version != RECORD_VERSION:
        raise UnreadableError(
            f"record_version {record.record_version} is unknown, only {RECORD_VERSION} is read"
        )

    # settings of any kind have a digest, except numbers that JSON does not know
    try:
        key, group = record.cell.key, record.cell.group
    except (ValueError, RecursionError):
        raise UnreadableError("the settings in it have no digest") from None
    if record.key != key:
        raise UnreadableError("its key is not the digest of the settings in it")
    if record.group != group:
        raise UnreadableError("its group is not the digest of the settings in it")


def _check_contents(record: RunRecord) -> None:
    """Raise an :class:`UnreadableError` unless every field that is read later has its type."""
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        raise UnreadableError(_first_line(error)) from None

    # a finished run was scored on the test split
    if record.ok and not any(record.metrics.get("test", {}).values()):
        raise UnreadableError("its status is ok, but it has no metrics of the test split")

    # the texts that were typed name the folder of the run
    for text in (record.cell.dataset, record.cell.model, record.cell.balancer):
        problem = _spec_problem(text)
        if problem:
            raise UnreadableError(problem)


@lru_cache(maxsize=4096)
def _spec_problem(text: str) -> str:
    """Why a text cannot be read as a name with options; empty if it can. Runs share few texts."""
    try:
        parse_spec(text)
    except MtlkitError as error:
        return error.message
    return ""


def _first_line(error: ValidationError) -> str:
    """Where the first thing is wrong, and what."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"][:1].lower() + first["msg"][1:]
    return f"{field}: {message}" if field else message
