"""One cell, from its frozen description to its record; whatever goes wrong becomes part of it."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtlkit.balancers._balancer import Balancer
from mtlkit.data.sources import open_planned
from mtlkit.data.splits import Dataset
from mtlkit.data.types import loss_spec
from mtlkit.errors import MissingError, MtlkitError
from mtlkit.grid.build import build_model
from mtlkit.grid.machine import describe_environment, peak_memory, reset_peak_memory, resolve_device
from mtlkit.metrics.definitions import PRIMARY_METRIC
from mtlkit.records import Cell, Failure, RunRecord, Status
from mtlkit.registry import BALANCERS, LOSSES, MODELS, error_of_plugin, is_baseline
from mtlkit.settings import ExecutionSettings, TrainingSettings
from mtlkit.store import CHECKPOINT, ResultStore
from mtlkit.training.batches import DeviceSplit
from mtlkit.training.checkpoints import Checkpoints
from mtlkit.training.compiled import CompiledForward
from mtlkit.training.cuda_graph import StepGraph
from mtlkit.training.fit_baseline import fit_baseline
from mtlkit.training.numerics import numerics
from mtlkit.training.parallel import ParallelTrainer, SharedCheckpoints
from mtlkit.training.result import DivergedError, FitResult
from mtlkit.training.scoring import autocast
from mtlkit.training.setup import TrainingSetup
from mtlkit.training.task_settings import with_task_settings
from mtlkit.training.trainer import Trainer
from mtlkit.training.warm_start import WarmStart


@dataclass
class Outcome:
    """A record, and what is stored with it: the arguments of :meth:`ResultStore.save`."""

    record: RunRecord
    arrays: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    log: str = ""
    encoders: str = ""
    keep_checkpoint: bool = False

    def save(self, store: ResultStore) -> Path:
        """Store all of it; returns the folder."""
        return store.save(self.record, self.arrays, self.log, self.encoders, self.keep_checkpoint)


def run_cell(
    cell: Cell,
    home: Path,
    execution: ExecutionSettings,
    on_progress: Callable[[float], None] = lambda share: None,
    folder: Path | None = None,
) -> Outcome:
    """Run a cell on this process's threads; an error of any kind is a record with status
    ``failed``.

    Args:
        on_progress: Called with the share of steps done.
        folder: The folder of the run, where checkpoints lie; None for none.
    """
    is_fitted = is_baseline(cell.resolved["model"]["name"])
    device = torch.device("cpu") if is_fitted else resolve_device(execution.device)
    with numerics(cell.resolved["training"], device):
        return _run(cell, home, execution, on_progress, folder, device)


def _run(
    cell: Cell,
    home: Path,
    execution: ExecutionSettings,
    on_progress: Callable[[float], None],
    folder: Path | None,
    device: torch.device,
) -> Outcome:
    """The same, in a process that computes as the cell's settings say."""
    started = datetime.now(UTC)
    compiled = None
    try:
        reset_peak_memory(device)
        dataset = load_planned_dataset(cell, home)
        if is_baseline(cell.resolved["model"]["name"]):
            result = fit_baseline(cell, dataset, execution, on_progress)
            environment = environment_of(cell, execution, device, started)
            return success(cell, dataset, result, environment)
        checkpoints = None
        if execution.checkpoint_every is not None and folder is not None:
            kind = SharedCheckpoints if execution.processes > 1 else Checkpoints
            checkpoints = kind(folder / CHECKPOINT, cell.key, execution.checkpoint_every)
        trainer = start_or_resume(
            lambda: build_trainer(cell, dataset, execution, device), checkpoints
        )
        compiled = compile_model(trainer)
        result = trainer.fit(on_progress, checkpoints)
    except (Exception, SystemExit) as error:  # a plugin may call sys.exit
        return failure(cell, error, environment_of(cell, execution, device, started, compiled))

    result.cost["peak_memory_bytes"] = peak_memory(device)
    environment = environment_of(cell, execution, device, started, compiled)
    return success(cell, dataset, result, environment, execution.keep_checkpoints)


