"""Finished records as the logs of other programs: TensorBoard, MLflow, Weights & Biases.

Only the store is read, and only files are written; nothing is sent anywhere. One run a cell:
its settings as hyperparameters, its test metrics beside them, and the curves of its training.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mtlkit.errors import MissingError, UsageError
from mtlkit.records import RunRecord
from mtlkit.spec import flatten
from mtlkit.store import ResultStore

DONE = ".mtlkit-exported"
"""Lists what was exported, a program and a key a line, so that a second export adds what is new."""
LONGEST = 250  # letters of a name or a value; MLflow takes no longer names of files


@dataclass(frozen=True)
class LoggedRun:
    """A run, as all three programs understand it."""

    key: str  # of the record
    path: Path  # its folder in the store, relative to that
    name: str  # for people
    project: str  # the data set
    settings: dict[str, str | int | float | bool]  # dotted name to value
    results: dict[str, float]  # ``test/<task>/<metric>`` and costs to numbers
    curve: list[tuple[int, dict[str, float]]]  # (step, name to number) for each evaluation point
    started: float  # seconds since 1970, as are ``finished``
    finished: float  # when the run ended
    status: str  # as in the record

    @property
    def points(self) -> list[tuple[int, dict[str, float]]]:
        """The curve, and after it the results at its last step."""
        last = max((step for step, _ in self.curve), default=0)
        return [*self.curve, (last, self.results)]


def export_logs(results: Path, program: str, out: Path) -> tuple[int, int]:
    """Write the runs of a results folder for a program; returns how many were written, and how many
    had been before.

    Args:
        program: ``tensorboard``, ``mlflow`` or ``wandb``.
        out: Where to write; made when missing.

    Raises:
        MissingError: The program is not installed, or there are no runs.
        UsageError: There is no such program.
    """
    if program not in WRITERS:
        raise UsageError(f"There is no export to {program!r}.", "mtlkit export --help")
    try:
        importlib.import_module(program)
    except ImportError:
        raise MissingError(
            f"{program} is not installed.", f"pip install 'mtlkit[{program}]'"
        ) from None
    runs = list(_read_runs(results))
    if not runs:
        raise MissingError(f"There are no run records in {results}.", "mtlkit bench")

    out.mkdir(parents=True, exist_ok=True)
    done = out / DONE
    earlier = set(done.read_text(encoding="utf-8").splitlines()) if done.exists() else set()
    fresh = [run for run in runs if f"{program} {run.key}" not in earlier]
    with done.open("a", encoding="utf-8") as note:
        for run in fresh:
            WRITERS[program](run, out)
            note.write(f"{program} {run.key}\n")
            note.flush()
    return len(fresh), len(runs) - len(fresh)


# --- what a run says


def _read_runs(results: Path) -> Iterator[LoggedRun]:
    for record, folder in ResultStore(results).scan():
        environment = record.environment
        yield LoggedRun(
            key=record.key,
            path=folder.relative_to(results),
            name=_safe(record.cell.label),
            project=_safe(str(record.cell.resolved["dataset"]["name"])),
            settings={"seed": record.cell.seed, **_settings(record)},
            results=_numbers({**record.metrics, "cost": record.cost, "timing": record.timing}),
            curve=[_point(point) for point in record.curve if isinstance(point.get("step"), int)],
            started=_seconds(environment.get("started")),
            finished=_seconds(environment.get("finished")),
            status=record.status,
        )


def _settings(record: RunRecord) -> dict[str, str | int | float | bool]:
    """What was set, defaults filled in; lists become texts."""
    settings = {}
    for key, value in flatten(record.cell.resolved):
        is_number = isinstance(value, (int, float))
        settings[_safe(key)] = value if is_number else str(value)[:LONGEST]
    return settings


def _point(point: dict[str, Any]) -> tuple[int, dict[str, float]]:
    parts = {name: point.get(name, {}) for name in ("train_loss", "validation")}
    return point["step"], _numbers({"curve": parts})


def _numbers(nested: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers in nested values, under names with slashes."""
    numbers: dict[str, float] = {}
    for key, value in nested.items():
        name = prefix + _safe(str(key))
        if isinstance(value, dict):
            numbers |= _numbers(value, f"{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[name] = float(value)
    return numbers


def _safe(name: str) -> str:
    """A name as part of a path: programs make files of them. No slash, and no leading dot."""
    return re.sub(r"[^\w .-]|^\.+", "_", name)[:LONGEST] or "_"


def _seconds(text: Any) -> float:
    """Seconds since 1970; 0 where a record does not say."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return 0.0


# --- the programs


def _write_tensorboard(run: LoggedRun, out: Path) -> None:
    """An events file with curves, results and the plugin data of the HPARAMS tab.

    TensorBoard's own functions for these need TensorFlow, so the messages are put together here.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    # the settings, and how the run ended
    start = plugin_data_pb2.SessionStartInfo(group_name=run.key[:12], start_time_secs=run.started)
    for key, value in run.settings.items():
        kind = {bool: "bool", str: "string"}.get(type(value), "number")
        setattr(start.hparams[key], f"{kind}_value", value)
    status = api_pb2.STATUS_SUCCESS if run.status == "ok" else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=run.finished)
    session = {
        "_hparams_/session_start_info": plugin_data_pb2.HParamsPluginData(session_start_info=start),
        "_hparams_/session_end_info": plugin_data_pb2.HParamsPluginData(session_end_info=end),
    }

    writer = EventFileWriter(str(out / run.path))
    for tag, data in session.items():
        plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=data.SerializeToString())
        entry = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))
        writer.add_event(Event(wall_time=run.started, summary=Summary(value=[entry])))
    for step, values in run.points:
        entries = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        writer.add_event(Event(wall_time=run.finished, step=step, summary=Summary(value=entries)))
    writer.close()


