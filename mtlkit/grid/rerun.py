"""Repeat a cell whose record is there, and say whether the numbers come out the same."""

from __future__ import annotations

import tempfile
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mtlkit.agreement import NO_BOUND, Compared, Difference, compare_runs
from mtlkit.data.sources import prepare_planned
from mtlkit.errors import MissingError, MtlkitError, UsageError
from mtlkit.grid.engines.local import LocalEngine
from mtlkit.records import Cell, RunRecord
from mtlkit.registry import BALANCERS, MODELS
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore


@dataclass(frozen=True)
class Repeated:
    """What came of a rerun."""

    key: str  # of the cell, as recorded
    folder: Path  # the run that was repeated
    verdict: str  # ``same digits``, ``within bound`` or ``differs``
    reason: str  # a sentence on how the verdict was found
    metrics: tuple[Compared, ...]  # every metric of both splits
    differences: tuple[Difference, ...]  # what else differs

    @property
    def matches(self) -> bool:
        return self.verdict != "differs"

    @property
    def largest(self) -> Compared | None:
        """The metric that differs most; None where nothing can be compared."""
        known = [one for one in self.metrics if one.difference is not None]
        return max(known, key=lambda one: abs(one.difference or 0.0), default=None)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"folder": str(self.folder), "matches": self.matches}


def find_run(text: str, results: Path) -> tuple[RunRecord, Path]:
    """The run that a record, its folder, or the beginning of its key names.

    Raises:
        MissingError: There is none, or it cannot be read.
        UsageError: A key begins that of several runs.
    """
    path = Path(text)
    folder = path.parent if path.name == "record.json" else path
    if folder.exists():
        record = ResultStore.record(folder)
        if record is None:
            raise MissingError(
                f"There is no run whose record holds in {folder}.",
                "give the folder of one run: results/census/mmoe/uniform/seed-0-1a2b3c4d",
            )
        return record, folder

    runs = [run for run in ResultStore(results).scan() if run[0].key.startswith(text)]
    if not runs:
        raise MissingError(
            f"There is no run, and no key in {results}, that is called {text}.",
            f"ls -d {results}/*/*/*/seed-*",
        )
    if len(runs) > 1:
        raise UsageError(f"{len(runs)} keys begin with {text}.", "give more letters of the key")
    return runs[0]


def rerun(
    record: RunRecord,
    folder: Path,
    home: Path,
    *,
    plugins: bool = False,
    tolerance: float | None = None,
) -> Repeated:
    """Repeat a run in a process of its own, in a folder that is removed again.

    Args:
        folder: Where it is; it is only read, for its other seeds.
        plugins: Whether plugin files that the record names may be run.
        tolerance: The bound on all differences, instead of one by seeds.

    Raises:
        MtlkitError: The cell cannot be run here.
    """
    cell, changed = _cell_of_today(record.cell, home, plugins)
    execution = _execution(record)
    with tempfile.TemporaryDirectory(prefix="mtlkit-rerun-") as scratch:
        (again,) = LocalEngine(ResultStore(Path(scratch)), home, execution).run([cell])

    siblings = [] if tolerance is not None else _siblings(record, folder)
    verdict, reason, metrics, differences = compare_runs(
        record, again, siblings, changed, tolerance
    )
    if reason == NO_BOUND:
        reason += "; see --tolerance"
    return Repeated(record.key, folder, verdict, reason, metrics, differences)


def _siblings(record: RunRecord, folder: Path) -> list[RunRecord]:
    """The finished runs of a run's row in its results folder."""
    store = ResultStore(folder.absolute().parents[3])
    return [other for other, _ in store.scan() if other.group == record.group and other.ok]


# --- the same cell, here and now


def _cell_of_today(cell: Cell, home: Path, plugins: bool) -> tuple[Cell, list[Difference]]:
    """The cell with the data and plugins that are here, and how they differ from its own."""
    resolved = deepcopy(cell.resolved)
    if cell.plugin_files and not plugins:
        files = " and ".join(cell.plugin_files)
        raise UsageError(
            f"This run needs the code in {files}, which a record does not vouch for.",
            "look at it, and if you trust it: mtlkit rerun --plugins RUN",
        )

    # data that are missing are brought as bench would do it
    data = resolved["dataset"]
    try:
        fingerprint = prepare_planned(data["name"], data["options"], home).fingerprint
    except (ValidationError, KeyError, TypeError) as error:
        raise MtlkitError(f"The data set of this record cannot be opened: {error}.") from None

    changed = []
    if fingerprint != data["fingerprint"]:
        changed.append(Difference("data fingerprint", data["fingerprint"], fingerprint, True))
        data["fingerprint"] = fingerprint
    for kind, registry in {"model": MODELS, "balancer": BALANCERS}.items():
        noted = resolved[kind].get("source_sha256")
        digest = registry.source_digest(resolved[kind]["name"])
        if digest != noted:
            changed.append(Difference(f"source of the {kind}", noted, digest, True))
            resolved[kind]["source_sha256"] = digest
    return Cell.model_validate(cell.model_dump() | {"resolved": resolved}), changed


def _execution(record: RunRecord) -> ExecutionSettings:
    """How the cell was run, as far as digits may depend on it, alone."""
    noted = record.environment.get("execution")
    kept = {"eval_batch_size", "compile", "init_from", "probes", "ablation", "device", "processes"}
    values = {key: noted[key] for key in kept & noted.keys()} if isinstance(noted, dict) else {}
    threads = record.environment.get("threads", 1)
    try:
        settings = ExecutionSettings.model_validate(values | {"threads": threads, "jobs": 1})
    except ValidationError:
        settings = ExecutionSettings(jobs=1)
    is_on_cpu = record.environment.get("device_type") == "cpu"
    return settings.model_copy(update={"device": "cpu"}) if is_on_cpu else settings