def success(
    cell: Cell,
    dataset: Dataset,
    result: FitResult,
    environment: dict[str, Any],
    keep_checkpoint: bool = False,
) -> Outcome:
    """The outcome of a cell that was trained."""
    encoders = _encoders(dataset, result) if result.weights else ""
    record = RunRecord(
        key=cell.key,
        group=cell.group,
        status="ok",
        cell=cell,
        tasks=_measured_scores(dataset, result),
        metrics=result.metrics,
        best=result.best,
        curve=result.curve,
        timing=result.timing,
        cost=result.cost,
        environment=environment,
        warnings=result.warnings,
    )
    arrays = {"probes": result.probes, "scores": result.scores, "weights": result.weights}
    kept_arrays = {stem: named_arrays for stem, named_arrays in arrays.items() if named_arrays}
    return Outcome(record, kept_arrays, _log(result), encoders, keep_checkpoint)


def failure(
    cell: Cell,
    error: BaseException,
    environment: dict[str, Any] | None = None,
    status: Status = "failed",
) -> Outcome:
    """The outcome of a cell that came to nothing."""
    error_type = type(error).__name__
    message = str(error) or error_type
    step = None
    if isinstance(error, MtlkitError):
        message = error.message
    elif isinstance(error, DivergedError):
        error_type = error_type.removesuffix("Error")
        step = error.step
    elif isinstance(error, torch.OutOfMemoryError):
        message = (
            "The memory of the GPU is full: choose a smaller batch_size or eval_batch_size, or "
            "fewer --jobs."
        )
        message = " ".join([message, *getattr(error, "__notes__", ())])
    else:
        message = error_of_plugin(error) or message

    # half characters, as in names of files that are not UTF-8, can be neither printed nor stored
    message = message.encode(errors="backslashreplace").decode()
    trace = "".join(traceback.format_exception(error))
    trace = trace.encode(errors="backslashreplace").decode()
    record = RunRecord(
        key=cell.key,
        group=cell.group,
        status=status,
        cell=cell,
        error=Failure(type=error_type, message=message, step=step, traceback=trace),
        environment=environment or {},
    )
    return Outcome(record, log=trace)


# --- what a cell names: data, model, balancer, start


def load_planned_dataset(cell: Cell, home: Path) -> Dataset:
    """The data a cell was planned for.

    Raises:
        MissingError: It is not there, or has changed since the plan.
        UsageError: The file of a loss has changed.
    """
    planned = cell.resolved["dataset"]
    dataset = open_planned(planned["name"], planned["options"]).load(home)
    if dataset.fingerprint != planned["fingerprint"]:
        raise MissingError(
            f"The prepared data of {cell.dataset} have changed since the plan.",
            "run the command again",
        )
    settings = TrainingSettings.model_validate(cell.resolved["training"])
    digests = cell.resolved.get("losses", {})
    typed = [loss_spec(text).name for texts in settings.loss.values() for text in texts]
    for name in (*digests, *typed):
        LOSSES.load_planned({"name": name, "source_sha256": digests.get(name)})
    return with_task_settings(dataset.select(planned["tasks"]), settings)


def build_trainer(
    cell: Cell,
    dataset: Dataset,
    execution: ExecutionSettings,
    device: torch.device,
    splits: dict[str, DeviceSplit] | None = None,
    trainer_type: type[Trainer] | None = None,
) -> Trainer:
    """A trainer with a freshly initialised model, and its splits if they are on the device; of the
    type that the execution asks for, unless another is given.
    """
    resolved = cell.resolved
    model_class = MODELS.load_planned(resolved["model"])
    model_options = model_class.Options.model_validate(resolved["model"]["options"])
    model = build_model(model_class, dataset.schema, model_options, cell.seed)

    balancer: Balancer | None = None
    if model.shares_parameters:
        balancer_class = BALANCERS.load_planned(resolved["balancer"])
        balancer_options = balancer_class.Options.model_validate(resolved["balancer"]["options"])
        balancer = balancer_class(dataset.schema.tasks, balancer_options)

    settings = TrainingSettings.model_validate(resolved["training"])
    warm = warm_start(settings, execution)
    setup = TrainingSetup(settings, execution, cell.seed, device, warm)
    if trainer_type is None:
        trainer_type = ParallelTrainer if execution.processes > 1 else Trainer
    try:
        return trainer_type(model, balancer, dataset, setup, splits)
    except torch.OutOfMemoryError as error:
        gigabytes = sum(parameter.nbytes for parameter in model.parameters()) / 1e9
        error.add_note(
            f"The weights of the model take {gigabytes:.3g} GB, embedding tables included, and "
            "what Adam keeps of them twice as much: a smaller embedding takes less."
        )
        raise