def _write_mlflow(run: LoggedRun, out: Path) -> None:
    """A run in a store of plain files, one experiment a data set."""
    import mlflow
    from mlflow.entities import Metric, Param, RunTag

    # the store of files is asked for by name; MLflow would else want a data base
    with _environment(MLFLOW_ALLOW_FILE_STORE="true", MLFLOW_DISABLE_TELEMETRY="true"):
        client = mlflow.MlflowClient(tracking_uri=out.absolute().as_uri())
        experiment = client.get_experiment_by_name(run.project)
        number = experiment.experiment_id if experiment else client.create_experiment(run.project)
        started, finished = int(run.started * 1000), int(run.finished * 1000)
        created = client.create_run(number, started, run_name=run.name).info.run_id

        params = [Param(key, str(value)) for key, value in run.settings.items()]
        metrics = [
            Metric(key, value, finished, step)
            for step, values in run.points
            for key, value in values.items()
        ]
        tags = [RunTag("mtlkit.key", run.key), RunTag("mtlkit.status", run.status)]
        client.log_batch(created, metrics, params, tags)
        client.set_terminated(created, "FINISHED" if run.status == "ok" else "FAILED", finished)


def _write_wandb(run: LoggedRun, out: Path) -> None:
    """An offline run, which ``wandb sync`` sends when its owner wants that."""
    import wandb

    # its caches and settings belong into the same folder, not into the home of the user
    own = {name: str(out / "wandb-cache") for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")}
    own |= {"WANDB_DATA_DIR": str(out / "wandb-cache"), "WANDB_ERROR_REPORTING": "false"}
    with _environment(**own):
        settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        logged = wandb.init(
            mode="offline",
            dir=str(out),
            project=f"mtlkit-{run.project}"[:100],
            id=run.key[:16],
            name=run.name,
            config={**run.settings, "mtlkit.key": run.key},
            tags=[run.status],
            settings=settings,
        )
        for step, values in run.curve:
            logged.log(values, step=step)
        logged.summary.update(run.results)
        logged.finish(exit_code=0 if run.status == "ok" else 1)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Variables that a program reads; afterwards they are as before."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


WRITERS: dict[str, Callable[[LoggedRun, Path], None]] = {
    "tensorboard": _write_tensorboard,
    "mlflow": _write_mlflow,
    "wandb": _write_wandb,
}
