"""Repeat a cell whose record is there, and say whether the numbers come out the same.

On the same kernels they must, to the last digit. Other versions, another processor or another
number of threads sum in another order, and training makes small differences larger. Then the
honest question is whether the run differs by more than a change of its seed would make it differ.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mtlkit.data.sources import prepare_planned
from mtlkit.errors import MissingError, MtlkitError, UsageError
from mtlkit.grid.engines.local import LocalEngine
from mtlkit.records import Cell, RunRecord
from mtlkit.registry import BALANCERS, MODELS
from mtlkit.settings import ExecutionSettings
from mtlkit.store import ResultStore

FEWEST_SEEDS = 3
"""Finished seeds from which a spread is known; of two, it could be anything."""

MISSED = 0.05
"""How often a run of another seed would fall outside of the bound in at least one score."""

NO_CAUSE = {"cores", "git_commit", "plugin_commits"}
"""What a record says of its surroundings that moves no digit; plugins have digests of their own."""
NOT_COMPARED = {"started", "finished", "compile_seconds", "execution"}


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was; ``moves_digits`` tells whether numbers may follow it."""

    what: str
    before: Any
    now: Any
    moves_digits: bool


@dataclass(frozen=True)
class Compared:
    """A metric of both runs; ``difference`` is None where one of them lacks it."""

    split: str
    task: str
    metric: str
    before: float | None
    now: float | None
    difference: float | None
    bound: float | None  # the largest difference that counts as the same; None where there is none


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
        record: Of the run.
        folder: Where it is; it is only read, for its other seeds.
        home: The data home.
        plugins: Whether plugin files that the record names may be run.
        tolerance: The bound on all differences, instead of one by seeds.

    Raises:
        MtlkitError: The cell cannot be run here.
    """
    cell, changed = _cell_of_today(record.cell, home, plugins)
    execution = _execution(record)
    with tempfile.TemporaryDirectory(prefix="mtlkit-rerun-") as scratch:
        (again,) = LocalEngine(ResultStore(Path(scratch)), home, execution).run([cell])

    differences = (*changed, *_surroundings(record.environment, again.environment))
    if not (record.ok and again.ok):
        return _compare_failures(record, again, folder, differences)
    bounds = _bounds(record, folder) if tolerance is None else {}
    metrics = _compare(record, again, bounds, tolerance)
    verdict, reason = _judge(metrics, differences, record, tolerance)
    return Repeated(record.key, folder, verdict, reason, metrics, differences)


# --- the same cell, here and now


def _cell_of_today(cell: Cell, home: Path, plugins: bool) -> tuple[Cell, list[Difference]]:
    """The cell with the data and plugins that are here, and how they differ from its own."""
    resolved = {kind: dict(section) for kind, section in cell.resolved.items()}
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


# --- what differs


def _surroundings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """What the two records say differently of versions and machines."""
    return [
        Difference(key, before.get(key), now.get(key), key not in NO_CAUSE)
        for key in {**before, **now}
        if key not in NOT_COMPARED and before.get(key) != now.get(key)
    ]


def _values(record: RunRecord) -> dict[tuple[str, str, str], float | None]:
    """(split, task, metric) to each number of a record."""
    return {
        (split, task, metric): value
        for split, scores in record.metrics.items()
        for task, score in scores.items()
        for metric, value in score.items()
        if metric not in {"space", "derived"}
    }


def _compare(
    record: RunRecord,
    again: RunRecord,
    bounds: Mapping[tuple[str, str, str], float],
    tolerance: float | None,
) -> tuple[Compared, ...]:
    before, now = _values(record), _values(again)
    compared = []
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        difference = None if old is None or new is None else new - old
        compared.append(Compared(*key, old, new, difference, bounds.get(key, tolerance)))
    return tuple(compared)


def _bounds(record: RunRecord, folder: Path) -> dict[tuple[str, str, str], float]:
    """For the primary metrics on the test split: how far two runs that differ by their seed alone
    lie apart, all but ``MISSED`` of the time. Empty with too few seeds.

    The difference of two draws from one normal distribution has sqrt(2) times its deviation s,
    which n seeds estimate with n - 1 degrees of freedom: |d| <= t(n - 1) s sqrt(2). The share that
    is missed is spread over the scores.
    """
    from scipy.stats import t

    root = folder.absolute().parents[3]
    siblings = [
        other for other, _ in ResultStore(root).scan() if other.group == record.group and other.ok
    ]
    scores = [("test", str(task["name"]), str(task.get("metric"))) for task in record.tasks]
    bounds = {}
    for key in scores:
        values = [value for other in siblings if (value := _values(other).get(key)) is not None]
        if len(values) >= FEWEST_SEEDS:
            quantile = float(t.ppf(1 - MISSED / len(scores) / 2, len(values) - 1))
            bounds[key] = quantile * statistics.stdev(values) * math.sqrt(2)
    return bounds


def _judge(
    metrics: tuple[Compared, ...],
    differences: tuple[Difference, ...],
    record: RunRecord,
    tolerance: float | None,
) -> tuple[str, str]:
    """The verdict, and a sentence on how it was found."""
    if all(one.before == one.now for one in metrics):
        return "same digits", "all metrics are the same to the last digit"

    # on the same kernels nothing but a mistake, or a GPU that sums as it likes, moves a digit
    causes = [difference.what for difference in differences if difference.moves_digits]
    is_exact = record.environment.get("device_type") == "cpu" or record.environment.get(
        "deterministic"
    )
    if not causes and is_exact and tolerance is None:
        return "differs", "versions and kernels are the same, so digits should be"

    bounded = [one for one in metrics if one.bound is not None]
    source = "the tolerance given" if tolerance is not None else "what a change of seed makes"
    if not bounded:
        return "differs", f"no bound is known with fewer than {FEWEST_SEEDS} seeds; see --tolerance"
    if all(_is_within(one) for one in bounded):
        return "within bound", f"no difference is larger than {source}"
    return "differs", f"a difference is larger than {source}"


def _is_within(one: Compared) -> bool:
    if one.difference is None or one.bound is None:
        return one.before == one.now
    return abs(one.difference) <= one.bound


def _compare_failures(
    record: RunRecord, again: RunRecord, folder: Path, differences: tuple[Difference, ...]
) -> Repeated:
    """The verdict where a run has no numbers: the same kind of end is the same."""
    ends = [one.error.type if one.error else one.status for one in (record, again)]
    reason = f"the run ended with {ends[0]}, and now with {ends[1]}"
    if again.error:
        reason += f" ({again.error.type}: {again.error.message})"
    verdict = "same digits" if ends[0] == ends[1] else "differs"
    return Repeated(record.key, folder, verdict, reason, (), differences)