def start_or_resume(build: Callable[[], Trainer], checkpoints: Checkpoints | None) -> Trainer:
    """A trainer in the state of the last checkpoint, if there is one; a new one, with a warning,
    where that does not hold.
    """
    trainer = build()
    if checkpoints is None:
        return trainer
    try:
        state = checkpoints.load()
        if state is not None:
            trainer.load_state_dict(state)
            trainer.notes = [*trainer.notes, f"resumed from a checkpoint at step {trainer.steps}"]
    except Exception as error:  # a state that does not fit fails in many ways
        reason = str(error) if isinstance(error, ValueError) else "it does not fit this run"
        trainer = build()
        trainer.warnings.append(f"the checkpoint was not used: {reason}; the cell started anew")
    checkpoints.tell = trainer.warnings.append
    return trainer


def compile_model(trainer: Trainer) -> CompiledForward | None:
    """Compile what is about to be trained, if the settings ask for it; failing is a warning.

    Raises:
        UsageError: A step is to be one CUDA graph and cannot be.
    """
    choice = trainer.execution.compile
    if choice == "graph":
        trainer.graph = StepGraph(trainer)
        return None
    if choice == "off" or (choice == "auto" and trainer.device.type == "cpu"):
        return None
    if trainer.compares_at_boundary:
        trainer.warnings.append(
            "not compiled: with scope=representation tasks part inside what would be compiled"
        )
        return None

    # one batch of the training's size is compiled now, so that it does not count as training
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
    folder = execution.init_from
    record = ResultStore.record(folder) if folder else None
    weights = ResultStore.arrays(folder, "weights") if folder else {}
    if record is None or record.key != settings.init_from or not weights:
        raise MissingError(
            f"The weights of the run {settings.init_from[:8]} to start from are not in {folder}.",
            "mtlkit bench --init-from with the folder of that run",
        )
    trained_tasks = list(record.curve[0]["train_loss"])
    return WarmStart(weights, trained_tasks, settings.freeze)


# --- what a run leaves behind


def _encoders(dataset: Dataset, result: FitResult) -> str:
    """The encoders of rows, which are kept with the weights; without them, numbers are not lost."""
    try:
        # without encoders, rows are those of features that are encoded already
        encoders = dataset.encoders_as_json() or {}
        return json.dumps({"schema": dataset.schema.model_dump(mode="json"), **encoders})
    except (OSError, ValueError) as error:
        result.warnings.append(f"the encoders of the data could not be read: {error}")
        return ""


def _measured_scores(dataset: Dataset, result: FitResult) -> list[dict[str, Any]]:
    """All that was measured, tasks and the other scores of a funnel, in the order of tables."""
    test_metrics = result.metrics["test"]
    described = []
    for score in dataset.schema.scores():
        if score.name not in test_metrics:
            continue
        task = dataset.schema.task(score.task)
        described.append(
            {
                "name": score.name,
                "task": score.task,
                "label": score.label,
                "kind": task.kind,
                "space": score.space,
                "hidden": score.hidden,
                "derived": test_metrics[score.name]["derived"],
                "metric": PRIMARY_METRIC[task.kind],
                "description": task.description if score.name == task.name else "",
            }
        )
    return described


def environment_of(
    cell: Cell,
    execution: ExecutionSettings,
    device: torch.device,
    started: datetime,
    compiled: CompiledForward | None = None,
) -> dict[str, Any]:
    """The machine, whether the forward pass was compiled there, and how the cell was run."""
    plugins = [Path(name) for name in cell.plugin_files]
    working = compiled is not None and compiled.working
    seconds = 0.0 if compiled is None else round(compiled.seconds, 1)
    machine = describe_environment(device, started, working, seconds, plugins)
    return machine | {"execution": execution.model_dump(mode="json", exclude_defaults=True)}


def _log(result: FitResult) -> str:
    """Warnings, notes, and a line an evaluation point."""
    lines = [*result.warnings, *result.notes]
    for point in result.curve:
        losses = [f"{task}={loss:.5f}" for task, loss in point["train_loss"].items()]
        scores = [
            f"{name}.{metric}={value:.5f}"
            for name, metrics in point["validation"].items()
            for metric, value in metrics.items()
            if isinstance(value, float)
        ]
        lines.append(
            f"step {point['step']} epoch {point['epoch']:g} "
            f"train_loss {' '.join(losses)} validation {' '.join(scores)}"
        )
    return "\n".join(lines) + "\n"
