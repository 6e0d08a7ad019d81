"""One cell, from its frozen description to its record. Whatever goes wrong becomes part of the
record.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mtlkit
from mtlkit.data.datasets._source import DatasetSource
from mtlkit.data.splits import Dataset
from mtlkit.errors import MissingError, MtlkitError
from mtlkit.models._architecture import Architecture
from mtlkit.records import PRIMARY_METRIC, Cell, Failure, RunRecord, Status
from mtlkit.registry import BALANCERS, DATASETS, MODELS
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.store import ResultStore
from mtlkit.training.compiled import CompiledForward
from mtlkit.training.result import DivergedError, FitResult
from mtlkit.training.scoring import autocast
from mtlkit.training.seeding import seed_for
from mtlkit.training.trainer import Trainer
from mtlkit.training.warm_start import WarmStart

PEAK_FILE = Path("/proc/self/clear_refs")


@dataclass
class Outcome:
    """A record, with the arrays and the log that are stored beside it."""

    record: RunRecord
    arrays: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    log: str = ""


def run_cell(
    cell: Cell,
    home: Path,
    execution: ExecutionSettings,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Outcome:
    """Run a cell on this process's threads.

    Args:
        cell: What to run.
        home: The data home.
        execution: How to run it.
        on_progress: Called with the share of steps done.

    Returns:
        The outcome; an error of any kind is a record with status ``failed``.
    """
    device = resolve_device(execution.device)
    started = datetime.now(UTC)
    _reset_peak_memory(device)
    compiled = None
    try:
        dataset = load_dataset(cell, home)
        trainer = build_trainer(cell, dataset, execution, device)
        compiled = compile_model(trainer)
        result = trainer.fit(on_progress)
    except Exception as error:
        return failure(cell, error, _environment(device, started, compiled))
    result.cost["peak_memory_bytes"] = _peak_memory(device)
    record = RunRecord(
        key=cell.key,
        group=cell.group,
        status="ok",
        cell=cell,
        tasks=_tasks(dataset, result),
        metrics=result.metrics,
        best=result.best,
        curve=result.curve,
        timing=result.timing,
        cost=result.cost,
        environment=_environment(device, started, compiled),
        warnings=result.warnings,
    )
    arrays = {"probes": result.probes, "scores": result.scores, "weights": result.weights}
    return Outcome(record, {stem: named for stem, named in arrays.items() if named}, _log(result))


def failure(
    cell: Cell,
    error: BaseException,
    environment: dict[str, Any] | None = None,
    status: Status = "failed",
) -> Outcome:
    """The outcome of a cell that came to nothing."""
    text = "".join(traceback.format_exception(error))
    reason = Failure(
        type=type(error).__name__.removesuffix("Error")
        if isinstance(error, DivergedError)
        else type(error).__name__,
        message=error.message
        if isinstance(error, MtlkitError)
        else str(error) or type(error).__name__,
        step=error.step if isinstance(error, DivergedError) else None,
        traceback=text,
    )
    record = RunRecord(
        key=cell.key,
        group=cell.group,
        status=status,
        cell=cell,
        error=reason,
        environment=environment or {},
    )
    return Outcome(record, log=text)


def load_dataset(cell: Cell, home: Path) -> Dataset:
    """The data a cell was planned for.

    Raises:
        MissingError: It is not there, or has changed since the plan.
    """
    wanted = cell.resolved["dataset"]
    kind: type[DatasetSource] = DATASETS.load(wanted["name"])
    dataset = kind(wanted["name"], kind.Options.model_validate(wanted["options"])).load(home)
    if dataset.fingerprint != wanted["fingerprint"]:
        raise MissingError(
            f"The prepared data of {cell.dataset} have changed since the plan.",
            "run the command again",
        )
    return dataset.select(wanted["tasks"])


def build_trainer(
    cell: Cell, dataset: Dataset, execution: ExecutionSettings, device: torch.device
) -> Trainer:
    """A trainer with a freshly initialised model."""
    model_kind = MODELS.load(cell.resolved["model"]["name"])
    model_options = model_kind.Options.model_validate(cell.resolved["model"]["options"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(cell.seed, "init"))
        model: Architecture = model_kind.build(dataset.schema, model_options)
    balancer = None
    if model_kind.shares_parameters:
        balancer_kind = BALANCERS.load(cell.resolved["balancer"]["name"])
        balancer_options = balancer_kind.Options.model_validate(
            cell.resolved["balancer"]["options"]
        )
        balancer = balancer_kind(dataset.schema.tasks, balancer_options)
    settings = TrainingSettings.model_validate(cell.resolved["training"])
    warm = warm_start(settings, execution)
    return Trainer(model, balancer, dataset, settings, execution, cell.seed, device, warm)


def compile_model(trainer: Trainer) -> CompiledForward | None:
    """Compile what a trainer is about to train, if the settings ask for it; failing is a warning."""
    wanted = trainer.execution.compile
    if wanted == "off" or (wanted == "auto" and trainer.device.type == "cpu"):
        return None
    if trainer.parts_at_representation:
        trainer.warnings.append(
            "not compiled: with scope=representation tasks part inside what would be compiled"
        )
        return None
    size = trainer.settings.batch_size
    compiled = CompiledForward(trainer.model, size, trainer.warnings.append)
    batch = trainer.train.take(torch.arange(size) % len(trainer.train))
    compiled.try_out(batch, autocast(trainer.device, trainer.settings.precision))
    return compiled


def warm_start(settings: TrainingSettings, execution: ExecutionSettings) -> WarmStart | None:
    """The weights that a cell starts from, if it does from any.

    Raises:
        MissingError: They are not where they were when the cell was planned.
    """
    if settings.init_from is None:
        return None
    record = ResultStore.record(execution.init_from) if execution.init_from else None
    weights = ResultStore.arrays(execution.init_from, "weights") if execution.init_from else {}
    if record is None or record.key != settings.init_from or not weights:
        raise MissingError(
            f"The weights of the run {settings.init_from[:8]} to start from are not in {execution.init_from}.",
            "mtlkit bench --init-from with the folder of that run",
        )
    return WarmStart(weights, record.cell.resolved["dataset"]["tasks"], settings.freeze)


def resolve_device(text: str) -> torch.device:
    """``auto`` is the first GPU, or the CPU.

    Raises:
        MissingError: A GPU is asked for and there is none.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(text)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"only {count} found" if count else "none was found"
        raise MissingError(f"There is no GPU {text!r} here: {found}.", "mtlkit bench --device cpu")
    return device


