"""What is run and what came of it: cells and run records, as plain validated values.

A record is one JSON file that can be read without mtlkit. ``docs/records.md`` documents its fields.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mtlkit.spec import canonical_json, digest_of_text

RECORD_VERSION = 1
NO_BALANCER = "none"
"""The balancer of models whose tasks share no parameter."""
Status = Literal["ok", "failed", "timeout"]


class _Value(BaseModel):
    """A frozen value; fields of later versions are no obstacle to reading it."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Cell(_Value):
    """One run to do: a frozen value that fully specifies it."""

    dataset: str  # as typed, e.g. ``census[protocol=rechub]``
    model: str  # as typed
    balancer: str  # as typed; ``none`` for models whose tasks share no parameter
    seed: int  # source of initial weights, batch order and dropout
    # Everything that moves the numbers, defaults filled in, under ``dataset`` (name, options,
    # tasks, fingerprint), ``model`` (name, options), ``balancer`` (name, options), ``training``.
    resolved: dict[str, Any]
    # Score to the primary metric that the planted model of simulated data reaches on the test
    # split; empty for real data. It follows from the data, so it is no part of the key.
    ceiling: dict[str, float] = Field(default_factory=dict)
    # What a command needs beside the methods, and no part of the key either: options that were
    # given for all methods, and the folder of the run to start from, by the names that ``--set``
    # takes; whether the model does not apply to the data and was run by ``--force``.
    common: dict[str, Any] = Field(default_factory=dict)
    forced: bool = False

    @cached_property
    def group(self) -> str:
        """Digest of all but the seed: the runs of one row of a report."""
        return digest_of_text(f'{{"resolved":{self._resolved},"version":{RECORD_VERSION}}}')

    @cached_property
    def key(self) -> str:
        """Digest of the whole cell."""
        settings = f'"resolved":{self._resolved},"seed":{self.seed}'
        return digest_of_text(f'{{{settings},"version":{RECORD_VERSION}}}')

    @property
    def data(self) -> Any:
        """What tells the data set from others: what is resolved of it.

        A table of the user's is what it holds, whatever it is called and however it was typed
        (flags, brackets, YAML): its fingerprint tells inputs, labels and splits.
        """
        dataset = self.resolved.get("dataset")
        options = dataset.get("options") if isinstance(dataset, dict) else None
        if isinstance(dataset, dict) and isinstance(options, dict) and "content" in options:
            return {key: value for key, value in dataset.items() if key not in ("name", "options")}
        return dataset

    @property
    def plugin_files(self) -> list[str]:
        """The files from outside the package that take part, as they were typed."""
        methods = [self.resolved[kind]["name"] for kind in ("dataset", "model", "balancer")]
        losses = self.resolved.get("losses", ())
        return [name for name in (*methods, *losses) if name.endswith(".py")]

    @cached_property
    def _resolved(self) -> str:
        """The settings as canonical JSON, which both digests read."""
        data = {"dataset": self.data} if "dataset" in self.resolved else {}
        return canonical_json(self.resolved | data)

    @property
    def label(self) -> str:
        """A short name for progress lines."""
        return f"{self.model} + {self.balancer}, seed {self.seed}"


class Failure(_Value):
    """Why a cell has no numbers."""

    type: str  # name of the error's class
    message: str  # one sentence
    step: int | None = None  # the step at which training diverged, if it did
    traceback: str = ""  # of the error


class RunRecord(_Value):
    """The outcome of one cell.

    Args:
        record_version: Version of this layout.
        key: Digest of the cell.
        group: Digest of the cell without its seed.
        status: ``ok``, ``failed`` or ``timeout``.
        cell: What was run.
        tasks: The scores that were measured: name, label, kind, space, primary metric.
        metrics: ``metrics[split][task]`` holds the numbers of the selected evaluation point.
        best: Task to the evaluation point that was selected for it.
        curve: One entry an evaluation point.
        timing: Seconds by activity.
        cost: Parameters, rows per second, memory, backward passes a step.
        environment: Versions and device; never part of the key.
        attempts: How often the cell was started; the process of each but the last was killed.
        warnings: Sentences for the user.
        error: Why there are no numbers, unless the status is ``ok``.
    """

    record_version: int = RECORD_VERSION
    key: str
    group: str
    status: Status
    cell: Cell
    tasks: list[dict[str, Any]] = Field(default_factory=list)
    metrics: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    best: dict[str, dict[str, Any]] = Field(default_factory=dict)
    curve: list[dict[str, Any]] = Field(default_factory=list)
    timing: dict[str, float] = Field(default_factory=dict)
    cost: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    attempts: int = 1
    warnings: list[str] = Field(default_factory=list)
    error: Failure | None = None

    @property
    def ok(self) -> bool:
        return self.status == "ok"