def _tasks(dataset: Dataset, result: FitResult) -> list[dict[str, Any]]:
    """Everything that was measured, tasks and the other scores of a funnel, in the order of tables."""
    tasks = {task.name: task for task in dataset.schema.tasks}
    return [
        {
            "name": score.name,
            "task": score.task,
            "label": score.label,
            "kind": tasks[score.task].kind,
            "space": score.space,
            "derived": result.metrics["test"][score.name]["derived"],
            "metric": PRIMARY_METRIC[tasks[score.task].kind],
            "description": tasks[score.task].description if score.name in tasks else "",
        }
        for score in dataset.schema.scores()
        if score.name in result.metrics["test"]
    ]


def _environment(
    device: torch.device, started: datetime, compiled: CompiledForward | None = None
) -> dict[str, Any]:
    return {
        "mtlkit": mtlkit.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "device_type": device.type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "compiled": compiled is not None and compiled.working,
        "compile_seconds": 0.0 if compiled is None else round(compiled.seconds, 1),
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif PEAK_FILE.exists():
        with suppress(OSError):  # sandboxes may forbid it
            PEAK_FILE.write_text(
                "5", encoding="ascii"
            )  # Linux: forget the high-water mark of earlier cells


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the device on a GPU, of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _log(result: FitResult) -> str:
    lines = []
    for entry in result.curve:
        losses = " ".join(f"{name}={value:.5f}" for name, value in entry["train_loss"].items())
        values = " ".join(
            f"{name}.{metric}={value:.5f}"
            for name, found in entry["validation"].items()
            for metric, value in found.items()
            if isinstance(value, float)
        )
        lines.append(
            f"step {entry['step']} epoch {entry['epoch']:g} train_loss {losses} validation {values}"
        )
    return "\n".join([*result.warnings, *lines]) + "\n"
